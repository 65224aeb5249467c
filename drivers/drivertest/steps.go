package drivertest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// place is where steps are carried out.
type place struct {
	root  string
	layer int // of the scenario, from 0
	count int // of the steps that set a time
}

// step changes something in a tree. Paths are relative to the tree's root.
type step func(at *place) error

func (at *place) do(steps []step) error {
	for i, s := range steps {
		if err := s(at); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

func (at *place) path(p string) string { return filepath.Join(at.root, p) }

// stamp gives p a time that no other step gives, and that is the same wherever the step is carried out: two files of
// one size that are written within a clock tick could not be told apart by their attributes.
func (at *place) stamp(p string) error {
	at.count++
	ts := unix.NsecToTimespec((1_600_000_000 + int64(at.layer)*10_000 + int64(at.count)) * 1e9)
	err := unix.UtimesNanoAt(unix.AT_FDCWD, at.path(p), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("set times of %s: %w", p, err)
	}
	return nil
}

// file writes a file, in place if it exists.
func file(p, content string, mode os.FileMode) step {
	return func(at *place) error {
		f, err := os.OpenFile(at.path(p), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
		if err != nil {
			return err
		}
		_, err = f.WriteString(content)
		return errors.Join(err, f.Close(), at.stamp(p))
	}
}

// appendTo writes at the end of a file.
func appendTo(p, content string) step {
	return func(at *place) error {
		f, err := os.OpenFile(at.path(p), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(content)
		return errors.Join(err, f.Close(), at.stamp(p))
	}
}

// writeAt writes into a file that exists, at an offset.
func writeAt(p string, off int64, content string) step {
	return func(at *place) error {
		f, err := os.OpenFile(at.path(p), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte(content), off)
		return errors.Join(err, f.Close(), at.stamp(p))
	}
}

// dir makes a directory and those above it.
func dir(p string, mode uint32) step {
	return func(at *place) error {
		return errors.Join(os.MkdirAll(at.path(p), 0o755), unix.Chmod(at.path(p), mode))
	}
}

func symlink(target, p string) step {
	return func(at *place) error { return errors.Join(os.Symlink(target, at.path(p)), at.stamp(p)) }
}

func link(old, p string) step {
	return func(at *place) error { return os.Link(at.path(old), at.path(p)) }
}

func rename(old, p string) step {
	return func(at *place) error { return os.Rename(at.path(old), at.path(p)) }
}

// remove deletes paths, which exist, with all beneath them.
func remove(paths ...string) step {
	return func(at *place) error {
		for _, p := range paths {
			if _, err := os.Lstat(at.path(p)); err != nil {
				return err
			}
			if err := os.RemoveAll(at.path(p)); err != nil {
				return err
			}
		}
		return nil
	}
}

func chmod(p string, mode uint32) step {
	return func(at *place) error { return unix.Chmod(at.path(p), mode) }
}

func chown(p string, uid, gid int) step {
	return func(at *place) error { return os.Lchown(at.path(p), uid, gid) }
}

func touch(p string) step {
	return func(at *place) error { return at.stamp(p) }
}

func mknod(p string, mode uint32, dev uint64) step {
	return func(at *place) error {
		return errors.Join(unix.Mknod(at.path(p), mode, int(dev)), unix.Chmod(at.path(p), mode&0o7777), at.stamp(p))
	}
}

func xattr(p, name, value string) step {
	return func(at *place) error {
		if err := unix.Lsetxattr(at.path(p), name, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s of %s: %w", name, p, err)
		}
		return nil
	}
}

func noXattr(p, name string) step {
	return func(at *place) error { return unix.Lremovexattr(at.path(p), name) }
}

// sparse makes a file of some megabytes with little data in it.
func sparse(p string, size int64) step {
	return func(at *place) error {
		f, err := os.OpenFile(at.path(p), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("middle"), size/2)
		return errors.Join(err, f.Truncate(size), f.Close(), at.stamp(p))
	}
}

// whileOpen runs steps while a file is open for writing, and then writes to it.
func whileOpen(p, content string, steps ...step) step {
	return func(at *place) error {
		f, err := os.OpenFile(at.path(p), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := at.do(steps); err != nil {
			return err
		}
		if _, err := f.WriteAt([]byte(content), 0); err != nil {
			return err
		}
		got := make([]byte, len(content))
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != content {
			return fmt.Errorf("%s, open while it was changed: read %q, %w", p, got, err)
		}
		return f.Close()
	}
}

// holds fails if a file has not exactly this content.
func holds(p, content string) step {
	return func(at *place) error {
		got, err := os.ReadFile(at.path(p))
		if err == nil && !bytes.Equal(got, []byte(content)) {
			err = fmt.Errorf("%s has %.80q, want %.80q", p, got, content)
		}
		return err
	}
}

// absent fails if there is something at p.
func absent(p string) step {
	return func(at *place) error {
		if _, err := os.Lstat(at.path(p)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is there: %w", p, err)
		}
		return nil
	}
}

// many makes n files in dir.
func many(dirName string, n int) step {
	return func(at *place) error {
		for i := range n {
			if err := file(fmt.Sprintf("%s/f%04d", dirName, i), fmt.Sprintf("content %d", i), 0o644)(at); err != nil {
				return err
			}
		}
		return nil
	}
}

// deep makes directories in each other, until the path of the innermost is longer than PATH_MAX, and a file there.
func deep(p string) step {
	return func(at *place) error {
		fd, err := unix.Open(at.path(p), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { unix.Close(fd) }()
		name := strings.Repeat("n", 200)
		for range unix.PathMax/len(name) + 2 {
			if err := unix.Mkdirat(fd, name, 0o755); err != nil {
				return err
			}
			next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			unix.Close(fd)
			fd = next
		}
		f, err := unix.Openat(fd, "bottom", unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		defer unix.Close(f)
		_, err = unix.Write(f, []byte("deep"))
		return err
	}
}
