package uniontest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

// Case is one behaviour.
type Case struct {
	Name string
	// Lowers are topmost first. Without any, one empty lower is made.
	Lowers []Layer
	// Upper is what the upper holds before it is first opened.
	Upper Layer
	// NoUpper opens the tree without an upper.
	NoUpper bool
	Options []string
	// Needs are traits without which an implementation is not asked; Not are traits with which it is not.
	Needs, Not Traits
	// Long cases run only where the runner asks for them.
	Long bool
	// Serial cases do not run beside others.
	Serial bool
	// NoCross says why another implementation cannot be expected to show the same tree afterwards; "" if it can.
	NoCross string
	// NoFinal says why the tree cannot be read whole or opened again in the end; "" if it can.
	NoFinal string
	Run     func(c *C)
}

// Setup says how Run runs the cases.
type Setup struct {
	Factory Factory
	// Cross are implementations that must show, over the layers that a case left, the tree that the factory's showed.
	Cross []Factory
	// Base returns an empty directory for one case's layers; nil means testenv.Scratch.
	Base func(t testing.TB) string
	// Long runs the long cases too.
	Long bool
	// Only runs a case if it returns true; nil runs all.
	Only func(Case) bool
}

// Run runs all cases that the implementation has the traits for, each as a subtest.
func Run(t *testing.T, s Setup) {
	t.Helper()
	for _, cs := range Cases() {
		if cs.Long && !s.Long || s.Only != nil && !s.Only(cs) {
			continue
		}
		if tr := s.Factory.Traits(); tr&cs.Needs != cs.Needs || tr&cs.Not != 0 {
			continue
		}
		t.Run(cs.Name, func(t *testing.T) {
			if !cs.Serial {
				t.Parallel()
			}
			runCase(t, s, cs)
		})
	}
}

// Cases returns all cases, in the order in which they run.
func Cases() []Case {
	var all []Case
	for _, group := range [][]Case{
		basicCases(), whiteoutCases(), deletionCases(), copyUpCases(), metacopyCases(), renameCases(), directoryRenameCases(),
		readdirCases(), linkCases(), openFileCases(), permissionCases(), aclCases(),
		xattrCases(), dataCases(), mappingCases(), nameCases(), inodeCases(),
		nestingCases(), mountCases(), peerCases(), quotaCases(), scriptCases(),
	} {
		all = append(all, group...)
	}
	return all
}

func runCase(t *testing.T, s Setup, cs Case) {
	t.Helper()
	spec := prepare(t, s, cs)
	tree, err := s.Factory.Open(t, spec)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	c := &C{T: t, Tree: tree, Spec: spec, factory: s.Factory}
	cs.Run(c)
	if t.Failed() {
		return
	}
	finish(c, s, cs)
}

// prepare makes the layers of a case.
func prepare(t *testing.T, s Setup, cs Case) Spec {
	t.Helper()
	base := s.Base
	if base == nil {
		base = testenv.Scratch
	}
	spec := Spec{Base: base(t), Options: cs.Options}
	lowers := cs.Lowers
	if lowers == nil {
		lowers = []Layer{nil}
	}
	for i, l := range lowers {
		spec.Lowers = append(spec.Lowers, makeLayer(t, s, spec.Base, "lower"+strconv.Itoa(i), l))
	}
	if !cs.NoUpper {
		spec.Upper = makeLayer(t, s, spec.Base, "upper", cs.Upper)
		spec.Work = makeLayer(t, s, spec.Base, "work", nil)
	}
	return spec
}

func makeLayer(t *testing.T, s Setup, base, name string, ls Layer) string {
	t.Helper()
	l := &LayerDir{Root: filepath.Join(base, name), Prefix: prefix(s.Factory)}
	if err := os.Mkdir(l.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := ls.Apply(l); err != nil {
		t.Fatal(err)
	}
	return l.Root
}

func prefix(f Factory) string {
	if f.Traits()&Trusted != 0 {
		return "trusted."
	}
	return "user."
}

// finish makes the checks that every case owes after it ran.
func finish(c *C, s Setup, cs Case) {
	c.Helper()
	if cs.NoFinal != "" {
		c.OK(c.Close())
		c.CleanWork()
		return
	}
	before := c.Snapshot()
	c.OK(c.Remount())
	c.SameAs("after a remount", before)
	c.OK(c.Close())
	c.CleanWork()
	if cs.NoCross != "" {
		return
	}
	for _, f := range s.Cross {
		if f.Traits()&cs.Not&^Kernel != 0 {
			continue
		}
		other, err := f.Open(c.T, c.Spec)
		if err != nil {
			c.Fatalf("open in %s: %v", f.Name(), err)
		}
		x := &C{T: c.T, Tree: other, Spec: c.Spec, factory: f}
		d := fingerprint.Diff(before, x.Snapshot(), crossFields)
		if d != nil {
			c.Errorf("%s and then %s show different trees:\n%s", s.Factory.Name(), f.Name(), fingerprint.Format(d, 30))
		}
		c.OK(other.Close())
	}
}

// crossFields are what two implementations must agree on. Inode numbers are each one's own.
const crossFields = fingerprint.Default | fingerprint.Holes

// CleanWork checks that nothing staged is left in the work directory of a closed tree.
func (c *C) CleanWork() {
	c.Helper()
	if c.Spec.Work == "" {
		return
	}
	names, err := os.ReadDir(filepath.Join(c.Spec.Work, "work"))
	if err != nil && !os.IsNotExist(err) {
		c.Fatal(err)
	}
	var left []string
	for _, n := range names {
		// What "volatile" leaves is a state of the upper, not something staged.
		if n.Name() != "incompat" {
			left = append(left, n.Name())
		}
	}
	if left != nil {
		c.Errorf("left in the work directory: %s", strings.Join(left, ", "))
	}
}

// Snapshot returns the fingerprint of the whole tree, inode numbers included, and checks that readdir and stat agree on
// those.
func (c *C) Snapshot() *fingerprint.Tree {
	c.Helper()
	fp, err := Snapshot(c.Tree)
	if err != nil {
		c.Fatalf("snapshot: %v", err)
	}
	if bad := fp.Inconsistent(); bad != nil && !c.Is(Kernel) {
		c.Errorf("inode numbers differ between readdir and stat: %s", fingerprint.Format(bad, 10))
	}
	if dup := fp.Duplicates(); dup != nil {
		c.Errorf("the same inode number for different files: %v", dup)
	}
	return fp
}

// SameAs checks that the tree's fingerprint is still want.
func (c *C) SameAs(when string, want *fingerprint.Tree) {
	c.Helper()
	if d := fingerprint.Diff(want, c.Snapshot(), crossFields); d != nil {
		c.Errorf("the tree changed %s:\n%s", when, fingerprint.Format(d, 30))
	}
}

// Elapsed logs how long a case's heavy part took and fails beyond limit.
func (c *C) Elapsed(what string, since time.Time, limit time.Duration) {
	c.Helper()
	d := time.Since(since)
	c.Logf("%s: %v", what, d.Round(time.Millisecond))
	if d > limit {
		c.Errorf("%s took %v, more than %v", what, d, limit)
	}
}

// Errno is the error that a Tree made without a kernel returns.
func Errno(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", op, shorten(path), err)
}

func shorten(p string) string {
	if len(p) > 120 {
		return p[:50] + "..." + p[len(p)-50:]
	}
	return p
}
