package tarlayer_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/tarlayer"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

// caps is cap_net_raw+ep, revision 2.
const caps = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl is u::rw-,u:1000:r--,g::r--,m::r--,o::---.
const acl = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

// manyThings fills dir with files of all types and with all attributes that a layer can hold.
func manyThings(t testing.TB, dir string) {
	t.Helper()
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t,
		os.MkdirAll(in("dir/sub/deep"), 0o755), os.Mkdir(in("empty"), 0o700), os.Mkdir(in("locked"), 0o000),
		os.Mkdir(in("shared"), 0o755), os.WriteFile(in("file"), []byte("content"),
			0o644), os.WriteFile(in("dir/empty"), nil, 0o600),
		os.WriteFile(in("dir/sub/deep/none"), []byte("x"), 0o000), os.WriteFile(in("new\nline"), []byte("n"), 0o644),
		os.WriteFile(in("bad\xff\xfeutf8"), []byte("b"), 0o644), os.WriteFile(in("ünïcödé ☃"), []byte("u"), 0o644),
		os.WriteFile(in("dir-after"), []byte("order"), 0o644), os.WriteFile(in("locked/file"), []byte("l"), 0o640),
		os.WriteFile(in(strings.Repeat("n", 255)), []byte("long"), 0o644),
		os.Symlink("file", in("link")), os.Symlink("/no/where", in("dangling")), os.Symlink(strings.Repeat("t/", 400),
			in("longlink")),
		os.Link(in("file"), in("dir/hard")), os.Link(in("link"), in("dir/hardlink-of-symlink")),
		unix.Mknod(in("char"), unix.S_IFCHR|0o660, int(unix.Mkdev(1, 3))), unix.Mknod(in("block"), unix.S_IFBLK|0o660,
			int(unix.Mkdev(259, 70000))),
		unix.Mkfifo(in("fifo"), 0o622),
		os.WriteFile(in("suid"), []byte("s"), 0o755), os.Chown(in("suid"), 1234, 70000), unix.Chmod(in("suid"), 0o4755),
		unix.Chmod(in("shared"), 0o3777), os.WriteFile(in("shared/inherits"), []byte("g"),
			0o664), os.Lchown(in("link"), 5, 6),
		os.Chown(in("dir/sub"), 4_000_000_000, 3_000_000_000),
		unix.Setxattr(in("file"), "user.comment", []byte("a=b\x00c"), 0), unix.Setxattr(in("dir"), "user.d", []byte{},
			0),
		unix.Setxattr(in("suid"), "security.capability", []byte(caps), 0),
		unix.Setxattr(in("dir/empty"), "system.posix_acl_access", []byte(acl), 0),
		unix.Setxattr(in("dir/sub"), "system.posix_acl_default", []byte(acl), 0),
	)
	f, err := os.Create(in("sparse"))
	must(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte("in the middle"), 4096), 3<<20) // whole pages: 13 of them
	must(t, err, f.Truncate(8<<20), f.Close())
	for i, p := range []string{"dir/sub/deep", "dir/sub", "dir", "file", "fifo", "shared", "locked", "."} {
		ts := unix.NsecToTimespec(1_600_000_000_000_000_000 + int64(i)*1_000_000_007)
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, in(p), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	before := unix.Timespec{Sec: -1_000_000, Nsec: 500}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, in("link"), []unix.Timespec{before, before}, unix.AT_SYMLINK_NOFOLLOW))
}

func writeAll(t testing.TB, dir string, o tarlayer.WriteOptions) []byte {
	t.Helper()
	src := tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{})
	defer src.Close()
	var b bytes.Buffer
	must(t, tarlayer.WriteAll(t.Context(), &b, src, o))
	return b.Bytes()
}

func TestRoundTripKeepsEverything(t *testing.T) {
	testenv.CheckLeaks(t)
	for name, root := range map[string]string{"tmpfs": testenv.Scratch(t), "ext4": testenv.Ext4(t, 64<<20)} {
		t.Run(name, func(t *testing.T) {
			from, to := subdir(t, root, "from"), subdir(t, root, "to")
			manyThings(t, from)
			first := writeAll(t, from, tarlayer.WriteOptions{Times: tarlayer.TimeNanoseconds})
			_, err := tryApply(t, to, tarlayer.ApplyOptions{}, first)
			must(t, err)
			same(t, take(t, from), take(t, to), fingerprint.Default|fingerprint.Holes)
			again := writeAll(t, to, tarlayer.WriteOptions{Times: tarlayer.TimeNanoseconds})
			if !bytes.Equal(first, again) {
				t.Error("the unpacked tree is written with other bytes")
			}
		})
	}
}

