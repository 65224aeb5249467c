// Package drivertest is the conformance suite of graph drivers: every backend runs it, as root and, if it can, as root
// of a user namespace, and passes all of it but for the differences that it names.
//
// The cases are those of moby's graphtest and of containerd's snapshot suite, and more. Those about what layers show,
// and what their differences are, do not spell out what is expected: the same steps are carried out in plain
// directories, which are the oracle.
//
// The package is imported by tests only.
package drivertest

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// Suite says how to run the cases on one driver.
type Suite struct {
	// Factory makes the driver, with these Options.
	Factory drivers.Factory
	Options map[string]string
	// Base returns a new directory on a file system that carries the driver. The driver's home, and its directory for what
	// does not outlive a boot, are made beneath it. It is removed after the test by whoever made it. What has to be
	// prepared once is prepared here, at the first call: the processes that the suite starts to kill them come to Run, but
	// not to Base.
	Base func(t testing.TB) string
	// Plain returns a new directory on a file system with user attributes, ACLs and all else that the scenarios use, for
	// the oracle; nil stands for Base.
	Plain func(t testing.TB) string
	// SmallBase is Base on a file system, or in a pool, that can hold some files of some hundred kilobytes, but not
	// SmallSize bytes.
	SmallBase func(t testing.TB) string
	// Cases are those to run, by name; nil stands for all.
	Cases []string
	// Abilities say what the driver promises beyond the contract.
	Abilities Abilities
	// Differences are the cases that do not hold for the driver.
	Differences []Difference
}

// SmallSize is what a file system of SmallBase cannot hold, in bytes.
const SmallSize = 64 << 20

// Abilities are what drivers may or may not do.
type Abilities struct {
	// QuotaBytes and QuotaInodes say that the quotas of writable layers are enforced.
	QuotaBytes, QuotaInodes bool
	// ReadOnlyImages says that nothing can be written to an image layer that was got.
	ReadOnlyImages bool
	// ReadOnlyGet says that a writable layer can be got read-only.
	ReadOnlyGet bool
	// Mountless says that Get gives a plain directory: references end with the process.
	Mountless bool
	// Independent says that a layer stays whole when its parent is removed. For other drivers that is refused, or
	// harmless.
	Independent bool
}

// Difference is a case that does not hold for a driver, with the reason. Case is the name as go test prints it, without
// that of the test that runs the suite: "Layers/rename-dir".
type Difference struct{ Case, Reason string }

// aCase is one property.
type aCase struct {
	name string
	run  func(e *env)
}

// cases are all cases in the order in which they run.
func cases() []aCase {
	return slices.Concat(
		lifeCases(), getCases(), layerCases(), diffCases(), markCases(), applyCases(), quotaCases(), concurrentCases(), crashCases(),
	)
}

// Run runs the suite.
func Run(t *testing.T, s Suite) {
	if child(t, s) {
		return
	}
	known := knownCases()
	for _, d := range s.Differences {
		if !slices.Contains(known, d.Case) || d.Reason == "" {
			t.Errorf("difference %q: there is no such case, or no reason for it", d.Case)
		}
	}
	for _, name := range s.Cases {
		if !slices.Contains(known, name) {
			t.Errorf("there is no case %q", name)
		}
	}
	for _, c := range cases() {
		if s.Cases != nil && !slices.Contains(s.Cases, c.name) {
			continue
		}
		if why, differs := s.differs(c.name); differs {
			t.Logf("%s does not hold: %s", c.name, why)
			continue
		}
		t.Run(c.name, func(t *testing.T) { c.run(newEnv(t, s, s.Base)) })
	}
}

func knownCases() []string {
	var names []string
	for _, c := range cases() {
		names = append(names, c.name)
	}
	for _, sc := range scenarios() {
		names = append(names, "Layers/"+sc.name)
	}
	return names
}

func (s Suite) differs(name string) (why string, differs bool) {
	i := slices.IndexFunc(s.Differences, func(d Difference) bool { return d.Case == name })
	if i < 0 {
		return "", false
	}
	return s.Differences[i].Reason, true
}

// Long says whether the long form of the suite was asked for.
func Long() bool { return os.Getenv("PLYFS_LONG") == "1" }

// env is a driver with an empty store, for one case.
type env struct {
	*testing.T
	s    Suite
	base string
	d    drivers.Driver
}

// plain returns a directory for plain trees.
func (e *env) plain() string {
	e.Helper()
	if e.s.Plain != nil {
		return e.s.Plain(e.T)
	}
	return e.s.Base(e.T)
}

