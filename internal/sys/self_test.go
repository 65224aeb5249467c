package sys_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// The owner of a directory of mode 0 who has no capabilities can do by its descriptor what he can do by its name above: all that
// asks for no permission on the directory itself.
func TestSelfWithoutSearch(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root, to become another user")
	}
	dir := t.TempDir()
	if err := errors.Join(unix.Chown(dir, 65534, 65534), unix.Setxattr(dir, "user.k", []byte("v"), 0)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	m := &sys.Mutator{}
	if err := testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error { return useSelf(m, fd) }); err != nil {
		t.Error(err)
	}
}

// useSelf does everything to the directory behind fd, which the caller owns.
func useSelf(m *sys.Mutator, fd int) error {
	var st unix.Statx_t
	var list [64]byte
	shut := func() error {
		n, err := sys.Listxattrat(fd, ".", list[:])
		if err == nil && string(list[:n]) != "user.k\x00" {
			err = fmt.Errorf("lists %q", list[:n])
		}
		// Reading such an attribute wants read permission, which is told from having none.
		if _, gerr := sys.Getxattrat(fd, ".", "user.k", nil); !errors.Is(gerr, unix.EACCES) {
			err = errors.Join(err, fmt.Errorf("reads an attribute: %w", gerr))
		}
		return err
	}
	writable := func() error {
		got, err := sys.Getxattrat(fd, ".", "user.k", list[:])
		if err == nil && got != 1 {
			err = fmt.Errorf("an attribute of %d bytes", got)
		}
		return errors.Join(err, m.Setxattr(fd, ".", "user.k", []byte("w"), 0), m.Removexattr(fd, ".", "user.k"),
			m.Setxattr(fd, ".", "user.k", []byte("v"), 0))
	}
	listable := func() error {
		own, err := sys.OpenSelf(fd, unix.O_RDONLY)
		if err == nil {
			err = unix.Close(own)
		}
		return err
	}
	for _, step := range []struct {
		about string
		do    func() error
	}{
		{"chmod to 0", func() error { return m.Chmod(fd, ".", 0) }},
		{"statx", func() error { return sys.Statx(fd, ".", &st) }},
		{"chown", func() error { return m.Chown(fd, ".", -1, 65534) }},
		{"utimes", func() error { return m.Utimes(fd, ".", sys.NowTime(), sys.OmitTime()) }},
		{"attributes of mode 0", shut},
		{"chmod to 0600", func() error { return m.Chmod(fd, ".", 0o600) }},
		{"attributes of mode 0600", writable},
		{"open with mode 0600", listable},
		{"chmod to 0700", func() error { return m.Chmod(fd, ".", 0o700) }},
		{"attributes of mode 0700", writable},
		{"open with mode 0700", listable},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.about, err)
		}
	}
	return nil
}
