package fsck_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"plyfs/fs/fsck"
	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/fs/union/uniontest/mounted"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

// ls are appliers of the suite's fixtures.
type ls = uniontest.Layer

// damage is one thing that can be wrong.
type damage struct {
	name   string
	lowers []ls
	upper  ls
	// use is what an application does before.
	use func(t testing.TB, tree uniontest.Tree)
	// kernel uses the kernel's overlayfs instead of plyfs.
	kernel bool
	// hurt damages the layers by hand.
	hurt func(t testing.TB, s uniontest.Spec)

	class    fsck.Class
	layer    string // "" is the upper
	path     string
	severity fsck.Severity
	// kept says that there is no repair.
	kept bool
	// changes says that the repair changes what the union shows.
	changes bool
	// brings are classes that go along.
	brings []fsck.Class
	after  func(t testing.TB, s uniontest.Spec)
}

func TestDamage(t *testing.T) {
	covered := map[fsck.Class]bool{ // tests of their own, the last two in cmd/plyfs
		fsck.LowersDiffer: true, fsck.Unreadable: true, fsck.StackIndexDiffers: true, fsck.StackIndexUnreadable: true,
	}
	for _, d := range damages() {
		covered[d.class] = true
		t.Run(string(d.class)+"/"+d.name, func(t *testing.T) {
			t.Parallel()
			d.run(t)
		})
	}
	for _, c := range fsck.Classes() {
		if !covered[c] {
			t.Errorf("no test makes %s", c)
		}
	}
}

func damages() []damage {
	all := append(upperDamages(), redirectDamages()...)
	all = append(all, fileDamages()...)
	all = append(all, unsyncedDamages()...)
	return append(append(all, workDamages()...), indexDamages()...)
}

func (d damage) run(t *testing.T) {
	s := newSpec(t, d.lowers, d.upper)
	if d.use != nil {
		tree := openTree(t, s, d.kernel)
		d.use(t, tree)
		closeTree(t, tree)
	}
	if r := check(t, s, false); d.use != nil && r.summary.Errors > 0 {
		t.Fatalf("before the damage: %s", list(r.findings))
	}
	if d.hurt != nil {
		d.hurt(t, s)
	}
	if d.layer == "" {
		d.layer = fsck.InUpper
	}
	before := fingerprints(t, s)
	first := check(t, s, false)
	d.expect(t, first, false)
	if diff := fingerprint.Diff(before, fingerprints(t, s), diskFields); diff != nil {
		t.Errorf("a check without repair changed the layers:\n%s", fingerprint.Format(diff, 20))
	}
	var shown *fingerprint.Tree
	if !d.changes && !d.kept && d.layer == fsck.InUpper {
		shown = show(t, s)
	}
	d.expect(t, check(t, s, true), true)
	for _, f := range check(t, s, true).findings {
		if !d.kept && f.Class != fsck.OpaqueWithoutLower { // what takes the place of a redirect is no damage
			t.Errorf("after the repair: %s", list([]fsck.Finding{f}))
		}
	}
	if shown != nil {
		if diff := fingerprint.Diff(shown, show(t, s), fingerprint.Default); diff != nil {
			t.Errorf("the repair changed what the union shows:\n%s", fingerprint.Format(diff, 20))
		}
	}
	if d.after != nil {
		d.after(t, s)
	}
}

