package union_test

import (
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
)

// An op is one mutating operation. It is done on a tree of faultLayers after before, which is not disturbed.
type op struct {
	name   string
	before func(t uniontest.Tree) error
	do     func(t uniontest.Tree) error
}

// stepwise says that it takes more steps where renameat2 takes no flags.
func (o op) stepwise() bool {
	return strings.HasPrefix(o.name, "mkdir") || strings.HasPrefix(o.name, "rmdir") || strings.HasPrefix(o.name, "rename")
}

// faultLayers are lowers with one of everything.
func faultLayers() []uniontest.Layer {
	return []uniontest.Layer{
		{
			uniontest.Reg("f", "content of f"), uniontest.RegMode("g", "content of g", 0o755), uniontest.Hard("g", "h"),
			uniontest.Perm("g", 0o4755), uniontest.Reg("d/x", "x"), uniontest.Reg("d/s/y", "y"), uniontest.Sym("l", "f"),
			uniontest.Fifo("p"), uniontest.Dirs("empty", "empty2"), uniontest.Reg("m/top", "t"), uniontest.Xattr("f", "user.k", "v"),
			uniontest.Sparse("sparse", 1<<20, "data", 0, 1<<19), uniontest.Reg("deep/a/b/c/f", "deep"),
		},
		{uniontest.Reg("m/low", "l"), uniontest.Reg("m/top", "hidden"), uniontest.Reg("one/z", "z"), uniontest.Dirs("m/sub")},
	}
}

// steps makes one function of several operations.
func steps(fs ...func(t uniontest.Tree) error) func(t uniontest.Tree) error {
	return func(t uniontest.Tree) error {
		for _, f := range fs {
			if err := f(t); err != nil {
				return err
			}
		}
		return nil
	}
}

type step = func(t uniontest.Tree) error

func unlink(p string) step { return func(t uniontest.Tree) error { return t.Unlink(p) } }
func rmdir(p string) step  { return func(t uniontest.Tree) error { return t.Rmdir(p) } }
func mkdir(p string) step  { return func(t uniontest.Tree) error { return t.Mkdir(p, 0o755) } }

func rename(a, b string, flags uint32) step {
	return func(t uniontest.Tree) error { return t.Rename(a, b, flags) }
}

func link(a, b string) step { return func(t uniontest.Tree) error { return t.Link(a, b) } }

func chmod(p string) step { return func(t uniontest.Tree) error { return t.Chmod(p, 0o600) } }

