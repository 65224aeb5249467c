package drivers_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/internal/testenv"
)

func openLayer(t *testing.T, dir string) *layer.Layer {
	t.Helper()
	l, err := layer.Open(dir)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

func lines(list []tarlayer.Change) string {
	var b strings.Builder
	for _, c := range list {
		b.WriteString(c.String() + "\n")
	}
	return b.String()
}

// All names of a file that got a new one are together in a difference; a name that is gone does not drag in the others.
func TestCompareLinks(t *testing.T) {
	older, newer := testenv.Scratch(t), testenv.Scratch(t)
	stamp := []unix.Timespec{{Sec: 1_600_000_000}, {Sec: 1_600_000_000}}
	for _, dir := range []string{older, newer} {
		must(t, os.MkdirAll(filepath.Join(dir, "d/e"), 0o755))
		for _, name := range []string{"d/e/a", "x", "lone"} {
			p := filepath.Join(dir, name)
			must(t, os.WriteFile(p, []byte(name), 0o644), unix.UtimesNano(p, stamp))
		}
		must(t, os.Link(filepath.Join(dir, "x"), filepath.Join(dir, "y")), os.Link(filepath.Join(dir, "x"), filepath.Join(dir,
			"d/z")))
	}
	must(t, os.Link(filepath.Join(newer, "d/e/a"), filepath.Join(newer, "b")), os.Remove(filepath.Join(newer, "y")))
	list, err := drivers.Compare(t.Context(), openLayer(t, older), openLayer(t, newer))
	must(t, err)
	if got, want := lines(list), "A /b\nC /d\nC /d/e\nC /d/e/a\nD /y\n"; got != want {
		t.Errorf("changes\n%swant\n%s", got, want)
	}
}

// plainDriver is a driver of two directories. Calls that it has no answer for fail the test by a nil dereference.
type plainDriver struct {
	drivers.Driver
	dirs map[string]string
	used map[string]int
	fail error
}

func (p *plainDriver) Get(_ context.Context, id string, _ *drivers.GetOptions) (string, error) {
	if p.dirs[id] == "" {
		return "", drivers.ErrNotFound
	}
	p.used[id]++
	return p.dirs[id], nil
}

func (p *plainDriver) Put(_ context.Context, id string) error {
	p.used[id]--
	return p.fail
}

// Without the privilege to look beneath mounts, they are left out by their identity.
func TestForeignMounts(t *testing.T) {
	older, newer := testenv.Scratch(t), testenv.Scratch(t)
	for _, dir := range []string{older, newer} {
		must(t, os.MkdirAll(filepath.Join(dir, "vol/inner"), 0o755), os.WriteFile(filepath.Join(dir, "file"), nil, 0o644),
			unix.UtimesNano(filepath.Join(dir, "file"), make([]unix.Timespec, 2)))
	}
	must(t, os.WriteFile(filepath.Join(newer, "mine"), nil, 0o644), unix.Mount("tmpfs", filepath.Join(newer, "vol"),
		"tmpfs", 0, "mode=700"),
		os.MkdirAll(filepath.Join(newer, "vol/theirs"), 0o755))
	defer testenv.Unmount(t, filepath.Join(newer, "vol"))
	d := &plainDriver{dirs: map[string]string{"new": newer, "old": older}, used: make(map[string]int)}
	for name, become := range map[string]func(func() error) error{
		"privileged": func(f func() error) error { return f() },
		"user":       func(f func() error) error { return testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, f) },
	} {
		must(t, become(func() error {
			list, err := drivers.NaiveDiffer(d).Changes(context.Background(), "new", "old")
			if got := lines(list); got != "A /mine\n" {
				t.Errorf("%s: changes %s", name, got)
			}
			return err
		}))
	}
	if d.used["new"] != 0 || d.used["old"] != 0 {
		t.Errorf("left in use: %v", d.used)
	}
}

// Each layer that was got is given back, whatever fails.
func TestNaiveDifferGivesBack(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	failure := errors.New("failure")
	d := &plainDriver{dirs: map[string]string{"l": dir}, used: make(map[string]int)}
	n := drivers.NaiveDiffer(d)
	if _, err := n.Changes(t.Context(), "l", "missing"); !errors.Is(err, drivers.ErrNotFound) {
		t.Error(err)
	}
	if _, err := n.Diff(t.Context(), "l", "missing", nil); !errors.Is(err, drivers.ErrNotFound) {
		t.Error(err)
	}
	if _, err := n.ApplyDiff(t.Context(), "l", iotest.ErrReader(failure), nil); !errors.Is(err, failure) {
		t.Error(err)
	}
	r, err := n.Diff(t.Context(), "l", "", nil)
	must(t, err)
	d.fail = failure
	if err := r.Close(); !errors.Is(err, failure) {
		t.Errorf("close: %v", err)
	}
	if d.used["l"] != 0 {
		t.Errorf("in use by %d", d.used["l"])
	}
}

func TestStream(t *testing.T) {
	failure, done := errors.New("failure"), 0
	r := drivers.Stream(t.Context(), func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, "text")
		return errors.Join(err, failure)
	}, func() error { done++; return failure })
	text, err := io.ReadAll(r)
	if string(text) != "text" || !errors.Is(err, failure) {
		t.Errorf("read %q, %v", text, err)
	}
	for range 2 {
		if err := r.Close(); !errors.Is(err, failure) {
			t.Error(err)
		}
	}
	if done != 1 {
		t.Errorf("done was called %d times", done)
	}
	// One who writes without end is told to stop.
	r = drivers.Stream(t.Context(), func(ctx context.Context, w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 100)); err != nil {
				<-ctx.Done()
				return err
			}
		}
	}, func() error { return nil })
	must(t, r.Close())
}

func TestUserNamespace(t *testing.T) {
	if got := drivers.UserNamespace(); got.Nested != testenv.InUserNamespace() || got.Single {
		t.Errorf("%+v", got)
	}
	if !testenv.InUserNamespace() {
		testenv.RunInUserNamespace(t, "^TestUserNamespace$")
	}
}
