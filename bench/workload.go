package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Workload is one thing to measure.
type Workload struct {
	// Name identifies it on the command line and in reports: lower-case words joined by hyphens.
	Name string
	// Doc says in one line what is done, with the sizes of a full run.
	Doc string
	// Fixture is what the lower layers hold.
	Fixture Fixture
	// Run prepares, measures and verifies. An error of type *SkipError says that it can't run here.
	Run func(ctx context.Context, e *Env) error

	// Caches is the state of the kernel's caches before the mount is made.
	Caches CacheState
	// Mounting says who mounts.
	Mounting Mounting
	// Workers, when above 0, is the number of processes that call Run at once, each with its own Env.Worker; the
	// time is that from the common start to the end of the last.
	Workers int
	// MaxSamples bounds the number of samples of an expensive workload; 0 is no bound.
	MaxSamples int
	// Series are the names of what Run reports by Env.Report in place of a time; nil for a time.
	Series []Series
	// On says on which systems there is something to measure.
	On Scope
}

// Scope says on which systems a workload is measured.
type Scope int

const (
	// Everywhere is all systems.
	Everywhere Scope = iota
	// Servers are the systems that have a server process.
	Servers
	// PlyfsOnly are the variants of plyfs: what is measured has no counterpart elsewhere.
	PlyfsOnly
	// Indexed are the variants of plyfs that have an index.
	Indexed
)

// includes says whether sys is measured.
func (o Scope) includes(sys System) bool {
	switch o {
	case Servers:
		return len(sys.Program) > 0
	case PlyfsOnly:
		return strings.HasPrefix(sys.Name, Plyfs+"-")
	case Indexed:
		return len(sys.Indexer) > 0
	}
	return true
}

// Series is one reported quantity of a workload that does not report a time.
type Series struct {
	Name string
	Unit Unit
}

// Unit is the unit of a sample.
type Unit string

// The units of samples.
const (
	Nanoseconds Unit = "ns"
	Bytes       Unit = "bytes"
)

// CacheState is what the kernel holds of the layers when a sample's mount is made.
type CacheState int

const (
	// BackingCached means that directories, inodes and data of the layers were read just before.
	BackingCached CacheState = iota
	// BackingDropped means that the kernel's caches were dropped just before ("cold").
	BackingDropped
)

// CachePolicy says whether a run may drop the caches of the kernel, which are those of the whole machine.
type CachePolicy int

const (
	// MayDropCaches lets workloads drop the kernel's caches.
	MayDropCaches CachePolicy = iota
	// KeepCaches runs all workloads, but drops nothing: cold is as first. For tests, which must not slow down or
	// disturb whatever else runs on the machine.
	KeepCaches
)

// drop makes the kernel forget all clean pages, dentries and inodes of the machine, if that is allowed.
func (p CachePolicy) drop() error {
	if p == KeepCaches {
		return nil
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200); err != nil {
		return &SkipError{Reason: "caches can't be dropped: " + err.Error()}
	}
	return nil
}

// Mounting says who mounts the file system for a workload.
type Mounting int

const (
	// Mounted means that the runner mounts before and unmounts after the workload.
	Mounted Mounting = iota
	// Unmounted means that the workload itself calls Env.Mount and Env.Unmount.
	Unmounted
)

// SkipError says that a workload can't run on this machine, and why. It is not a failure.
type SkipError struct{ Reason string }

// Error returns the reason.
func (e *SkipError) Error() string { return "skipped: " + e.Reason }

// Env is what a workload works on. It belongs to one call of Run.
type Env struct {
	// Dir is the directory to work in, and Root an open descriptor of it.
	Dir  string
	Root int
	// Scale divides the sizes of a full run; at least 1. See N.
	Scale int
	// Tree describes what Dir holds at the start.
	Tree Tree
	// Aux is a directory outside of Dir with further input of the fixture.
	Aux string
	// Worker is the index of this process among Workload.Workers.
	Worker int
	// ServerPID is the process that serves Dir, 0 if none does.
	ServerPID int
	// System is what is measured, and Layout the mount that the runner prepared. A workload that makes further mounts
	// keeps their directories beside Layout.Upper.
	System System
	Layout Layout
	// Index is the directory with the index of the lowers, empty for systems without one.
	Index string
	// Mount and Unmount are set for workloads that are Unmounted. Mount returns when the target serves, Unmount when
	// it is detached; neither waits for a server to exit, Reap does. Servers are children of this process.
	Mount, Unmount func(ctx context.Context, l Layout) error
	Reap           func(ctx context.Context) error

	caches  CachePolicy
	settle  string // a directory whose file system is synced before measuring; "" for none
	gate    func() error
	elapsed time.Duration
	ran     bool
	ops     int
	values  map[string]float64
}

