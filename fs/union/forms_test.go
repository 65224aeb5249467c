package union

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
)

// TestForms: a union that reads the kernel's forms takes all others for an application's.
func TestForms(t *testing.T) {
	root := t.TempDir()
	dirs := []string{"whiteout", "sentinel", "fuse", "user", "trusted"}
	for _, d := range dirs {
		for _, l := range []string{"lower", "upper", "work"} {
			if err := os.MkdirAll(filepath.Join(root, l, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, f := range []string{
		"lower/whiteout/f", "lower/sentinel/f", "lower/fuse/f", "lower/user/f", "lower/trusted/f",
		"upper/whiteout/.wh.f", "upper/sentinel/.wh..wh..opq",
	} {
		if err := os.WriteFile(filepath.Join(root, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, attr := range map[string]string{
		"fuse": ovl.FuseOverlayfsOpaque, "user": ovl.User().Opaque, "trusted": ovl.Trusted().Opaque,
	} {
		if err := unix.Setxattr(filepath.Join(root, "upper", name), attr, []byte("y"), 0); err != nil {
			t.Fatal(err)
		}
	}
	open := func(name string) *layer.Layer {
		l, err := layer.Open(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, c := range []struct {
		forms   ovl.Forms
		visible map[string]bool
	}{
		{ovl.Forms{}, nil},
		{ovl.KernelForms(ovl.Trusted()), map[string]bool{"whiteout": true, "sentinel": true, "fuse": true, "user": true}},
		{ovl.KernelForms(ovl.User()), map[string]bool{"whiteout": true, "sentinel": true, "fuse": true, "trusted": true}},
	} {
		u, err := New(Options{Lowers: []*layer.Layer{open("lower")}, Upper: open("upper"), ReadOnly: true, Forms: c.forms})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range dirs {
			if _, err := u.walkTo(t, name, "f"); (err == nil) != c.visible[name] {
				t.Errorf("%v: %s/f: %v, want it visible: %v", c.forms, name, err, c.visible[name])
			}
		}
		if _, err := u.walkTo(t, "whiteout", ".wh.f"); (err == nil) == c.forms.All() {
			t.Errorf("%v: the file .wh.f: %v", c.forms, err)
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
	u, err := New(Options{Upper: open("upper"), Work: open("work"), Forms: ovl.KernelForms(ovl.Trusted())})
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("a union that is written to: %v, want EINVAL", err)
	}
	if err == nil {
		u.Close()
	}
}

// walkTo looks up a path; the nodes stay known until the union ends.
func (u *Union) walkTo(t *testing.T, names ...string) (*Node, error) {
	t.Helper()
	at := u.Root()
	for _, name := range names {
		n, _, err := u.Lookup(at, name)
		if err != nil {
			return nil, err
		}
		at = n
	}
	return at, nil
}
