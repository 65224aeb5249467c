package sys_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// A file system that takes no flags keeps what has the name all the same.
func TestRenameNoReplace(t *testing.T) {
	for name, m := range map[string]*sys.Mutator{"with flags": {}, "without": {NoRenameFlags: true}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range []string{"a", "b"} {
				if err := os.WriteFile(filepath.Join(dir, f), []byte(f), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			d, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			fd := int(d.Fd())
			if err := m.Rename(fd, "a", fd, "b", unix.RENAME_NOREPLACE); !errors.Is(err, unix.EEXIST) {
				t.Errorf("over a file: %v, want EEXIST", err)
			}
			if err := m.Rename(fd, "none", fd, "c", unix.RENAME_NOREPLACE); !errors.Is(err, unix.ENOENT) {
				t.Errorf("of nothing: %v, want ENOENT", err)
			}
			if err := m.Rename(fd, "a", fd, "c", unix.RENAME_NOREPLACE); err != nil {
				t.Errorf("to a free name: %v", err)
			}
			for f, want := range map[string]string{"b": "b", "c": "a"} {
				if got, err := os.ReadFile(filepath.Join(dir, f)); err != nil || string(got) != want {
					t.Errorf("%s has %q, %v", f, got, err)
				}
			}
			err = m.Rename(fd, "b", fd, "c", unix.RENAME_EXCHANGE)
			if m.NoRenameFlags != errors.Is(err, unix.EINVAL) {
				t.Errorf("exchange: %v", err)
			}
		})
	}
}
