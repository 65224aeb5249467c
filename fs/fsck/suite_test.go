package fsck_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"plyfs/cow/layer"
	"plyfs/fs/fsck"
	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/fs/union/uniontest/mounted"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.Options{})) }

// checked is an implementation whose layers are checked before they are opened: as a Cross of the behaviour suite,
// after each case.
type checked struct{ uniontest.Factory }

func (k checked) Open(t testing.TB, s uniontest.Spec) (uniontest.Tree, error) {
	t.Helper()
	if s.Upper != "" {
		for _, f := range check(t, s, false).findings {
			if f.Class != fsck.OpaqueWithoutLower {
				t.Errorf("in good order, but: %s", list([]fsck.Finding{f}))
			}
		}
	}
	return k.Factory.Open(t, s)
}

// shapes says whether a case is about what an upper looks like; others leave the same.
func shapes(c uniontest.Case) bool {
	group, _, _ := strings.Cut(c.Name, "/")
	return c.NoCross == "" && slices.Contains([]string{
		"whiteout", "deletion", "copy-up", "metacopy", "rename", "rename-dir", "link", "nesting", "name", "peer", "script",
	}, group)
}

// setup runs the suite on f, and checks the layers after each case.
func setup(f uniontest.Factory) uniontest.Setup {
	return uniontest.Setup{Factory: f, Cross: []uniontest.Factory{checked{direct.Engine{}}}, Only: shapes}
}

// TestNoFalseAlarm: whatever an application does in a union, plyfs leaves an upper of which nothing is reported.
func TestNoFalseAlarm(t *testing.T) {
	uniontest.Run(t, setup(direct.Engine{}))
}

// TestNoFalseAlarmRootless is that in a user namespace.
func TestNoFalseAlarmRootless(t *testing.T) {
	if !testenv.InUserNamespace() {
		testenv.RunInUserNamespace(t, "^TestNoFalseAlarmRootless$")
		return
	}
	s := setup(direct.Engine{})
	s.Only = func(c uniontest.Case) bool {
		return shapes(c) && c.Name != "link/lower-special" // whose last removal can't know that it is, which is noted
	}
	uniontest.Run(t, s)
}

// TestNoFalseAlarmKernel: nor does the kernel's overlayfs.
func TestNoFalseAlarmKernel(t *testing.T) {
	uniontest.Run(t, setup(mounted.Kernel{}))
}

// result is what a check found.
type result struct {
	findings []fsck.Finding
	summary  fsck.Summary
}

// check runs fsck over the layers of s.
func check(t testing.TB, s uniontest.Spec, repair bool) result {
	t.Helper()
	r, err := run(t, s, fsck.Options{Repair: repair})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// run opens the layers of s and runs fsck with further options.
func run(t testing.TB, s uniontest.Spec, o fsck.Options) (r result, err error) {
	t.Helper()
	o.Report = func(f fsck.Finding) { r.findings = append(r.findings, f) }
	open := func(dir string) *layer.Layer {
		l, err := layer.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	for _, d := range s.Lowers {
		o.Lowers = append(o.Lowers, open(d))
	}
	o.Upper = open(s.Upper)
	if s.Work != "" {
		o.Work = open(s.Work)
	}
	r.summary, err = fsck.Run(t.Context(), o)
	return r, err
}
