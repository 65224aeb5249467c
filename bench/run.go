package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is what a run measures.
type Config struct {
	Workloads []Workload
	Systems   []System
	// LayersOn are the media for layers, each measured in turn; UpperOn is the medium of uppers, or empty for the
	// same. See openMedium for the words.
	LayersOn []string
	UpperOn  string
	// Only, when not nil, chooses the workloads that are measured on a medium.
	Only func(workload, medium string) bool
	// Samples is how often each workload is measured on each system.
	Samples int
	// Scale divides the sizes of full runs; 1 for full runs.
	Scale int
	// Timeout bounds one sample with its preparation.
	Timeout time.Duration
	// Caches says whether the machine's caches may be dropped.
	Caches CachePolicy
	// ProfileDir, when set, receives CPU profiles of plyfs, one for a workload and data mode (that of the last sample).
	ProfileDir string
	// OnResult, when not nil, is told of each result as soon as it is complete.
	OnResult func(Result)
	// Logger receives what goes wrong and, at level debug, each sample.
	Logger *slog.Logger
}

// Runner carries out a Config. Run is to be called once.
type Runner struct {
	cfg  Config
	base string // private directory, with the mount point
	// built are the fixtures made so far on the current medium, by name.
	built map[string]builtFixture
}

// builtFixture is a fixture on a medium.
type builtFixture struct {
	dir    string
	keep   Keep
	layers []string
	aux    string
	tree   Tree
	err    error // a *SkipError or a failure
	// index holds the index of the layers, if a system wanted one.
	index indexDir
}

// NewRunner returns a runner for c.
func NewRunner(c Config) *Runner {
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	c.Scale = max(1, c.Scale)
	c.Samples = max(1, c.Samples)
	if c.Timeout == 0 {
		c.Timeout = sampleTimeout
	}
	return &Runner{cfg: c}
}

// errFailed says that a run is complete but that samples are missing; the report says which.
var errFailed = errors.New("some samples failed")

// Run measures everything and cleans up. The report holds what was measured even with an error. A failed sample does
// not end the run.
func (r *Runner) Run(ctx context.Context) (report *Report, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("mounting the kernel's overlayfs needs root (a user namespace will do: unshare -Urm)")
	}
	// The parent-death signal of servers is bound to the thread that starts them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	report = newReport(r.cfg, describeHost(runtime.NumCPU()))
	r.base, err = os.MkdirTemp("", "plyfs-bench-")
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.base)) }()
	if strings.ContainsAny(r.base, ",:\\") {
		return report, fmt.Errorf("TMPDIR must have no comma, colon or backslash in its name: %s", r.base)
	}
	if err := os.Mkdir(r.target(), 0o755); err != nil {
		return report, err
	}
	for _, name := range append([]string{r.cfg.UpperOn}, r.cfg.LayersOn...) {
		if err := checkMedium(r.base, name); err != nil {
			return report, err
		}
	}
	for _, name := range r.cfg.LayersOn {
		if err := r.runOn(ctx, name, report); err != nil {
			return report, err
		}
	}
	if slices.ContainsFunc(report.Results, Result.failed) {
		return report, errFailed
	}
	return report, nil
}

func (r *Runner) target() string { return filepath.Join(r.base, "merged") }

// runOn measures all workloads with layers on one medium.
func (r *Runner) runOn(ctx context.Context, layersOn string, report *Report) (err error) {
	var place Place
	place.Layers, err = openMedium(r.base, layersOn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, place.Layers.close(r.base)) }()
	place.Upper = place.Layers
	if r.cfg.UpperOn != "" && r.cfg.UpperOn != layersOn {
		place.Upper, err = openMedium(r.base, r.cfg.UpperOn)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, place.Upper.close(r.base)) }()
	}
	r.built = make(map[string]builtFixture)
	for _, w := range r.cfg.Workloads {
		if r.cfg.Only != nil && !r.cfg.Only(w.Name, place.Layers.Name) {
			continue
		}
		if w.Caches == BackingDropped && r.cfg.Caches == MayDropCaches && place.Layers.Name == tmpfsMedium {
			r.cfg.Logger.Warn("left out: a tmpfs is in memory always, and nothing is cold there", "workload", w.Name)
			continue
		}
		r.discardUnused(w.Fixture)
		results, err := r.measure(ctx, w, place)
		if err != nil {
			return err
		}
		r.record(report, results)
	}
	return nil
}

