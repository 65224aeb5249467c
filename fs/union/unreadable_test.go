package union

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/testenv"
)

// A server without capabilities shows directories that it can't read, and lets their owner make them readable again. What lies
// below one stays hidden as long as nobody can tell whether it may be seen.
func TestUnreadableDirs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to become another user")
	}
	root := testenv.Scratch(t)
	for _, d := range []string{"lower/d", "lower/shut", "lower/hides", "lower/hides/below", "base/shut", "base/shut/below", "upper/hides"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	must(t, os.Mkdir(filepath.Join(root, "work"), 0o755), os.WriteFile(filepath.Join(root, "lower/d/f"), nil, 0o644))
	must(t, unix.Setxattr(filepath.Join(root, "upper/hides"), "user.overlay.opaque", []byte("y"), 0))
	must(t, os.Chmod(filepath.Join(root, "lower/shut"), 0), os.Chmod(filepath.Join(root, "upper/hides"), 0))
	must(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, 65534, 65534))
	}))
	if err := testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error { return useUnreadable(root) }); err != nil {
		t.Error(err)
	}
}

func useUnreadable(root string) error {
	var ls []*layer.Layer
	for _, d := range []string{"lower", "base", "upper", "work"} {
		l, err := layer.Open(filepath.Join(root, d))
		if err != nil {
			return err
		}
		ls = append(ls, l)
	}
	u, err := New(Options{Lowers: ls[:2], Upper: ls[2], Work: ls[3], UserXattr: true})
	if err != nil {
		return err
	}
	defer u.Close()
	c := &Caller{UID: 65534, GID: 65534}
	n, _, err := u.Mkdir(c, u.Root(), "new", 0)
	if err != nil {
		return fmt.Errorf("mkdir with mode 0: %w", err)
	}
	u.Forget(n, 1)
	// As soon as it is readable, all that is in it is seen, and nothing else.
	for name, want := range map[string]int{"new": 0, "d": 1, "hides": 0} {
		for _, shown := range []bool{false, true} {
			if err := u.shutAndOpen(c, name, want, shown); err != nil {
				return fmt.Errorf("%s, listed before: %v: %w", name, shown, err)
			}
		}
	}
	shut, _, err := u.Lookup(u.Root(), "shut")
	if err != nil {
		return fmt.Errorf("lookup of a lower: %w", err)
	}
	defer u.Forget(shut, 1)
	if a, err := u.GetAttr(shut); err != nil || a.Mode != unix.S_IFDIR {
		return fmt.Errorf("a lower has mode %o, %w", a.Mode, err)
	}
	if _, err := u.ReadDir(shut, 0, make([]Dirent, 8)); !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("a lower is listed: %w", err)
	}
	if _, err := u.SetAttr(c, shut, &SetAttrIn{Valid: SetMode, Mode: 0o755}); !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("chmod of a lower: %w", err)
	}
	return nil
}

// shutAndOpen takes all permissions from the directory name and gives them back, which has want entries then.
func (u *Union) shutAndOpen(c *Caller, name string, want int, shown bool) error {
	set := func(mode uint32) error {
		n, _, err := u.Lookup(u.Root(), name)
		if err != nil {
			return fmt.Errorf("lookup before chmod: %w", err)
		}
		defer u.Forget(n, 1)
		if shown {
			_, _ = u.ReadDir(n, 0, make([]Dirent, 8))
		}
		if _, err := u.SetAttr(c, n, &SetAttrIn{Valid: SetMode, Mode: mode}); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
		if a, err := u.GetAttr(n); err != nil || a.Mode != unix.S_IFDIR|mode {
			return fmt.Errorf("mode %o is %o: %w", mode, a.Mode, err)
		}
		if _, err := u.Listxattr(n, nil); err != nil {
			return fmt.Errorf("attributes: %w", err)
		}
		buf := make([]Dirent, 8)
		k, err := u.ReadDir(n, 0, buf)
		// With mode 0 it has been listed before at most: who may list it is the front end's to check.
		if err == nil && k != want+2 || err != nil && (mode != 0 || !errors.Is(err, unix.EACCES)) {
			return fmt.Errorf("mode %o lists %+v: %w", mode, buf[:k], err)
		}
		return nil
	}
	return errors.Join(set(0), set(0o755))
}

var must = testenv.Must
