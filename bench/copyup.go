package bench

import (
	"context"

	"golang.org/x/sys/unix"
)

const (
	appends  = 3_000
	renames  = 3_000
	newOwner = 1234
)

// copyUpWorkloads change many small lower files: data, metadata, name.
func copyUpWorkloads() []Workload {
	f := lowerFixture()
	return []Workload{
		{
			Name: "append-lower", Doc: "append a byte to each of 3,000 lower files of 2 KiB", Fixture: f,
			Run: func(_ context.Context, e *Env) error { return measureAppend(e) },
		},
		{
			Name: "chown-lower", Doc: "chown of 10,000 lower files of 2 KiB", Fixture: f,
			Run: func(_ context.Context, e *Env) error { return measureChown(e) },
		},
		{
			Name: "rename-lower", Doc: "rename of 3,000 lower files within their directories", Fixture: f,
			Run: func(_ context.Context, e *Env) error { return measureRename(e) },
		},
	}
}

// each applies f to every name.
func each(names []string, f func(name string) error) error {
	for _, name := range names {
		if err := f(name); err != nil {
			return err
		}
	}
	return nil
}

func measureAppend(e *Env) error {
	names := e.Tree.paths(min(e.Tree.Files, e.N(appends)))
	e.Ops(len(names))
	one := []byte{'x'}
	err := e.Measure(func() error {
		return each(names, func(name string) error {
			fd, err := unix.Openat(e.Root, name, unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
			if err != nil {
				return opError("open", name, err)
			}
			if _, err := unix.Write(fd, one); err != nil {
				unix.Close(fd)
				return opError("write", name, err)
			}
			return unix.Close(fd)
		})
	})
	if err != nil {
		return err
	}
	buf := make([]byte, 2*e.Tree.Size)
	return each(names, func(name string) error {
		if err := openReadClose(e.Root, name, buf, e.Tree.Size+1); err != nil {
			return err
		}
		return expect("last byte of "+name, buf[e.Tree.Size], 'x')
	})
}

func measureChown(e *Env) error {
	names := e.Tree.paths(e.Tree.Files)
	e.Ops(len(names))
	err := e.Measure(func() error {
		return each(names, func(name string) error {
			if err := unix.Fchownat(e.Root, name, newOwner, newOwner, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return opError("chown", name, err)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	buf := make([]byte, 2*e.Tree.Size)
	return each(names, func(name string) error {
		var st unix.Stat_t
		if err := unix.Fstatat(e.Root, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return opError("stat", name, err)
		}
		if err := expect("owner of "+name, st.Uid, newOwner); err != nil {
			return err
		}
		return openReadClose(e.Root, name, buf, e.Tree.Size)
	})
}

func measureRename(e *Env) error {
	const suffix = ".renamed"
	names := e.Tree.paths(min(e.Tree.Files, e.N(renames)))
	to := make([]string, len(names))
	for i, name := range names {
		to[i] = name + suffix
	}
	e.Ops(len(names))
	err := e.Measure(func() error {
		for i, name := range names {
			if err := unix.Renameat(e.Root, name, e.Root, to[i]); err != nil {
				return opError("rename", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := expectFiles(e.Root, e.Tree.Files); err != nil {
		return err
	}
	return each(to, func(name string) error { return expectSize(e.Root, name, e.Tree.Size) })
}
