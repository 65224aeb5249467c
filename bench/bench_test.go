package bench

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

var update = flag.Bool("update", false, "rewrite golden files")

// TestMain is also the measuring process: the runner starts its own binary again, as plyfs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "bench" {
		app := &cli.App{Name: Plyfs, Commands: []*cli.Command{Command()}}
		if err := app.Run(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testenv.Main(m, testenv.Options{Binary: true}))
}

// runQuick measures all workloads once, with small sizes, and checks that each was measured on each system and that
// nothing is left. That a workload did what it says is verified by itself; a failure is an error of its cell.
func runQuick(t *testing.T, systems []System) *Report {
	t.Helper()
	testenv.CheckLeaks(t)
	report, err := NewRunner(Config{
		Workloads: All(), Systems: systems, LayersOn: []string{tmpfsMedium}, Samples: 1, Scale: 5 * quickScale,
		Timeout: 2 * time.Minute, Caches: KeepCaches,
	}).Run(t.Context())
	if err != nil {
		t.Error(err)
	}
	if report == nil {
		t.FailNow()
	}
	want := 0
	for _, w := range All() {
		want += max(1, len(w.Series))
	}
	if len(report.Results) != want {
		t.Errorf("%d results, want %d", len(report.Results), want)
	}
	for _, r := range report.Results {
		for _, c := range r.Cells {
			sys := systems[slices.IndexFunc(systems, func(s System) bool { return s.Name == c.System })]
			noIndex := strings.HasPrefix(r.Series, "mounts-index") && len(sys.Indexer) == 0
			if w, err := find(r.Workload); err != nil || noIndex || !w.On.includes(sys) {
				continue // there is nothing to measure
			}
			if len(c.Samples) != 1 || c.Median <= 0 {
				t.Errorf("%s on %s: samples %v, error %q, skipped %q", r.Series, c.System, c.Samples, c.Error, c.Skipped)
			}
		}
		if r.Ops <= 0 && slices.ContainsFunc(r.Cells, func(c Cell) bool { return len(c.Samples) > 0 }) {
			t.Errorf("%s: %d operations", r.Series, r.Ops)
		}
	}
	expectNothingLeft(t)
	return report
}

func expectNothingLeft(t *testing.T) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "plyfs-bench-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte("plyfs-bench")) {
		t.Errorf("mounts left behind (%v):\n%s", err, mounts)
	}
}

func TestQuickOnKernelAndFuseOverlayfs(t *testing.T) {
	systems, err := Detect(t.Context(), Choice{Systems: []string{KernelOverlay, FuseOverlayfs}})
	if err != nil {
		t.Fatal(err)
	}
	report := runQuick(t, systems)
	for _, r := range report.Results {
		c, ok := r.cell(FuseOverlayfs)
		if ok && r.Unit == Nanoseconds && (c.Ratio <= 0 || c.PeerRatio != 1) {
			t.Errorf("%s: ratio %v, peer ratio %v", r.Series, c.Ratio, c.PeerRatio)
		}
	}
}

