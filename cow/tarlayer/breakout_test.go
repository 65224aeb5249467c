package tarlayer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/tarlayer"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

// sentinel is a tree beside the one that is unpacked into. Nothing may ever change in it.
type sentinel struct {
	root, outside string
	before        *fingerprint.Tree
}

func newSentinel(t *testing.T) *sentinel {
	t.Helper()
	dir := testenv.Scratch(t)
	s := &sentinel{root: subdir(t, dir, "root"), outside: subdir(t, dir, "outside")}
	must(t, os.MkdirAll(filepath.Join(s.outside, "dir/sub"), 0o755), os.WriteFile(filepath.Join(s.outside, "victim"),
		[]byte("secret"), 0o600),
		os.WriteFile(filepath.Join(s.outside, "dir/victim"), []byte("secret"), 0o600))
	s.before = s.take(t)
	return s
}

func (s *sentinel) take(t *testing.T) *fingerprint.Tree {
	t.Helper()
	tree, err := fingerprint.Take(s.outside,
		fingerprint.Options{Fields: fingerprint.Default | fingerprint.Ctime | fingerprint.Inode | fingerprint.DirNlink})
	must(t, err)
	return tree
}

func (s *sentinel) check(t *testing.T) {
	t.Helper()
	same(t, s.before, s.take(t), fingerprint.Default|fingerprint.Ctime|fingerprint.Inode|fingerprint.DirNlink)
}

// attack unpacks members in every form, and checks each time that nothing outside changed.
func attack(t *testing.T, members func(outside string) []member) {
	t.Helper()
	for _, form := range []tarlayer.WhiteoutForm{
		tarlayer.WhiteoutRemove, tarlayer.WhiteoutKernel,
		tarlayer.WhiteoutAny, tarlayer.WhiteoutAUFS,
	} {
		for _, owner := range []tarlayer.OwnerForm{tarlayer.OwnerInode, tarlayer.OwnerIgnore, tarlayer.OwnerXattr} {
			s := newSentinel(t)
			_, err := tryApply(t, s.root, tarlayer.ApplyOptions{Whiteouts: form, Owner: owner, Sum: true}, stream(t,
				members(s.outside)...))
			t.Logf("form %d, owners %d: %v", form, owner, err)
			s.check(t)
			// What is inside must not lead out by a hard link either.
			var st unix.Stat_t
			must(t, unix.Lstat(filepath.Join(s.outside, "victim"), &st))
			want(t, "link count of the victim", st.Nlink, 1)
		}
	}
}

// docker before 1.3.2 wrote through symlinks and hard links of an image.
func TestCVE2014_6407(t *testing.T) {
	attack(t, func(out string) []member {
		return []member{symlink("out", out), file("out/victim", "overwritten"), file("out/new", "new")}
	})
	attack(t, func(out string) []member {
		return []member{hardlink("mine", out+"/victim"), file("mine", "overwritten")}
	})
	attack(t, func(out string) []member {
		return []member{symlink("l", out+"/victim"), hardlink("mine", "l"), file("mine", "overwritten"), file("l",
			"overwritten")}
	})
}

// docker before 1.3.3 followed absolute symlinks of an image to the host's files.
func TestCVE2014_9356(t *testing.T) {
	s := newSentinel(t)
	apply(t, s.root, tarlayer.ApplyOptions{}, symlink("abs", s.outside), file("abs/victim", "inside"), symlink("up",
		"../outside"),
		file("up/new", "inside"))
	s.check(t)
	// As in a container: the root of an absolute link is the layer's, and there is nothing above it.
	want(t, "content", content(t, filepath.Join(s.root, s.outside, "victim")), "inside")
	want(t, "content", content(t, filepath.Join(s.root, "outside/new")), "inside")
}