func TestWriteIsReproducible(t *testing.T) {
	root := testenv.Scratch(t)
	from := subdir(t, root, "from")
	manyThings(t, from)
	want(t, "stream", bytes.Equal(writeAll(t, from, tarlayer.WriteOptions{}), writeAll(t, from,
		tarlayer.WriteOptions{})), true)
	changes, err := tarlayer.Compare(t.Context(), nil, open(t, from), tarlayer.CompareOptions{})
	must(t, err)
	write := func() []byte {
		src := tarlayer.NewDirSource(open(t, from), tarlayer.DirOptions{})
		defer src.Close()
		var b bytes.Buffer
		must(t, tarlayer.Write(t.Context(), &b, src, changes, tarlayer.WriteOptions{}))
		return b.Bytes()
	}
	sorted := write()
	for i := range changes {
		j := (i * 7919) % len(changes)
		changes[i], changes[j] = changes[j], changes[i]
	}
	want(t, "stream of shuffled changes", bytes.Equal(sorted, write()), true)
}

// The form of the stream is part of a layer's identity, so that it is spelled out here: what changes it changes every
// DiffID.
func TestWriteForm(t *testing.T) {
	root := testenv.Scratch(t)
	must(t, os.Mkdir(filepath.Join(root, "d"), 0o750), os.WriteFile(filepath.Join(root, "d/f"), []byte("12345"),
		0o4711),
		unix.Chmod(filepath.Join(root, "d/f"), 0o4711), os.Link(filepath.Join(root, "d/f"), filepath.Join(root, "d/g")),
		os.Chown(filepath.Join(root, "d"), 1000, 1001))
	ts := time.Unix(1_700_000_000, 999_999_999)
	must(t, os.Chtimes(filepath.Join(root, "d/f"), ts, ts), os.Chtimes(filepath.Join(root, "d"), ts, ts))
	src := tarlayer.NewDirSource(open(t, root), tarlayer.DirOptions{})
	defer src.Close()
	var b bytes.Buffer
	must(t, tarlayer.Write(t.Context(), &b, src, []tarlayer.Change{
		{Path: "d/g", Kind: tarlayer.Add},
		{Path: "d/z", Kind: tarlayer.Delete},
		{Path: "d", Kind: tarlayer.Modify},
		{Path: "d/f", Kind: tarlayer.Add},
		{Path: "a", Kind: tarlayer.Delete},
	}, tarlayer.WriteOptions{}))
	epoch := time.Unix(0, 0)
	second := time.Unix(1_700_000_000, 0)
	expected := []tar.Header{
		{Typeflag: tar.TypeReg, Name: ".wh.a", ModTime: epoch},
		{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o750, Uid: 1000, Gid: 1001, ModTime: second},
		{Typeflag: tar.TypeReg, Name: "d/.wh.z", ModTime: epoch},
		{Typeflag: tar.TypeReg, Name: "d/f", Mode: 0o4711, Size: 5, ModTime: second},
		{Typeflag: tar.TypeLink, Name: "d/g", Linkname: "d/f", Mode: 0o4711, ModTime: second},
	}
	r := tar.NewReader(&b)
	for _, e := range expected {
		h, err := r.Next()
		must(t, err)
		got := tar.Header{
			Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Mode: h.Mode, Uid: h.Uid,
			Gid: h.Gid, Size: h.Size,
		}
		if !h.ModTime.Equal(e.ModTime) {
			t.Errorf("%s: time %v, want %v", h.Name, h.ModTime, e.ModTime)
		}
		e.ModTime = time.Time{}
		if got.Typeflag != e.Typeflag || got.Name != e.Name || got.Linkname != e.Linkname || got.Mode != e.Mode ||
			got.Uid != e.Uid ||
			got.Gid != e.Gid || got.Size != e.Size || h.Uname != "" || h.Gname != "" || h.PAXRecords != nil {
			t.Errorf("header %+v, want %+v", *h, e)
		}
	}
	if _, err := r.Next(); err == nil {
		t.Error("there is another member")
	}
}
