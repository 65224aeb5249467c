package bench

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// TestIndexMissing: an index that can't be built, or that the mount does not use, is no result.
func TestIndexMissing(t *testing.T) {
	workloads, err := Select(All(), []string{"walk-first-stat-1", firstAnswer, "index-build"})
	if err != nil {
		t.Fatal(err)
	}
	program := []string{testenv.Binary(t), "mount"}
	report, err := NewRunner(Config{
		Workloads: workloads, LayersOn: []string{tmpfsMedium}, Samples: 1, Scale: 5 * quickScale, Caches: KeepCaches,
		Systems: []System{
			{Name: "plyfs-fails", Program: program, Options: "data=noopen", Indexer: []string{"/bin/false"}},
		},
	}).Run(t.Context())
	if !errors.Is(err, errFailed) {
		t.Errorf("builder fails: got error %v", err)
	}
	expectErrors(t, report, "build the index")

	report, err = NewRunner(Config{
		Workloads: workloads[:1], LayersOn: []string{tmpfsMedium}, Samples: 1, Scale: 5 * quickScale, Caches: KeepCaches,
		Systems: []System{
			{Name: "plyfs-without", Program: program, Options: "data=noopen", Indexer: []string{"/bin/true"}},
		},
	}).Run(t.Context())
	if !errors.Is(err, errFailed) {
		t.Errorf("nothing built: got error %v", err)
	}
	expectErrors(t, report, "does not have the index")
	expectNothingLeft(t)
}

func expectErrors(t *testing.T, report *Report, want string) {
	t.Helper()
	if len(report.Results) == 0 {
		t.Error("no results")
	}
	for _, r := range report.Results {
		for _, c := range r.Cells {
			if len(c.Samples) != 0 || !strings.Contains(c.Error, want) {
				t.Errorf("%s on %s: samples %v, error %q; want %q", r.Series, c.System, c.Samples, c.Error, want)
			}
		}
	}
}

// cellsOf makes a result on tmpfs with one sample for each system.
func cellsOf(series string, unit Unit, values map[string]float64) Result {
	r := Result{Series: series, Workload: series, Place: tmpfsMedium, Unit: unit}
	for system, v := range values {
		r.Cells = append(r.Cells, Cell{System: system, Samples: []float64{v}, Median: v, Min: v})
	}
	return r
}

// TestComparisons: each way to put a demand, met and missed, and with nothing to compare with.
func TestComparisons(t *testing.T) {
	const noopen = Plyfs + "-" + string(NoOpen)
	base := cellsOf("one", Nanoseconds, map[string]float64{PlyfsIndex: 100, noopen: 1000})
	elsewhere := cellsOf("one", Nanoseconds, map[string]float64{PlyfsIndex: 1})
	elsewhere.Place = ext4Medium
	for _, c := range []struct {
		name     string
		row      Row
		value    float64
		verdicts []bool
		text     string
	}{
		{"series, met", Row{By: OfSeries, Base: "one", Max: 1.3}, 130, []bool{true}, "1.30 of at most 1.30"},
		{"series, missed", Row{By: OfSeries, Base: "one", Max: 1.3}, 132, []bool{false}, "1.32 of at most 1.30"},
		{"series, none", Row{By: OfSeries, Base: "two", Max: 1.3}, 130, nil, ""},
		{"system, met", Row{By: OverSystem, Base: noopen, Max: 20e6}, 60e6, []bool{true}, "10.0 ms of at most 20.0 ms"},
		{"system, missed", Row{By: OverSystem, Base: noopen, Max: 20e6}, 71e6, []bool{false}, "21.0 ms of at most 20.0 ms"},
		{"system, below", Row{By: OverSystem, Base: noopen, Max: 20e6}, 40e6, []bool{true}, "-10.0 ms of at most 20.0 ms"},
		{"system, none", Row{By: OverSystem, Base: FuseOverlayfs, Max: 20e6}, 60e6, nil, ""},
		{"absolute, met", Row{By: Absolute, Max: 150e3}, 150e3, []bool{true}, "150 us of at most 150 us"},
		{"absolute, missed", Row{By: Absolute, Max: 150e3}, 151e3, []bool{false}, "151 us of at most 150 us"},
		{"kernel, none", Row{By: OfKernel, Max: 1}, 1, nil, ""},
		{"elsewhere", Row{By: Absolute, Place: loopMedium, Max: 1}, 2, nil, ""},
	} {
		c.row.Series, c.row.System = "many", PlyfsIndex
		res := cellsOf("many", Nanoseconds, map[string]float64{PlyfsIndex: c.value, noopen: 50e6})
		results := []Result{elsewhere, res, base}
		var checks []Check
		if c.row.isOn(res.Place) {
			checks = c.row.judge(res, results)
		}
		var verdicts []bool
		for _, k := range checks {
			verdicts = append(verdicts, k.Pass)
		}
		var text bytes.Buffer
		if err := WriteChecks(&text, checks); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(verdicts, c.verdicts) || !strings.Contains(text.String(), c.text) {
			t.Errorf("%s: got %v, want %v and %q; %s", c.name, verdicts, c.verdicts, c.text, &text)
		}
	}
}

// TestDemanded: a check alone runs what its demands are about, where they are, also for a series of another name.
func TestDemanded(t *testing.T) {
	for _, c := range []struct {
		workload, medium string
		want             bool
	}{
		{"walk-first-stat-500", tmpfsMedium, true},
		{"walk-first-stat-500", loopMedium, false},
		{"walk-cold-stat-32", loopMedium, true},
		{"walk-cold-stat-32", ext4Medium, false},
		{"mounts", tmpfsMedium, true},
		{"mounts", ext4Medium, false},
		{"memory", tmpfsMedium, false},
	} {
		if got := demanded(c.workload, c.medium); got != c.want {
			t.Errorf("%s on %s: got %v", c.workload, c.medium, got)
		}
	}
}