func write(p, content string, flags int, off int64) step {
	return func(t uniontest.Tree) error {
		f, err := t.Open(p, flags, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		if content != "" {
			if _, err := f.WriteAt([]byte(content), off); err != nil {
				return err
			}
		}
		return nil
	}
}

func create(p string) step { return write(p, "", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0) }

func withFile(p string, do func(t uniontest.Tree, f uniontest.File) error) step {
	return func(t uniontest.Tree) error {
		f, err := t.Open(p, unix.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return do(t, f)
	}
}

func tmpfile(p string) step {
	return func(t uniontest.Tree) error {
		f, err := t.Open("d", unix.O_TMPFILE|unix.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		return t.LinkFile(f, p)
	}
}

// faultOps is every mutating operation in the shapes in which it takes different ways through the engine.
func faultOps() []op {
	upper := steps(write("u", "upper", unix.O_CREAT|unix.O_WRONLY, 0), mkdir("ud"), create("ud/x"))
	ops := creationOps(upper)
	ops = append(ops, removalOps(upper)...)
	ops = append(ops, renameOps(upper)...)
	return append(ops, changeOps()...)
}

func creationOps(upper step) []op {
	return []op{
		{"create", nil, create("n")},
		{"create-below-lower", nil, create("deep/a/b/c/n")},
		{"create-over-whiteout", unlink("f"), create("f")},
		{"mkdir", nil, mkdir("n")},
		{"mkdir-below-merged", nil, mkdir("m/n")},
		{"mkdir-over-whiteout", steps(unlink("one/z"), rmdir("one")), mkdir("one")},
		{"mkdir-over-whiteout-of-merged", steps(unlink("m/top"), unlink("m/low"), rmdir("m/sub"), rmdir("m")), mkdir("m")},
		{"mknod", nil, func(t uniontest.Tree) error { return t.Mknod("n", unix.S_IFIFO|0o640, 0) }},
		{"mknod-zero-device", nil, func(t uniontest.Tree) error { return t.Mknod("n", unix.S_IFCHR|0o640, 0) }},
		{"mknod-over-whiteout", unlink("p"), func(t uniontest.Tree) error { return t.Mknod("p", unix.S_IFSOCK|0o640, 0) }},
		{"symlink", nil, func(t uniontest.Tree) error { return t.Symlink("target", "n") }},
		{"symlink-over-whiteout", unlink("l"), func(t uniontest.Tree) error { return t.Symlink("target", "l") }},
		{"tmpfile", nil, tmpfile("d/n")},
		{"tmpfile-over-whiteout", unlink("d/x"), tmpfile("d/x")},
		{"link-lower", nil, link("f", "n")},
		{"link-lower-of-group", nil, link("g", "n")},
		{"link-upper", upper, link("u", "n")},
		{"link-over-whiteout", steps(upper, unlink("f")), link("u", "f")},
	}
}

func removalOps(upper step) []op {
	return []op{
		{"unlink-lower", nil, unlink("f")},
		{"unlink-below-lower", nil, unlink("deep/a/b/c/f")},
		{"unlink-upper", upper, unlink("u")},
		{"unlink-both", chmod("f"), unlink("f")},
		{"unlink-one-of-group", nil, unlink("g")},
		{"unlink-one-of-copied-group", chmod("g"), unlink("h")},
		{"unlink-last-of-group", steps(chmod("g"), unlink("h")), unlink("g")},
		{"unlink-zero-device", func(t uniontest.Tree) error { return t.Mknod("n", unix.S_IFCHR, 0) }, unlink("n")},
		{"rmdir-lower", nil, rmdir("empty")},
		{"rmdir-emptied", steps(unlink("d/x"), unlink("d/s/y"), rmdir("d/s")), rmdir("d")},
		{"rmdir-merged", steps(unlink("m/top"), unlink("m/low"), rmdir("m/sub")), rmdir("m")},
		{"rmdir-upper", steps(upper, unlink("ud/x")), rmdir("ud")},
	}
}

func renameOps(upper step) []op {
	return []op{
		{"rename-lower", nil, rename("f", "n", 0)},
		{"rename-lower-over-lower", nil, rename("f", "d/x", 0)},
		{"rename-upper-over-lower", upper, rename("u", "f", 0)},
		{"rename-over-group", upper, rename("u", "g", 0)},
		{"rename-lower-over-upper", upper, rename("f", "u", 0)},
		{"rename-to-whiteout", unlink("d/x"), rename("f", "d/x", 0)},
		{"rename-noreplace", nil, rename("f", "n", unix.RENAME_NOREPLACE)},
		{"rename-dir-lower", nil, rename("one", "n", 0)},
		{"rename-dir-merged", nil, rename("m", "d/n", 0)},
		{"rename-dir-upper", upper, rename("ud", "d/n", 0)},
		{"rename-dir-again", rename("m", "n", 0), rename("n", "d/m", 0)},
		{"rename-dir-over-empty", nil, rename("m", "empty", 0)},
		{"rename-dir-over-whiteouts", unlink("one/z"), rename("m", "one", 0)},
		{"rename-dir-upper-over-lower", upper, rename("ud", "empty", 0)},
		{"rename-dir-to-whiteout", rmdir("empty"), rename("d", "empty", 0)},
		{"rename-hard-link", nil, rename("g", "n", 0)},
		{"exchange-lower", nil, rename("f", "d/x", unix.RENAME_EXCHANGE)},
		{"exchange-mixed", upper, rename("ud", "m", unix.RENAME_EXCHANGE)},
		{"exchange-dir-and-file", nil, rename("m", "d/x", unix.RENAME_EXCHANGE)},
		{"rename-whiteout", nil, rename("f", "d/n", unix.RENAME_WHITEOUT)},
	}
}

func changeOps() []op {
	setxattr := func(p, n string) step {
		return func(t uniontest.Tree) error { return t.Setxattr(p, n, []byte("new"), 0) }
	}
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x06\x00\x05\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	return []op{
		{"write-lower", nil, write("f", "NEW", unix.O_WRONLY, 3)},
		{"write-below-lower", nil, write("deep/a/b/c/f", "NEW", unix.O_WRONLY, 3)},
		{"write-sparse", nil, write("sparse", "NEW", unix.O_WRONLY, 3)},
		{"write-metacopy", chmod("f"), write("f", "NEW", unix.O_WRONLY, 3)},
		{"write-group", nil, write("g", "NEW", unix.O_WRONLY, 3)},
		{"write-set-id", nil, write("h", "NEW", unix.O_WRONLY, 3)},
		{"write-upper", write("u", "upper", unix.O_CREAT|unix.O_WRONLY, 0), write("u", "NEW", unix.O_WRONLY, 3)},
		{"open-truncate", nil, write("f", "", unix.O_WRONLY|unix.O_TRUNC, 0)},
		{"truncate", nil, func(t uniontest.Tree) error { return t.Truncate("f", 4) }},
		{"truncate-longer", nil, func(t uniontest.Tree) error { return t.Truncate("f", 4000) }},
		{"truncate-metacopy", chmod("f"), func(t uniontest.Tree) error { return t.Truncate("f", 4) }},
		{"fallocate", nil, withFile("f", func(_ uniontest.Tree, f uniontest.File) error { return f.Fallocate(0, 0, 9000) })},
		{"punch", nil, withFile("sparse", func(_ uniontest.Tree, f uniontest.File) error {
			return f.Fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		})},
		{"copy-range", nil, withFile("f", func(t uniontest.Tree, f uniontest.File) error {
			src, err := t.Open("g", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			defer src.Close()
			_, err = src.CopyRange(0, f, 2, 5)
			return err
		})},
		{"chmod", nil, chmod("f")},
		{"chmod-group", nil, chmod("h")},
		{"chmod-directory", nil, func(t uniontest.Tree) error { return t.Chmod("m", 0o700) }},
		{"chmod-root", nil, func(t uniontest.Tree) error { return t.Chmod(".", 0o700) }},
		{"chmod-fifo", nil, chmod("p")},
		{"chown", nil, func(t uniontest.Tree) error { return t.Chown("f", 1, 2) }},
		{"chown-symlink", nil, func(t uniontest.Tree) error { return t.Chown("l", 1, 2) }},
		{"utimens", nil, func(t uniontest.Tree) error { return t.Utimens("f", uniontest.Old(), uniontest.Old()) }},
		{"setxattr", nil, setxattr("f", "user.new")},
		{"setxattr-directory", nil, setxattr("m", "user.new")},
		{"setxattr-escaped", nil, setxattr("m", "trusted.overlay.opaque")},
		{"set-acl", nil, func(t uniontest.Tree) error { return t.Setxattr("f", "system.posix_acl_access", []byte(acl), 0) }},
		{"removexattr", nil, func(t uniontest.Tree) error { return t.Removexattr("f", "user.k") }},
	}
}