func TestQuickOnPlyfs(t *testing.T) {
	systems, err := Detect(t.Context(), Choice{
		Systems: []string{Plyfs, PlyfsIndex}, Data: []DataMode{Passthrough, NoOpen}, Program: testenv.Binary(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	runQuick(t, systems)
}

// TestProfile: a profile of the server is complete although the server ends without returning to its caller.
func TestProfile(t *testing.T) {
	workloads, err := Select(All(), []string{"create"})
	if err != nil {
		t.Fatal(err)
	}
	systems, err := Detect(t.Context(), Choice{
		Systems: []string{Plyfs}, Data: []DataMode{NoOpen}, Program: testenv.Binary(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, err = NewRunner(Config{
		Workloads: workloads, Systems: systems, LayersOn: []string{tmpfsMedium}, Samples: 2, Scale: quickScale, ProfileDir: dir,
	}).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.ReadFile(filepath.Join(dir, "create.plyfs-noopen.pprof"))
	if err != nil || !bytes.HasPrefix(p, []byte{0x1f, 0x8b}) { // gzip
		t.Errorf("profile of %d bytes, %v", len(p), err)
	}
	expectNothingLeft(t)
}

// TestFailures: a server that does not start, and the end of the context, leave nothing behind.
func TestFailures(t *testing.T) {
	workloads, err := Select(All(), []string{"create", "mount-1"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Workloads: workloads, LayersOn: []string{tmpfsMedium}, Samples: 3, Scale: quickScale,
		Systems: []System{{Name: KernelOverlay}, {Name: "broken", Program: []string{"/bin/false"}}},
	}
	report, err := NewRunner(cfg).Run(t.Context())
	if !errors.Is(err, errFailed) {
		t.Errorf("got error %v", err)
	}
	for _, r := range report.Results {
		if _, ok := r.cell(KernelOverlay); !ok {
			t.Errorf("%s: not measured on the kernel's overlayfs", r.Series)
		}
		if c := r.Cells[1]; c.Error == "" || len(c.Samples) != 0 {
			t.Errorf("%s: %+v", r.Series, c)
		}
	}
	expectNothingLeft(t)

	ctx, cancel := context.WithCancel(t.Context())
	cfg.OnResult = func(Result) { cancel() }
	if _, err := NewRunner(cfg).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got error %v", err)
	}
	expectNothingLeft(t)
}

// TestCanceledStart: a run that is interrupted while a server starts leaves no mount and no server, and does not wait for one.
func TestCanceledStart(t *testing.T) {
	dir := t.TempDir()
	l := Layout{Lowers: []string{dir + "/l"}, Upper: dir + "/u", Work: dir + "/w", Target: dir + "/m"}
	for _, d := range []string{l.Lowers[0], l.Upper, l.Work, l.Target} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	systems, err := Detect(t.Context(), Choice{Systems: []string{Plyfs}, Data: []DataMode{NoOpen}, Program: testenv.Binary(t)})
	if err != nil {
		t.Fatal(err)
	}
	for delay := time.Duration(0); delay < 40*time.Millisecond; delay += time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		began := time.Now()
		v, err := systems[0].start(ctx, l, nil)
		cancel()
		if err == nil {
			err = v.stop()
		} else if errors.Is(err, context.DeadlineExceeded) {
			err = nil
		}
		if took := time.Since(began); err != nil || took > 5*time.Second {
			t.Errorf("after %v: %v, in %v", delay, err, took)
		}
		if _, err := os.ReadDir(l.Target); err != nil {
			t.Errorf("after %v: %v", delay, err)
		}
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(l.Target)) {
			t.Fatalf("after %v: still mounted, %v", delay, err)
		}
	}
}

// TestTurns: every system has its turn in each round, and each second round goes the other way.
func TestTurns(t *testing.T) {
	r := NewRunner(Config{Samples: 3})
	if got := slices.Collect(r.turns(3, 0)); !slices.Equal(got, []int{0, 1, 2, 2, 1, 0, 0, 1, 2}) {
		t.Errorf("%v", got)
	}
	if got := slices.Collect(r.turns(2, 1)); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("with one round at most: %v", got)
	}
}

// TestMediaFirst: a medium that can't be had ends a run before anything is measured, also where it is the last one.
func TestMediaFirst(t *testing.T) {
	workloads, err := Select(All(), []string{"create"})
	if err != nil {
		t.Fatal(err)
	}
	for _, wrong := range []Config{
		{LayersOn: []string{tmpfsMedium, filepath.Join(t.TempDir(), "none")}}, {LayersOn: []string{tmpfsMedium}, UpperOn: "/dev/null"},
	} {
		wrong.Workloads, wrong.Samples, wrong.Scale, wrong.Systems = workloads, 1, quickScale, []System{{Name: KernelOverlay}}
		report, err := NewRunner(wrong).Run(t.Context())
		if err == nil || errors.Is(err, errFailed) || len(report.Results) != 0 {
			t.Errorf("%v on %s: %v, %d results", wrong.LayersOn, wrong.UpperOn, err, len(report.Results))
		}
	}
	expectNothingLeft(t)
}

// TestOriginalFuseOverlayfs: plyfs under the name of fuse-overlayfs is not measured as fuse-overlayfs.
func TestOriginalFuseOverlayfs(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"first": "fuse-overlayfs: version 1.17\nplyfs: version 1 go1 linux", "second": "fuse-overlayfs: version 1.10\nFUSE library version 3",
	} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		script := "#!/bin/sh\nprintf '" + text + "\n'\n"
		if err := os.WriteFile(filepath.Join(dir, name, FuseOverlayfs), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", filepath.Join(dir, "first")+":"+filepath.Join(dir, "second"))
	found, err := Detect(t.Context(), Choice{Systems: []string{FuseOverlayfs}})
	if err != nil || found[0].Version != "1.10" || found[0].Program[0] != filepath.Join(dir, "second", FuseOverlayfs) {
		t.Errorf("%+v, %v", found, err)
	}
	t.Setenv("PATH", filepath.Join(dir, "first"))
	if found, err := Detect(t.Context(), Choice{Systems: []string{FuseOverlayfs}}); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("%+v, %v", found, err)
	}
}

// TestVerification: work that was not done is not a result.
func TestVerification(t *testing.T) {
	dir := t.TempDir()
	tree := newTree(perDir)
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	if err := errors.Join(tree.makeDirs(root), tree.create(root)); err != nil {
		t.Fatal(err)
	}
	env := func(t Tree) *Env { return &Env{Dir: dir, Root: root, Scale: 1, Tree: t} }
	more := tree
	more.Files++
	larger := tree
	larger.Size++
	for name, err := range map[string]error{
		"walk of fewer files":     measureWalk(env(more), StatEach, 0),
		"lookup that finds less":  measureLookups(env(more), more.paths(more.Files), nil, 0),
		"absent names that exist": measureLookups(env(tree), tree.paths(1), unix.ENOENT, 0),
		"short read":              measureOpens(env(larger), larger.paths(1), 0, 1),
		"removal of fewer files":  measureRemoveAll(env(more)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, err := range map[string]error{
		"walk":   measureWalk(env(tree), StatEach, 1),
		"lookup": measureLookups(env(tree), tree.paths(tree.Files), nil, 1),
		"open":   measureOpens(env(tree), tree.paths(tree.Files), 1, 2),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	e := env(tree)
	none := func() error { return nil }
	if err := errors.Join(e.Measure(none)); err != nil {
		t.Error(err)
	}
	if err := e.Measure(none); !errors.Is(err, errMeasuredTwice) {
		t.Errorf("measured twice: %v", err)
	}
}

func TestSelect(t *testing.T) {
	all := All()
	seen := make(map[string]bool)
	for _, w := range all {
		if seen[w.Name] || w.Doc == "" || w.Fixture.Build == nil || w.Run == nil {
			t.Errorf("workload %q: double or incomplete", w.Name)
		}
		seen[w.Name] = true
		for _, s := range w.Series {
			seen[s.Name] = true
		}
	}
	got, err := Select(all, []string{"mkdir-rmdir", "walk-warm-*-32"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, w := range got {
		names = append(names, w.Name)
	}
	if want := []string{"walk-warm-stat-32", "walk-warm-readdir-32", "mkdir-rmdir"}; !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
	for _, bad := range []string{"nothing-*", "["} {
		if _, err := Select(all, []string{bad}); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	for _, w := range AllStore() {
		if seen[w.Name] || w.Doc == "" || len(w.Systems) == 0 || w.Run == nil {
			t.Errorf("store workload %q: double or incomplete", w.Name)
		}
		seen[w.Name] = true
		for _, s := range w.Series {
			seen[s.Name] = true
		}
	}
	for _, w := range AllEngines() {
		if seen[w.Name] || w.Doc == "" || len(w.Systems) < 2 || w.Sample == nil {
			t.Errorf("engine workload %q: double or incomplete", w.Name)
		}
		seen[w.Name] = true
	}
	for _, r := range Rows() {
		if !seen[r.Series] || r.By == OfSeries && !seen[r.Base] {
			t.Errorf("a demand is about %q of %q, which is no workload", r.Series, r.Base)
		}
	}
}

// sampleReport is a report with fixed numbers.
func sampleReport() *Report {
	systems := []System{
		{Name: KernelOverlay, Version: "Linux 6.18"},
		{Name: FuseOverlayfs, Version: "1.10", Program: []string{"/usr/bin/fuse-overlayfs"}},
		{Name: "plyfs-noopen", Version: "plyfs 0.1", Program: []string{"/usr/bin/plyfs", "mount"}, Options: "data=noopen"},
	}
	r := newReport(Config{Systems: systems, Samples: 3, Scale: 1}, Host{
		Kernel: "6.18", CPUs: 2, CPUModel: "model", MemoryBytes: 1 << 34, LoadAverage: "0.10 0.20 0.30",
	})
	r.Started = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tmpfs := Medium{Name: tmpfsMedium}
	place := Place{Layers: tmpfs, Upper: tmpfs}
	create := newRecorder(Workload{Name: "create", Doc: "create files"}, place, systems)
	for _, d := range []time.Duration{110, 100, 120} {
		create.add(0, message{Elapsed: d * time.Millisecond, Ops: 20_000}, nil)
		create.add(1, message{Elapsed: 4 * d * time.Millisecond, Ops: 20_000}, nil)
		create.add(2, message{Elapsed: 3 * d * time.Millisecond, Ops: 20_000}, nil)
	}
	memory := newRecorder(Workload{Name: "memory", Doc: "memory", Series: []Series{{memoryKnown, Bytes}}}, place, systems)
	memory.add(1, message{Elapsed: 1, Ops: 5, Values: map[string]float64{memoryKnown: 300 << 20}}, nil)
	memory.add(2, message{Elapsed: 1, Ops: 5, Values: map[string]float64{memoryKnown: 180 << 20}}, nil)
	git := newRecorder(Workload{Name: "git-status-warm", Doc: "git"}, place, systems)
	git.add(0, message{}, &SkipError{Reason: "git is not installed"})
	git.add(1, message{}, io.ErrUnexpectedEOF)
	for _, rec := range []*recorder{create, memory, git} {
		for _, res := range rec.results() {
			r.add(res)
		}
	}
	r.Checks = Judge(r.Results)
	return r
}

func TestGolden(t *testing.T) {
	r := sampleReport()
	var text bytes.Buffer
	table := NewTable(&text, r.Systems)
	for _, res := range r.Results {
		table.Add(res)
	}
	if err := WriteChecks(&text, r.Checks); err != nil {
		t.Fatal(err)
	}
	var json bytes.Buffer
	if err := r.WriteJSON(&json); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"report.json": json.Bytes(), "report.txt": text.Bytes()} {
		file := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs:\n%s", name, got)
		}
	}
}

func TestJudge(t *testing.T) {
	checks := sampleReport().Checks
	i := slices.IndexFunc(checks, func(c Check) bool { return c.Against == KernelOverlay })
	if i < 0 || !checks[i].Pass || checks[i].Ratio != 3 || checks[i].Max != 3.2 || checks[i].Peer != 4 {
		t.Errorf("against the kernel: %+v", checks)
	}
	peers := 0
	for _, c := range checks {
		if c.Against == FuseOverlayfs {
			peers++
			if !c.Pass || c.Max != PeerMax {
				t.Errorf("against fuse-overlayfs: %+v", c)
			}
		}
	}
	if peers != 2 {
		t.Errorf("%d checks against fuse-overlayfs, want 2", peers)
	}
	if within(1.006, 1) || !within(1.004, 1) {
		t.Error("ratios are compared with other than two decimals")
	}
}

// TestPlot: the plot is well-formed and refers to nothing outside of itself.
func TestPlot(t *testing.T) {
	r := sampleReport()
	var svg, page bytes.Buffer
	if err := errors.Join(r.WriteSVG(&svg), r.WriteHTML(&page)); err != nil {
		t.Fatal(err)
	}
	bars := 0
	for d := xml.NewDecoder(bytes.NewReader(svg.Bytes())); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, svg.Bytes())
		}
		if s, ok := tok.(xml.StartElement); ok && s.Name.Local == "title" {
			bars++
		}
	}
	if bars < 4 {
		t.Errorf("%d titles in the plot", bars)
	}
	for _, ref := range []string{"href", "src=", "url(", "<script"} {
		if bytes.Contains(page.Bytes(), []byte(ref)) {
			t.Errorf("the page contains %q", ref)
		}
	}
	if !bytes.Contains(page.Bytes(), svg.Bytes()) {
		t.Error("the page does not contain the plot")
	}
}

// TestPlotOfStoreAndEngines: what has no cell of the kernel's overlayfs by itself is compared and drawn, too.
func TestPlotOfStoreAndEngines(t *testing.T) {
	place := Place{Layers: Medium{Name: ext4Medium}, Upper: Medium{Name: ext4Medium}}
	for base, others := range map[string][]string{
		EngineKernel: {EngineFuseOverlayfs, EnginePlyfs}, SnapshotterOverlay: {SnapshotterPlyfs},
		StoreTar: {StoreOverlay2, StorePlyfs}, StoreOverlay2: {StorePlyfs, StoreNaive},
	} {
		var systems []System
		for _, name := range append([]string{base}, others...) {
			systems = append(systems, System{Name: name})
		}
		rec := newRecorder(Workload{Name: "some", Doc: "something"}, place, systems)
		for i := range systems {
			rec.add(i, message{Elapsed: time.Duration(i+1) * time.Millisecond, Ops: 1}, nil)
		}
		r := newReport(Config{Systems: systems, Samples: 3, Scale: 1}, Host{})
		for _, res := range rec.results() {
			r.add(res)
		}
		res := r.Results[0]
		if last := res.Cells[len(res.Cells)-1]; res.Base != base || last.Ratio != float64(len(systems)) {
			t.Errorf("base %s of %s, last %+v", res.Base, base, last)
		}
		var svg bytes.Buffer
		if err := r.WriteSVG(&svg); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(svg.String(), "median of 1</title></rect>"); n != len(systems) || strings.Contains(svg.String(), "kernel's overlayfs") ||
			!strings.Contains(svg.String(), "median of at most 3") {
			t.Errorf("%d bars of %d:\n%s", n, len(systems), svg.String())
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in        []float64
		med, mini float64
	}{{nil, 0, 0}, {[]float64{3}, 3, 3}, {[]float64{9, 1}, 5, 1}, {[]float64{5, 1, 9}, 5, 1}} {
		if median(c.in) != c.med || minimum(c.in) != c.mini {
			t.Errorf("%v: median %v, minimum %v", c.in, median(c.in), minimum(c.in))
		}
	}
}