// docker 1.3.2 ran the xz program that it found in the image. The decoders are part of this program.
func TestCVE2014_9357(t *testing.T) {
	dir := testenv.Scratch(t)
	ran := filepath.Join(dir, "ran")
	for _, name := range []string{"xz", "unxz", "gzip", "unpigz", "pigz", "zstd", "bzip2", "tar"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\ntouch "+ran+"\n"), 0o755))
	}
	t.Setenv("PATH", dir)
	for c := tarlayer.Plain; c <= tarlayer.Xz; c++ {
		if c == tarlayer.Bzip2 {
			continue
		}
		r, got, err := tarlayer.Decompress(bytes.NewReader(compressed(t, c, []byte("content"))),
			tarlayer.DecompressOptions{})
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err, r.Close())
		want(t, "format", got, c)
		want(t, "content", string(b), "content")
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a program was started")
	}
}

// swapping exchanges a directory of the tree and a symlink that leads out of it for as long as the test unpacks.
func swapping(t *testing.T, root, target string) (stop func()) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(root, "d/sub"), 0o755), os.Symlink(target, filepath.Join(root, "link")))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(root, "d"), unix.AT_FDCWD, filepath.Join(root, "link"),
				unix.RENAME_EXCHANGE)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// docker cp (CVE-2018-15664), runc's mkdir (CVE-2024-45310) and containerd's unpacking (CVE-2025-47290) checked a path
// and then used it, while the container exchanged a directory on it with a symlink.
func TestCVE2018_15664(t *testing.T) {
	raceWithSwap(t, func(d string) member { return file(d+"/new", "x") })
}

func TestCVE2024_45310(t *testing.T) {
	raceWithSwap(t, func(d string) member { return file(d+"/made/deep", "x") })
}

func TestCVE2025_47290(t *testing.T) {
	raceWithSwap(t, func(d string) member { return directory(d + "/sub").mode(0o777) })
}

func TestRaceOfWhiteouts(t *testing.T) {
	raceWithSwap(t, func(d string) member { return file(d+"/.wh.victim", "") })
}

func TestRaceOfOpaque(t *testing.T) {
	raceWithSwap(t, func(d string) member { return file(d+"/.wh..wh..opq", "") })
}

func raceWithSwap(t *testing.T, m func(dir string) member) {
	t.Helper()
	for _, form := range []tarlayer.WhiteoutForm{tarlayer.WhiteoutRemove, tarlayer.WhiteoutKernel} {
		s := newSentinel(t)
		stop := swapping(t, s.root, s.outside+"/dir")
		for range 40 {
			// Each may fail, since what it works on goes away. None may get out.
			_, _ = tryApply(t, s.root, tarlayer.ApplyOptions{Whiteouts: form}, stream(t, m("d"), symlink("other",
				"x"), m("link")))
		}
		stop()
		s.check(t)
	}
}

// docker's unpacker looked up names of users by code that it loaded from the container's root.
func TestCVE2019_14271(t *testing.T) {
	dir := testenv.Scratch(t)
	m := file("f", "").owner(12, 34)
	m.Uname, m.Gname = "root", "root"
	apply(t, dir, tarlayer.ApplyOptions{}, file("etc/passwd", "root:x:99:99::/:\n"), m)
	st := lstat(t, filepath.Join(dir, "f"))
	want(t, "user", st.Uid, 12)
	want(t, "group", st.Gid, 34)
}

// oc image extract wrote through symlinks that came first in the archive; whiteouts went the same way in others.
func TestCVE2020_27833(t *testing.T) {
	attack(t, func(out string) []member {
		return []member{symlink("a", ".."), symlink("a/b", ".."), symlink("c", "../../.."), file("a/b/outside/victim",
			"x"), file("c/outside/victim", "x")}
	})
	attack(t, func(out string) []member {
		return []member{directory("d"), symlink("d", out), file("d/victim", "x")} // a parent becomes a symlink half-way
	})
	attack(t, func(out string) []member { return []member{symlink("etc", out), file("etc/.wh.victim", "")} })
	attack(t, func(out string) []member { return []member{symlink("etc", out), file("etc/.wh..wh..opq", "")} })
	attack(t, func(out string) []member { return []member{symlink("etc", out), directory("etc/dir").mode(0o777)} })
}