func newEnv(t *testing.T, s Suite, base func(testing.TB) string) *env {
	t.Helper()
	testenv.CheckLeaks(t)
	e := &env{T: t, s: s, base: base(t)}
	e.open()
	t.Cleanup(e.finish)
	return e
}

func ctx() context.Context { return context.Background() }

func (s Suite) options(base string) drivers.Options {
	return drivers.Options{Home: filepath.Join(base, "home"), Run: filepath.Join(base, "run"), Options: s.Options}
}

func (e *env) open() {
	e.Helper()
	d, err := e.s.Factory.Open(ctx(), e.s.options(e.base))
	if err != nil {
		e.Fatalf("open: %v", err)
	}
	e.d = d
	e.must(d.Cleanup(ctx()))
}

// reopen is a restart of the engine that uses the driver.
func (e *env) reopen() {
	e.Helper()
	e.must(e.d.Close())
	e.open()
}

func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// finish removes all layers, and checks that nothing of them is left.
func (e *env) finish() {
	e.removeAll()
	if err := e.d.Cleanup(ctx()); err != nil {
		e.Errorf("clean up: %v", err)
	}
	if err := e.d.Close(); err != nil {
		e.Errorf("close: %v", err)
	}
	for _, m := range mountsBeneath(e.T, e.base) {
		e.Errorf("left mounted: %s", m)
	}
}

// removeAll gives back and removes whatever there is, children before parents.
func (e *env) removeAll() {
	e.Helper()
	for {
		ids, err := e.ids()
		if err != nil {
			e.Errorf("list: %v", err)
		}
		if len(ids) == 0 {
			return
		}
		var errs []error
		for _, id := range ids {
			for e.d.Put(ctx(), id) == nil {
				continue
			}
			if err := e.d.Remove(ctx(), id); err != nil {
				errs = append(errs, err)
			}
		}
		if len(errs) == len(ids) {
			e.Errorf("no layer can be removed: %v", errs)
			return
		}
	}
}

// ids lists the layers, sorted.
func (e *env) ids() (ids []string, err error) {
	err = e.d.List(ctx(), func(i drivers.Info) error {
		ids = append(ids, i.ID)
		return nil
	})
	slices.Sort(ids)
	return ids, err
}

// mountsBeneath lists the mount points beneath dir.
func mountsBeneath(t testing.TB, dir string) (points []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	return points
}

// image makes an image layer of steps.
func (e *env) image(id, parent string, steps ...step) {
	e.Helper()
	e.must(e.d.Create(ctx(), id, parent, nil))
	if len(steps) == 0 {
		return
	}
	e.writable("make-"+id, parent)
	e.change("make-"+id, steps...)
	e.copyDiff("make-"+id, parent, id)
	e.must(e.d.Remove(ctx(), "make-"+id))
}

// copyDiff applies what from has and parent has not to the layer to.
func (e *env) copyDiff(from, parent, to string) {
	e.Helper()
	e.copyDiffOf(drivers.DifferOf(e.d), from, parent, to)
}

// copyDiffOf is copyDiff of what a certain Differ tells.
func (e *env) copyDiffOf(d drivers.Differ, from, parent, to string) {
	e.Helper()
	r, err := d.Diff(ctx(), from, parent, nil)
	e.must(err)
	_, err = drivers.DifferOf(e.d).ApplyDiff(ctx(), to, r, nil)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	e.must(err)
}

func (e *env) writable(id, parent string) {
	e.Helper()
	e.must(e.d.CreateReadWrite(ctx(), id, parent, nil))
}

func (e *env) get(id string) (root string) {
	e.Helper()
	root, err := e.d.Get(ctx(), id, nil)
	e.must(err)
	return root
}

func (e *env) put(id string) {
	e.Helper()
	e.must(e.d.Put(ctx(), id))
}

// change carries out steps in a writable layer.
func (e *env) change(id string, steps ...step) {
	e.Helper()
	at := &place{root: e.get(id)}
	err := at.do(steps)
	e.put(id)
	e.must(err)
}

// exists fails the test if the layer's existence is not as wanted, in Exists and List alike.
func (e *env) exists(id string, want bool) {
	e.Helper()
	got, err := e.d.Exists(ctx(), id)
	e.must(err)
	ids, err := e.ids()
	e.must(err)
	if listed := slices.Contains(ids, id); got != want || listed != want {
		e.Fatalf("layer %s: exists %v, listed %v, want %v", id, got, listed, want)
	}
}
