package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"plyfs/drivers"
	"plyfs/drivers/all"
	"plyfs/layerdb"
)

// The systems that store workloads are measured on: GNU tar on a plain directory, graph drivers with their own differ, and
// the plyfs driver with the naive one, which compares two mounted trees.
const (
	StoreTar      = "tar"
	StoreOverlay2 = "driver-overlay2"
	StorePlyfs    = "driver-plyfs"
	StoreNaive    = "driver-plyfs-naive"
)

const driverPrefix = "driver-"

// StoreWorkload is one thing to measure of a layer store or its driver. Each sample has an empty directory of its own.
type StoreWorkload struct {
	// Name, Doc and Series are as those of a Workload.
	Name, Doc string
	Series    []Series
	// Systems are those on which it means something.
	Systems []string
	// MaxSamples bounds the number of samples of an expensive workload; 0 is no bound.
	MaxSamples int
	// Run prepares, calls Env.Measure around what counts or reports its Series, and verifies.
	Run func(ctx context.Context, e *StoreEnv) error
}

func (w StoreWorkload) entry() (name, doc string) { return w.Name, w.Doc }

// StoreEnv is what a store workload works on.
type StoreEnv struct {
	*Env
	// Dir of Env is the directory of this sample; Streams makes the tar streams, which all samples of a medium share.
	Streams *streams
	// On is the name of the system that is measured.
	On string
	// Program is the plyfs binary.
	Program string
}

// driverName is the name of the driver of the system at hand.
func (e *StoreEnv) driverName() string {
	return strings.TrimSuffix(strings.TrimPrefix(e.On, driverPrefix), "-naive")
}

// driverOptions are the options of the driver of the system at hand.
func (e *StoreEnv) driverOptions() map[string]string {
	if e.driverName() == Plyfs {
		return map[string]string{"mount_program": e.Program}
	}
	return nil
}

// open opens the driver alone, in the sample's directory.
func (e *StoreEnv) open(ctx context.Context) (drivers.Driver, drivers.Differ, error) {
	f, err := all.Registry().Lookup(e.driverName())
	if err != nil {
		return nil, nil, err
	}
	o := drivers.Options{
		Home: filepath.Join(e.Dir, "home"), Run: filepath.Join(e.Dir, "run"), Options: e.driverOptions(),
	}
	if rep := f.Probe(ctx, o); !rep.Usable {
		return nil, nil, &SkipError{Reason: rep.Why}
	}
	d, err := f.Open(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	return d, drivers.DifferOf(d), nil
}

// reader is what reads differences on the system at hand.
func (e *StoreEnv) reader(d drivers.Driver) drivers.Differ {
	if e.On == StoreNaive {
		return drivers.NaiveDiffer(d)
	}
	return drivers.DifferOf(d)
}

// store opens a layer store in the sample's directory.
func (e *StoreEnv) store(ctx context.Context) (*layerdb.Store, error) {
	return layerdb.Open(ctx, layerdb.Options{
		Root: filepath.Join(e.Dir, "store"), Driver: e.driverName(), Registry: all.Registry(), DriverOptions: e.driverOptions(),
	})
}

// AllStore returns every store workload, in the order in which reports show them.
func AllStore() []StoreWorkload {
	return []StoreWorkload{unpackWorkload(), diffWorkload(), getPutWorkload(), commitWorkload(), containersWorkload()}
}

// StoreSystems returns the systems of the chosen workloads.
func StoreSystems(workloads []StoreWorkload) []System {
	var out []System
	for _, w := range workloads {
		for _, name := range w.Systems {
			if !slices.ContainsFunc(out, func(s System) bool { return s.Name == name }) {
				out = append(out, System{Name: name})
			}
		}
	}
	return out
}

// RunStore measures store workloads as c says; of its workloads and systems only those given here count. It cleans up,
// and the report holds what was measured even with an error.
func RunStore(ctx context.Context, c Config, program string, workloads []StoreWorkload) (report *Report, err error) {
	r := NewRunner(c)
	r.cfg.Systems = StoreSystems(workloads)
	report = newReport(r.cfg, describeHost(numCPU()))
	if os.Geteuid() != 0 {
		return report, errors.New("mounting needs root (a user namespace will do: unshare -Urm)")
	}
	if r.base, err = os.MkdirTemp("", "plyfs-bench-"); err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.base)) }()
	for _, name := range r.cfg.LayersOn {
		if err := checkMedium(r.base, name); err != nil {
			return report, err
		}
	}
	for _, name := range r.cfg.LayersOn {
		if err := r.storeOn(ctx, name, program, workloads, report); err != nil {
			return report, err
		}
	}
	if slices.ContainsFunc(report.Results, Result.failed) {
		return report, errFailed
	}
	return report, nil
}

// storeOn measures the workloads on one medium.
func (r *Runner) storeOn(ctx context.Context, name, program string, workloads []StoreWorkload, report *Report) (err error) {
	m, err := openMedium(r.base, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close(r.base)) }()
	shared := newStreams(filepath.Join(m.Dir, "streams"))
	for _, w := range workloads {
		results, err := r.measureStore(ctx, w, program, m, shared)
		if err != nil {
			return err
		}
		r.record(report, results)
	}
	return nil
}

// measureStore takes all samples of a workload; the systems alternate. Only the end of ctx is an error.
func (r *Runner) measureStore(
	ctx context.Context, w StoreWorkload, program string, m Medium, shared *streams,
) ([]Result, error) {
	systems := StoreSystems([]StoreWorkload{w})
	rec := newRecorder(Workload{Name: w.Name, Doc: w.Doc, Series: w.Series}, Place{m, m}, systems)
	for i := range r.turns(len(systems), w.MaxSamples) {
		if rec.given(i) {
			continue
		}
		e := &StoreEnv{Env: &Env{Scale: r.cfg.Scale}, Streams: shared, On: systems[i].Name, Program: program}
		err := r.sampleStore(ctx, w, m, e)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		r.cfg.Logger.Debug("sample", "values", e.values, "workload", w.Name, "system", e.On, "elapsed", e.elapsed, "err", err)
		rec.add(i, message{Elapsed: e.elapsed, Ops: e.ops, Values: e.values}, err)
	}
	return rec.results(), nil
}

// sampleStore takes one sample in a directory of its own.
func (r *Runner) sampleStore(ctx context.Context, w StoreWorkload, m Medium, e *StoreEnv) (err error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	if e.Dir, err = os.MkdirTemp(m.Dir, "sample-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, detachBelow(e.Dir), discardSample(e.Dir, m)) }()
	if m.Name != tmpfsMedium {
		e.settle = m.Dir
	}
	if err := w.Run(ctx, e); err != nil {
		return fmt.Errorf("%s on %s: %w", w.Name, e.On, err)
	}
	if !e.ran && len(e.values) == 0 {
		return errNotMeasured
	}
	return nil
}