// Python's tarfile, as many, took names with dot-dot as they are.
func TestCVE2007_4559(t *testing.T) {
	for _, name := range []string{
		"../outside/victim", "../../x", "a/../../outside/new", "/../outside/victim", "..",
		"./../outside/victim",
	} {
		attack(t, func(string) []member { return []member{file(name, "x")} })
		attack(t, func(string) []member { return []member{directory(name).mode(0o777)} })
		attack(t, func(string) []member { return []member{hardlink("h", name), file("h", "x")} })
		_, err := tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{}, stream(t, file(name, "x")))
		if !errors.Is(err, tarlayer.ErrInvalid) {
			t.Errorf("%s: %v, want an error that wraps ErrInvalid", name, err)
		}
	}
	attack(t, func(out string) []member { return []member{file(out+"/victim", "x")} }) // absolute: beneath the root
}

// umoci took a member named "/" that is a symlink for the new root of what follows.
func TestCVE2021_29136(t *testing.T) {
	for _, name := range []string{"/", ".", "./", "/.", "//"} {
		attack(t, func(out string) []member { return []member{symlink(name, out), file("victim", "x")} })
		_, err := tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{}, stream(t, symlink(name, "/tmp")))
		if !errors.Is(err, tarlayer.ErrInvalid) {
			t.Errorf("%q: %v, want an error that wraps ErrInvalid", name, err)
		}
	}
}

// containerd changed modes through symlinks and hard links to them (docker cp alike: CVE-2021-41089).
func TestCVE2021_32760(t *testing.T) {
	attack(t, func(out string) []member {
		return []member{symlink("l", out+"/victim").mode(0o777), hardlink("h", "l").mode(0o6777), symlink("l",
			out+"/victim").mode(0o4777)}
	})
	attack(t, func(out string) []member {
		return []member{symlink("l", out+"/victim").xattr("user.x", "y"), symlink("l2", out+"/dir").owner(77, 77)}
	})
}

// containers/storage waited for ever when what came was no archive and nobody read the rest of it.
func TestCVE2021_20291(t *testing.T) {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		var err error
		for block := bytes.Repeat([]byte("not a tar archive "), 4096); err == nil; {
			_, err = w.Write(block)
		}
		written <- err
	}()
	_, err := tarlayer.Apply(t.Context(), open(t, testenv.Scratch(t)), r, tarlayer.ApplyOptions{})
	if !errors.Is(err, tarlayer.ErrInvalid) {
		t.Errorf("%v, want an error that wraps ErrInvalid", err)
	}
	r.Close()
	if err := <-written; !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

// docker's tar-split kept in memory what follows the end of an archive.
func TestCVE2017_14992(t *testing.T) {
	s := stream(t, file("f", "x"))
	endless := io.MultiReader(bytes.NewReader(s), zeros{})
	_, err := tarlayer.Apply(t.Context(), open(t, testenv.Scratch(t)), endless,
		tarlayer.ApplyOptions{Limits: tarlayer.Limits{Bytes: 64 << 20}})
	if !errors.Is(err, tarlayer.ErrLimit) {
		t.Errorf("%v, want an error that wraps ErrLimit", err)
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// archive/tar kept the whole map of a sparse file in memory (GNU format 1.0).
func TestCVE2025_58183(t *testing.T) {
	records := pax("GNU.sparse.major", "1") + pax("GNU.sparse.minor", "0") + pax("GNU.sparse.name",
		"s") + pax("GNU.sparse.realsize", "1000000000")
	entries := bytes.Repeat([]byte("0\n0\n"), 8<<20)
	copy(entries, "8000000\n")
	full := append(rawMember(t, tar.TypeXHeader, "PaxHeaders/s", []byte(records)), rawMember(t, tar.TypeReg,
		"GNUSparseFile.0/s", entries)...)
	_, err := tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{}, full)
	if err == nil || !errors.Is(err, tarlayer.ErrLimit) && !errors.Is(err, tarlayer.ErrInvalid) {
		t.Errorf("%v, want an error that wraps ErrLimit or ErrInvalid", err)
	}
}
