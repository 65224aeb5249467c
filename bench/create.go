package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const dirPairs = 10_000

// createWorkloads make files and directories.
func createWorkloads() []Workload {
	return []Workload{
		{
			Name: "create", Doc: "create and write 20,000 files of 4 KiB in 200 directories", Fixture: emptyFixture(),
			Run: func(_ context.Context, e *Env) error { return measureCreate(e, e.Root, newTree(e.N(walkFiles))) },
		},
		{
			Name: "untar", Doc: "unpack 20,000 files of 4 KiB with owners, modes and times", Fixture: archiveFixture(),
			Run: func(_ context.Context, e *Env) error { return measureUntar(e) },
		},
		{
			Name: "mkdir-rmdir", Doc: "10,000 times mkdir and rmdir", Fixture: emptyFixture(),
			Run: func(_ context.Context, e *Env) error { return measureMkdirRmdir(e) },
		},
	}
}

// newTree describes a tree of n files of 4 KiB that a workload makes itself.
func newTree(n int) Tree { return Tree{Files: n, Size: smallSize, PerDir: perDir, Layers: 1} }

// create makes all files of the tree; its directories exist.
func (t Tree) create(root int) error {
	content := make([]byte, t.Size)
	fill(content, 0)
	return each(t.paths(t.Files), func(name string) error { return writeFile(root, name, content, 0o644) })
}

// measureCreate measures the creation of the files of t below root, not that of the directories.
func measureCreate(e *Env, root int, t Tree) error {
	if err := t.makeDirs(root); err != nil {
		return err
	}
	e.Ops(t.Files)
	if err := e.Measure(func() error { return t.create(root) }); err != nil {
		return err
	}
	c, err := walk(root, StatEach)
	if err != nil {
		return err
	}
	return expect("files", c.files, t.Files)
}

// loadArchive reads the archive of the fixture into memory.
func loadArchive(e *Env) ([]byte, error) { return os.ReadFile(filepath.Join(e.Aux, archiveName)) }

func measureUntar(e *Env) error {
	data, err := loadArchive(e)
	if err != nil {
		return err
	}
	e.Ops(e.Tree.Files)
	if err := e.Measure(func() error { return untar(e.Root, data) }); err != nil {
		return err
	}
	last := e.Tree.Files - 1
	var st unix.Stat_t
	if err := unix.Fstatat(e.Root, e.Tree.path(last), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return opError("stat", e.Tree.path(last), err)
	}
	if err := errors.Join(
		expect("owner", st.Uid, uint32(1000+last%7)),
		expect("group", st.Gid, uint32(1000+last%5)),
		expect("mode", st.Mode, unix.S_IFREG|0o640),
		expect("time", st.Mtim.Sec, pastTime(last).Unix()),
		expect("size", st.Size, int64(e.Tree.Size)),
	); err != nil {
		return err
	}
	return expectFiles(e.Root, e.Tree.Files)
}

// untar unpacks an archive of directories and files with the system calls of GNU tar: create, write, utimensat,
// fchown, fchmod, close for a file.
func untar(root int, data []byte) error {
	r := tar.NewReader(bytes.NewReader(data))
	buf := make([]byte, 64<<10)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		if h.Typeflag == tar.TypeDir {
			err = untarDir(root, h)
		} else {
			err = untarFile(root, h, r, buf)
		}
		if err != nil {
			return opError("unpack", h.Name, err)
		}
	}
}

func untarDir(root int, h *tar.Header) error {
	if err := unix.Mkdirat(root, h.Name, uint32(h.Mode)); err != nil {
		return err
	}
	return unix.Fchownat(root, h.Name, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW)
}

func untarFile(root int, h *tar.Header, r io.Reader, buf []byte) (err error) {
	fd, err := unix.Openat(root, h.Name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	for left := h.Size; left > 0; {
		n, err := io.ReadFull(r, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return err
		}
		if err := writeAll(fd, buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	t := unix.NsecToTimespec(h.ModTime.UnixNano())
	if err := unix.UtimesNanoAt(fd, "", []unix.Timespec{t, t}, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	return unix.Fchmod(fd, uint32(h.Mode))
}

func measureMkdirRmdir(e *Env) error {
	n := e.N(dirPairs)
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("d%06d", i)
	}
	e.Ops(n)
	err := e.Measure(func() error {
		return each(names, func(name string) error {
			if err := unix.Mkdirat(e.Root, name, 0o755); err != nil {
				return opError("mkdir", name, err)
			}
			if err := unix.Unlinkat(e.Root, name, unix.AT_REMOVEDIR); err != nil {
				return opError("rmdir", name, err)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	c, err := walk(e.Root, ReaddirOnly)
	if err != nil {
		return err
	}
	return expect("what is left", c, counts{})
}