// record adds results to the report, and tells of them.
func (r *Runner) record(report *Report, results []Result) {
	for _, res := range results {
		report.add(res)
		if r.cfg.OnResult != nil {
			r.cfg.OnResult(report.Results[len(report.Results)-1])
		}
	}
}

// measure takes all samples of a workload. Only the end of ctx is an error.
func (r *Runner) measure(ctx context.Context, w Workload, place Place) ([]Result, error) {
	fx := r.fixture(ctx, w, place.Layers)
	rec := newRecorder(w, place, r.cfg.Systems)
	for i := range r.turns(len(r.cfg.Systems), w.MaxSamples) {
		sys := r.cfg.Systems[i]
		if rec.given(i) || !w.On.includes(sys) {
			continue
		}
		m, err := r.sample(ctx, w, sys, fx, place)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		r.cfg.Logger.Debug("sample", "values", m.Values, "workload", w.Name, "system", sys.Name, "place", place.String(),
			"elapsed", m.Elapsed, "err", err)
		rec.add(i, m, err)
	}
	return rec.results(), nil
}

// turns yields which of n systems is sampled next: all of them in each round, in reversed order every second one, so that slow changes of
// the machine meet all alike. most bounds the number of rounds; 0 is no bound.
func (r *Runner) turns(n, most int) iter.Seq[int] {
	rounds := r.cfg.Samples
	if most > 0 {
		rounds = min(rounds, most)
	}
	return func(yield func(int) bool) {
		for round := range rounds {
			for k := range n {
				i := k
				if round%2 == 1 {
					i = n - 1 - k
				}
				if !yield(i) {
					return
				}
			}
		}
	}
}

// fixture builds the fixture of a workload on a medium, or returns the one built before, with an index if a system of
// the run wants one.
func (r *Runner) fixture(ctx context.Context, w Workload, on Medium) builtFixture {
	b, ok := r.built[w.Fixture.Name]
	if !ok {
		b = r.build(ctx, w.Fixture, on)
	}
	for _, sys := range r.cfg.Systems {
		if b.err == nil && b.index.dir == "" && len(sys.Indexer) > 0 && w.On.includes(sys) {
			b.index = buildIndex(ctx, sys, b)
		}
	}
	r.built[w.Fixture.Name] = b
	return b
}

// build builds a fixture on a medium.
func (r *Runner) build(ctx context.Context, f Fixture, on Medium) builtFixture {
	b := builtFixture{dir: filepath.Join(on.Dir, f.Name), keep: f.Keep}
	b.aux = filepath.Join(b.dir, "aux")
	b.err = os.MkdirAll(b.aux, 0o755)
	for i := range f.Layers {
		dir := filepath.Join(b.dir, strconv.Itoa(i))
		b.layers = append(b.layers, dir)
		if b.err == nil {
			b.err = os.Mkdir(dir, 0o755)
		}
	}
	if b.err == nil {
		b.tree, b.err = f.Build(ctx, b.layers, b.aux, r.cfg.Scale)
	}
	if b.err == nil && on.Name != tmpfsMedium {
		b.err = syncFS(b.dir)
	}
	if b.err != nil {
		b.err = fmt.Errorf("fixture %s: %w", f.Name, b.err)
	}
	return b
}

// discardUnused removes the huge fixtures other than next.
func (r *Runner) discardUnused(next Fixture) {
	for name, b := range r.built {
		if name == next.Name || b.keep != KeepForWorkload {
			continue
		}
		if err := os.RemoveAll(b.dir); err != nil {
			r.cfg.Logger.Error("remove fixture", "fixture", name, "err", err)
		}
		delete(r.built, name)
	}
}