// expect checks that the damage, and nothing else, is found.
func (d damage) expect(t *testing.T, r result, repair bool) {
	t.Helper()
	found := 0
	for _, f := range r.findings {
		along := false
		for _, c := range d.brings {
			along = along || f.Class == c
		}
		path := d.path
		if strings.HasSuffix(path, "*") && strings.HasPrefix(f.Path, strings.TrimSuffix(path, "*")) {
			path = f.Path
		}
		switch {
		case f.Class == d.class && f.Layer == d.layer && f.Path == path && f.Severity == d.severity:
			found++
			if f.Repaired != (repair && !d.kept) || f.Failure != nil {
				t.Errorf("repaired is %v (%v) of %+v", f.Repaired, f.Failure, f)
			}
			if d.kept != (f.Repair == "") || d.kept && f.Remedy == "" || f.Explanation == "" {
				t.Errorf("says neither what is repaired nor the way out: %+v", f)
			}
		case !along:
			t.Errorf("unexpected: %s", list([]fsck.Finding{f}))
		}
	}
	if found == 0 {
		t.Errorf("%s %s of %s:%s is not found in %s", d.severity, d.class, d.layer, d.path, list(r.findings))
	}
	all, repaired := r.summary.Errors, r.summary.RepairedErrors
	if d.severity == fsck.Note {
		all, repaired = r.summary.Notes, r.summary.RepairedNotes
	}
	if all == 0 || repair && !d.kept && repaired == 0 || !repair && repaired != 0 {
		t.Errorf("summary %+v", r.summary)
	}
}

func list(fs []fsck.Finding) string {
	var b strings.Builder
	for _, f := range fs {
		b.WriteString("\n" + string(f.Severity) + " " + string(f.Class) + " " + f.Layer + ":" + f.Path + " " + f.Explanation)
	}
	return b.String()
}

func newSpec(t testing.TB, lowers []ls, upper ls) uniontest.Spec {
	t.Helper()
	base := testenv.Scratch(t)
	s := uniontest.Spec{Base: base, Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work")}
	if len(lowers) == 0 {
		lowers = []ls{nil}
	}
	build := func(dir string, l ls) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		ok(t, l.Apply(&uniontest.LayerDir{Root: dir, Prefix: prefix()}))
	}
	for i, l := range lowers {
		dir := filepath.Join(base, "lower"+strconv.Itoa(i))
		s.Lowers = append(s.Lowers, dir)
		build(dir, l)
	}
	build(s.Upper, upper)
	build(s.Work, nil)
	return s
}

func openTree(t testing.TB, s uniontest.Spec, kernel bool) uniontest.Tree {
	t.Helper()
	var f uniontest.Factory = direct.Engine{}
	if kernel {
		f = mounted.Kernel{}
	}
	tree, err := f.Open(t, s)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func closeTree(t testing.TB, tree uniontest.Tree) {
	t.Helper()
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
}

// show is what a mount that only reads shows.
func show(t testing.TB, s uniontest.Spec) *fingerprint.Tree {
	t.Helper()
	s.Options = []string{"ro"}
	tree := openTree(t, s, false)
	defer closeTree(t, tree)
	fp, err := uniontest.Snapshot(tree)
	if err != nil {
		return nil // damaged beyond reading: nothing to be kept
	}
	return fp
}

// diskFields are what a check must leave alone. Taking the fingerprint itself reads.
const diskFields = fingerprint.All &^ fingerprint.Atime

// fingerprints are those of the upper and the work directory as they are on disk.
func fingerprints(t testing.TB, s uniontest.Spec) *fingerprint.Tree {
	t.Helper()
	fp, err := fingerprint.Take(s.Base, fingerprint.Options{Fields: diskFields})
	if err != nil {
		t.Fatal(err)
	}
	return fp
}

// prefix is the namespace of the attributes that this process may write.
func prefix() string {
	if testenv.InUserNamespace() {
		return "user."
	}
	return "trusted."
}

// apply changes the upper by hand.
func apply(as ...uniontest.Applier) func(t testing.TB, s uniontest.Spec) {
	return func(t testing.TB, s uniontest.Spec) {
		t.Helper()
		ok(t, ls(as).Apply(&uniontest.LayerDir{Root: s.Upper, Prefix: prefix()}))
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func absent(paths ...string) func(t testing.TB, s uniontest.Spec) {
	return func(t testing.TB, s uniontest.Spec) {
		t.Helper()
		for _, p := range paths {
			if _, err := os.Lstat(filepath.Join(s.Upper, p)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there: %v", p, err)
			}
		}
	}
}

func content(path, want string) func(t testing.TB, s uniontest.Spec) {
	return func(t testing.TB, s uniontest.Spec) {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(s.Upper, path))
		if err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", path, got, err, want)
		}
	}
}