var (
	errMeasuredTwice = errors.New("measured twice")
	errNotMeasured   = errors.New("nothing was measured")
)

// N scales a count of a full run, and is at least 1.
func (e *Env) N(full int) int { return max(1, full/max(1, e.Scale)) }

// Measure runs f and takes its time by the monotonic clock. It is to be called once per Run. Before f starts, writes
// of the preparation are brought to the disk and the garbage collector is switched off, and it waits for the other
// workers, as it does after f has ended.
func (e *Env) Measure(f func() error) error {
	if e.ran {
		return errMeasuredTwice
	}
	e.ran = true
	if e.settle != "" {
		if err := syncFS(e.settle); err != nil {
			return err
		}
	}
	runtime.GC()
	old := debug.SetGCPercent(-1)
	defer debug.SetGCPercent(old)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if e.gate != nil {
		if err := e.gate(); err != nil {
			return err
		}
	}
	start := time.Now()
	err := f()
	e.elapsed = time.Since(start)
	if e.gate != nil && err == nil {
		err = e.gate()
	}
	return err
}

// Ops says how many operations of the workload's kind were measured, for times per operation.
func (e *Env) Ops(n int) { e.ops = n }

// Report gives the value of one of the workload's Series.
func (e *Env) Report(series string, value float64) {
	if e.values == nil {
		e.values = make(map[string]float64)
	}
	e.values[series] = value
}

// Elapsed returns the time that Measure took.
func (e *Env) Elapsed() time.Duration { return e.elapsed }

// expect fails a verification.
func expect[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("verify: %s: got %v, want %v", what, got, want)
	}
	return nil
}

// syncFS writes out the file system that holds dir.
func syncFS(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("syncfs %s: %w", dir, err)
	}
	return nil
}

// All returns every workload, in the order in which reports show them.
func All() []Workload {
	var all []Workload
	for _, group := range [][]Workload{
		walkWorkloads(), lookupWorkloads(), openWorkloads(), readWorkloads(), writeWorkloads(), copyUpWorkloads(),
		removeWorkloads(), createWorkloads(), gitWorkloads(), parallelWorkloads(), mountWorkloads(), memoryWorkloads(),
		indexWorkloads(),
	} {
		all = append(all, group...)
	}
	return all
}

// listed is what the lists of all kinds of workloads show.
type listed interface{ entry() (name, doc string) }

func (w Workload) entry() (name, doc string) { return w.Name, w.Doc }

// list prints workloads, a line each.
func list[W listed](out io.Writer, all []W) error {
	for _, w := range all {
		name, doc := w.entry()
		if _, err := fmt.Fprintf(out, "%-22s %s\n", name, doc); err != nil {
			return err
		}
	}
	return nil
}

// Select returns the workloads whose name matches one of the patterns (as path.Match), all of them for no pattern. A
// pattern that matches nothing is an error.
func Select[W listed](all []W, patterns []string) ([]W, error) {
	if len(patterns) == 0 {
		return all, nil
	}
	chosen := make([]bool, len(all))
	for _, p := range patterns {
		hit := false
		for i, w := range all {
			name, _ := w.entry()
			ok, err := path.Match(p, name)
			if err != nil {
				return nil, fmt.Errorf("workload pattern %q: %w", p, err)
			}
			if ok {
				chosen[i], hit = true, true
			}
		}
		if !hit {
			return nil, fmt.Errorf("no workload matches %q; --list shows them", p)
		}
	}
	var out []W
	for i, w := range all {
		if chosen[i] {
			out = append(out, w)
		}
	}
	return out, nil
}

// find returns the workload of that name.
func find(name string) (Workload, error) {
	for _, w := range All() {
		if w.Name == name {
			return w, nil
		}
	}
	return Workload{}, fmt.Errorf("no workload named %q", name)
}