// TestLoop: the medium is an ext4 of its own, and neither mount, device nor file outlives it.
func TestLoop(t *testing.T) {
	base := t.TempDir()
	if fsName(base) == tmpfsMedium {
		if _, err := openMedium(base, loopMedium); err == nil {
			t.Error("a file on tmpfs was taken for a disk")
		}
		return
	}
	m, err := openMedium(base, loopMedium)
	if err != nil {
		t.Fatal(err)
	}
	if got := fsName(m.Dir); got != ext4Medium {
		t.Errorf("the file system is %s", got)
	}
	if err := os.WriteFile(filepath.Join(m.Dir, "file"), make([]byte, pageSize), 0o600); err != nil {
		t.Error(err)
	}
	if !loopHolds(t, base) {
		t.Error("no loop device is bound below the directory of the test")
	}
	if err := m.close(base); err != nil {
		t.Error(err)
	}
	if loopHolds(t, base) {
		t.Error("the loop device is still bound")
	}
	left, err := os.ReadDir(base)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// loopHolds says whether a loop device is bound to a file below base.
func loopHolds(t *testing.T, base string) bool {
	t.Helper()
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(names, func(name string) bool {
		file, err := os.ReadFile(name)
		return err == nil && strings.HasPrefix(string(file), base+"/")
	})
}

// TestMappings: the memory of a mapped file is found below its directory and nowhere else.
func TestMappings(t *testing.T) {
	const size = 64 * pageSize
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "table"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := expectIndexUsed(os.Getpid(), dir); err == nil {
		t.Error("an index that is not mapped counts as used")
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(mapped); err != nil {
			t.Error(err)
		}
	}()
	if err := expectIndexUsed(os.Getpid(), dir); err != nil {
		t.Error(err)
	}
	var all, within, none sharing
	err = errors.Join(addMappings(os.Getpid(), dir, &all, &within), addMappings(os.Getpid(), "", &all, &none))
	if err != nil {
		t.Fatal(err)
	}
	if want := (sharing{Rss: size, Pss: size}); within != want {
		t.Errorf("below the directory: got %+v, want %+v", within, want)
	}
	if all.Rss <= within.Rss || all.Rss < all.Pss || none != (sharing{}) {
		t.Errorf("all %+v, without an index %+v", all, none)
	}
	anon, err := anonymousBytes(os.Getpid())
	if err != nil || anon <= 0 {
		t.Errorf("anonymous memory: %d, %v", anon, err)
	}
}

func TestChildrenOf(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	got, err := childrenOf(os.Getpid())
	if err != nil || !slices.Contains(got, cmd.Process.Pid) {
		t.Errorf("running: got %v, %v; want %d among them", got, err, cmd.Process.Pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("a killed process ended well")
	}
	got, err = childrenOf(os.Getpid())
	if err != nil || slices.Contains(got, cmd.Process.Pid) {
		t.Errorf("ended: got %v, %v", got, err)
	}
}

// TestDetachBelow: what is mounted below a directory is unmounted, the directory itself and its neighbours are not.
func TestDetachBelow(t *testing.T) {
	base := t.TempDir()
	below, beside := filepath.Join(base, "a", "b"), filepath.Join(base, "ab")
	for _, dir := range []string{below, beside} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("plyfs-test", dir, tmpfsMedium, 0, ""); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := detach(dir); err != nil {
				t.Error(err)
			}
		}()
	}
	if err := detachBelow(filepath.Join(base, "a")); err != nil {
		t.Fatal(err)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(info, []byte(" "+below+" ")) || !bytes.Contains(info, []byte(" "+beside+" ")) {
		t.Errorf("mounts after:\n%s", info)
	}
}

// TestSpread: both ways to spread a tree over layers give the same merged tree, in runs with no directory to spare.
func TestSpread(t *testing.T) {
	for _, f := range []Fixture{treeFixture(7), imageFixture(7)} {
		base := t.TempDir()
		var layers []string
		for i := range f.Layers {
			layers = append(layers, filepath.Join(base, string(rune('0'+i))))
			if err := os.Mkdir(layers[i], 0o755); err != nil {
				t.Fatal(err)
			}
		}
		tree, err := f.Build(t.Context(), layers, "", quickScale)
		if err != nil {
			t.Fatal(err)
		}
		all, files := make(map[string]bool), 0
		dirs := 0
		for _, layer := range layers {
			err := filepath.WalkDir(layer, func(p string, d os.DirEntry, err error) error {
				if err != nil || p == layer {
					return err
				}
				all[strings.TrimPrefix(p, layer+"/")] = true
				if d.IsDir() {
					dirs++
				} else {
					files++
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		want := tree.dirs()
		for _, name := range append(want, tree.paths(tree.Files)...) {
			if !all[name] {
				t.Errorf("%s: no layer has %s", f.Name, name)
			}
		}
		if files != tree.Files || len(all) != len(want)+tree.Files {
			t.Errorf("%s: %d files and %d names, want %d and %d", f.Name, files, len(all), tree.Files, len(want)+tree.Files)
		}
		if most := f.Layers * len(want); tree.Spread == AllMerged && dirs != most || tree.Spread == InRuns && dirs >= most/2 {
			t.Errorf("%s: %d directories in all layers together, of %d", f.Name, dirs, most)
		}
	}
}
