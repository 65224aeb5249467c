package tarlayer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

func wantError(t testing.TB, what string, err, expected error, words ...string) {
	t.Helper()
	if !errors.Is(err, expected) {
		t.Errorf("%s: error is %v, want one that wraps %v", what, err, expected)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: error %q does not say %q", what, err, w)
		}
	}
}

func TestApplyCounts(t *testing.T) {
	var progress []tarlayer.Progress
	res := apply(t, testenv.Scratch(t),
		tarlayer.ApplyOptions{Progress: func(p tarlayer.Progress) { progress = append(progress, p) }},
		directory("d"), file("d/f", "12345"), file("d/f", "123"), hardlink("h", "d/f"), file(".wh.x", ""))
	want(t, "entries", res.Entries, 5)
	want(t, "bytes", res.Bytes, 8) // as docker counts, what was replaced too
	want(t, "calls", len(progress), 5)
	want(t, "last", progress[4], tarlayer.Progress{Path: ".wh.x", Entries: 5, Bytes: 8})
}

func TestApplyDirectoryTimesComeLast(t *testing.T) {
	dir := testenv.Scratch(t)
	old := time.Unix(1000, 42)
	d := directory("d")
	d.ModTime = old
	r := directory(".")
	r.ModTime = old
	f := file("implied/f", "")
	f.ModTime = time.Unix(2000, 0)
	apply(t, dir, tarlayer.ApplyOptions{}, r, d, file("d/f", ""), directory("other"), file("other/x", ""),
		hardlink("d/h", "other/x"), f)
	for path, sec := range map[string]int64{"d": 1000, ".": 1000, "implied": 2000} {
		want(t, "time of "+path, lstat(t, filepath.Join(dir, path)).Mtim.Sec, sec)
	}
	want(t, "nanoseconds", lstat(t, filepath.Join(dir, "d")).Mtim.Nsec, 42)
	// A directory that a later layer changes something in, and does not describe, stays as it was.
	apply(t, dir, tarlayer.ApplyOptions{}, file("d/new", ""), file("d/.wh.f", ""))
	want(t, "time after a layer that does not have it", lstat(t, filepath.Join(dir, "d")).Mtim.Sec, 1000)
}

func TestApplyModesDespiteUmaskAndDirectories(t *testing.T) {
	dir := testenv.Scratch(t)
	must(t, unix.Chmod(dir, 0o2775), os.Chown(dir, 0, 77), unix.Setxattr(dir, "system.posix_acl_default", []byte(acl),
		0))
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	apply(t, dir, tarlayer.ApplyOptions{}, file("f", "").mode(0o666), directory("d").mode(0o777), file("d/s",
		"x").mode(0o6755).owner(3, 4),
		directory("closed").mode(0o005), file("closed/f", "in"))
	for path, mode := range map[string]uint32{"f": 0o666, "d": 0o777, "d/s": 0o6755, "closed": 0o005} {
		st := lstat(t, filepath.Join(dir, path))
		want(t, "mode of "+path, fmt.Sprintf("%o", st.Mode&0o7777), fmt.Sprintf("%o", mode))
		gid := uint32(0)
		if path == "d/s" {
			gid = 4
		}
		want(t, "group of "+path, st.Gid, gid)
		if got := xattr(filepath.Join(dir, path), "system.posix_acl_access"); !strings.HasPrefix(got, "no ") {
			t.Errorf("%s inherited an ACL", path)
		}
	}
}

func TestApplyMergedDirectoryLosesWhatTheMemberHasNot(t *testing.T) {
	dir := testenv.Scratch(t)
	apply(t, dir, tarlayer.ApplyOptions{}, directory("d").mode(0o2777).owner(5, 6).xattr("user.old",
		"1").xattr("user.both", "1"), file("d/f", ""))
	apply(t, dir, tarlayer.ApplyOptions{}, directory("d").xattr("user.both", "2").xattr("user.new", "2"))
	d := filepath.Join(dir, "d")
	st := lstat(t, d)
	want(t, "mode", st.Mode&0o7777, 0o755)
	want(t, "owner", st.Uid, 0)
	want(t, "both", xattr(d, "user.both"), "2")
	want(t, "new", xattr(d, "user.new"), "2")
	want(t, "old", xattr(d, "user.old"), "no user.old: no data available")
	wantPaths(t, dir, "d", "d/f")
}

func TestApplyLinks(t *testing.T) {
	dir := testenv.Scratch(t)
	apply(t, dir, tarlayer.ApplyOptions{}, file("a/f", "1"), hardlink("b/g", "/a/f"), symlink("s", "a"), hardlink("h",
		"s/f"), file("x", "old"),
		hardlink("x", "a/f"), hardlink("x", "a/f"))
	want(t, "links", lstat(t, filepath.Join(dir, "a/f")).Nlink, 4)
	for _, m := range []member{hardlink("n", "none"), hardlink("n", "none/none")} {
		_, err := tryApply(t, dir, tarlayer.ApplyOptions{}, stream(t, m))
		wantError(t, "link to nothing", err, unix.ENOENT, `"n"`, "none", "not in this layer")
	}
	for _, m := range []member{
		hardlink("n", "a"), hardlink("n", "n"), hardlink("n", "/"), hardlink("/", "x"),
		hardlink("n", ".wh.x"), hardlink("n", "../x"),
	} {
		_, err := tryApply(t, dir, tarlayer.ApplyOptions{}, stream(t, m))
		wantError(t, "link to "+m.Linkname, err, tarlayer.ErrInvalid)
	}
}

// A hard link, or a file in a directory, may be all that a layer has of what is below.
func TestApplyTakesFromLower(t *testing.T) {
	dir := testenv.Scratch(t)
	lower, upper := subdir(t, dir, "lower"), subdir(t, dir, "upper")
	apply(t, lower, tarlayer.ApplyOptions{}, directory(".").mode(0o711), directory("d").mode(0o1777).owner(8,
		9).xattr("user.x", "y"),
		file("d/f", strings.Repeat("data", 3000)).mode(0o4755).owner(1, 2).xattr("security.capability", caps))
	src := tarlayer.NewDirSource(open(t, lower), tarlayer.DirOptions{})
	defer src.Close()
	apply(t, upper, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutKernel, Lower: src}, hardlink("d/g", "d/f"))
	wantPaths(t, upper, "d", "d/f", "d/g")
	up, low := take(t, upper), take(t, lower)
	delete(up.Entries, "d/g")
	up.Entries["d/f"].Nlink, up.Entries["d/f"].Group = 1, low.Entries["d/f"].Group
	same(t, low, up, 0)
	_, err := tryApply(t, upper, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutKernel, Lower: src}, stream(t,
		hardlink("z", "none")))
	wantError(t, "link to nothing", err, unix.ENOENT, "neither")
}

func TestApplyParents(t *testing.T) {
	dir := testenv.Scratch(t)
	apply(t, dir, tarlayer.ApplyOptions{}, symlink("lib", "usr/lib"), file("lib/a", "1"), symlink("loop", "loop"),
		symlink("up", "../../usr/../usr"),
		file("up/b", "2"), file("f", ""))
	wantPaths(t, dir, "f", "lib", "loop", "up", "usr", "usr/b", "usr/lib", "usr/lib/a")
	for _, name := range []string{"f/x", "loop/x", "f/x/y"} {
		_, err := tryApply(t, dir, tarlayer.ApplyOptions{}, stream(t, file(name, "")))
		wantError(t, name, err, tarlayer.ErrInvalid, name)
	}
	deep := strings.Repeat("d/", 1500)
	apply(t, dir, tarlayer.ApplyOptions{}, file(deep+"f", "deep"), file(deep+"g", "deep"))
	must(t, os.RemoveAll(filepath.Join(dir, "d")))
}

func TestApplyOwners(t *testing.T) {
	dir := testenv.Scratch(t)
	maps := tarlayer.IDMaps{
		UIDs: []tarlayer.IDRange{{Container: 0, Host: 100000, Size: 10}, {Container: 1000, Host: 5, Size: 1}},
		GIDs: []tarlayer.IDRange{{Container: 0, Host: 200000, Size: 2000}},
	}
	named := strings.Replace(acl, "\xe8\x03\x00\x00", "\x09\x00\x00\x00", 1)
	apply(t, dir, tarlayer.ApplyOptions{IDs: maps}, directory("d").owner(9, 1999), file("d/f", "").owner(1000,
		0).xattr("system.posix_acl_access", named),
		file("implied/f", ""))
	st := lstat(t, filepath.Join(dir, "d"))
	want(t, "user", st.Uid, 100009)
	want(t, "group", st.Gid, 201999)
	want(t, "user", lstat(t, filepath.Join(dir, "d/f")).Uid, 5)
	want(t, "user of an implied directory", lstat(t, filepath.Join(dir, "implied")).Uid, 100000)
	src := tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{IDs: maps})
	defer src.Close()
	a, err := src.Lstat("d/f")
	must(t, err)
	want(t, "user seen", a.UID, 1000)
	x, err := src.Xattrs("d/f")
	must(t, err)
	want(t, "ACL seen", x["system.posix_acl_access"], named)
	for _, m := range []member{file("x", "").owner(10, 0), file("x", "").owner(0, 2000)} {
		_, err := tryApply(t, dir, tarlayer.ApplyOptions{IDs: maps}, stream(t, m))
		wantError(t, "unmapped", err, tarlayer.ErrUnmapped, `"x"`)
	}
	_, err = tryApply(t, dir, tarlayer.ApplyOptions{}, stream(t, file("x", "").owner(1<<32-1, 0)))
	wantError(t, "owner -1", err, tarlayer.ErrInvalid)
	if _, err := os.Lstat(filepath.Join(dir, "x")); err == nil {
		t.Error("a file was made for an owner that is refused")
	}
}

func TestApplyKeepsOwnersInAnAttribute(t *testing.T) {
	dir := testenv.Scratch(t)
	o := tarlayer.ApplyOptions{Owner: tarlayer.OwnerXattr, Whiteouts: tarlayer.WhiteoutKernel}
	apply(t, dir, o, directory("d").owner(1, 2).mode(0o700), file("d/s", "x").owner(3,
		4).mode(0o4711).xattr("security.capability", caps),
		device("null", 1, 3).mode(0o666), member{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "fifo"}})
	st := lstat(t, filepath.Join(dir, "d/s"))
	want(t, "inode's mode", st.Mode&0o7777, 0o755)
	want(t, "inode's owner", st.Uid, 0)
	want(t, "attribute", xattr(filepath.Join(dir, "d/s"), "user.containers.override_stat"), "3:4:4711:file")
	want(t, "device", xattr(filepath.Join(dir, "null"), "user.containers.override_stat"), "0:0:666:char-1-3")
	l := open(t, dir)
	want(t, "layer's attribute", l.Override(), "user.containers.override_stat")
	src := tarlayer.NewDirSource(l, tarlayer.DirOptions{})
	defer src.Close()
	a, err := src.Lstat("null")
	must(t, err)
	want(t, "mode seen", a.Mode, unix.S_IFCHR|0o666)
	want(t, "device seen", a.Rdev, unix.Mkdev(1, 3))
	x, err := src.Xattrs("d/s")
	must(t, err)
	want(t, "capabilities seen", x["security.capability"], caps)
	want(t, "number of attributes seen", len(x), 1)
}

func TestApplyDevices(t *testing.T) {
	dir := testenv.Scratch(t)
	_, err := tryApply(t, dir, tarlayer.ApplyOptions{Devices: tarlayer.DeviceRefuse}, stream(t, device("null", 1, 3)))
	wantError(t, "refuse", err, tarlayer.ErrDevice, `"null"`)
	_, err = tryApply(t, dir, tarlayer.ApplyOptions{Mutator: mutator(refuseMknod)}, stream(t, device("null", 1, 3)))
	wantError(t, "refused by the kernel", err, tarlayer.ErrDevice, `"null"`)
	res := apply(t, dir, tarlayer.ApplyOptions{Devices: tarlayer.DeviceSkip}, device("null", 1, 3), file("f", ""))
	want(t, "skipped", res.Skipped, 1)
	wantPaths(t, dir, "f")
	for _, m := range []member{device("x", 1<<12, 0), device("x", 0, 1<<20)} {
		_, err := tryApply(t, dir, tarlayer.ApplyOptions{}, stream(t, m))
		wantError(t, "number", err, tarlayer.ErrInvalid)
	}
}

func TestApplyXattrPolicy(t *testing.T) {
	dir := testenv.Scratch(t)
	f := file("f", "").xattr("user.a", "1").xattr("trusted.b", "2").xattr("security.selinux",
		"label").xattr("security.capability", caps)
	var noted []string
	res := apply(t, dir, tarlayer.ApplyOptions{Note: func(_, why string) { noted = append(noted, why) }}, f)
	want(t, "skipped", res.Skipped, 2)
	want(t, "notes", len(noted), 2)
	p := filepath.Join(dir, "f")
	want(t, "user", xattr(p, "user.a"), "1")
	want(t, "capabilities", xattr(p, "security.capability"), caps)
	want(t, "trusted", xattr(p, "trusted.b"), "no trusted.b: no data available")
	apply(t, dir, tarlayer.ApplyOptions{KeepTrusted: true}, f)
	want(t, "trusted", xattr(p, "trusted.b"), "2")
	// What a type of file has no place for is left out.
	res = apply(t, dir, tarlayer.ApplyOptions{}, symlink("l", "f").xattr("user.a", "1"))
	want(t, "skipped", res.Skipped, 1)
}

func TestApplyLimits(t *testing.T) {
	many := stream(t, file("a/b/c", strings.Repeat("x", 100)).xattr("user.a", strings.Repeat("v", 300)), symlink("l",
		strings.Repeat("t", 200)), file("c", "1"))
	for _, c := range []struct {
		name   string
		limits tarlayer.Limits
	}{
		{"Entries", tarlayer.Limits{Entries: 2}},
		{"Bytes", tarlayer.Limits{Bytes: 99}},
		{"Depth", tarlayer.Limits{Depth: 2}},
		{"Name", tarlayer.Limits{Name: 199}},
		{"Header", tarlayer.Limits{Header: 1023}},
		{"Xattr", tarlayer.Limits{Xattr: 299}},
	} {
		_, err := tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{Limits: c.limits}, many)
		wantError(t, c.name, err, tarlayer.ErrLimit, "Limits."+c.name)
	}
	exact := tarlayer.Limits{Entries: 3, Bytes: 1 << 20, Depth: 3, Name: 200, Header: 8192, Xattr: 300}
	_, err := tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{Limits: exact}, many)
	must(t, err)
	none := tarlayer.Limits{Entries: -1, Bytes: -1, Depth: -1, Name: -1, Header: -1, Xattr: -1}
	_, err = tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{Limits: none}, many)
	must(t, err)
}

func TestApplyHugeClaims(t *testing.T) {
	dir := testenv.Scratch(t)
	record := func(records string, typ byte, name string) []byte {
		return append(rawMember(t, tar.TypeXHeader, "pax", []byte(records)), rawMember(t, typ, name, nil)...)
	}
	sparse := pax("GNU.sparse.major", "0") + pax("GNU.sparse.minor", "1") + pax("GNU.sparse.name", "s") +
		pax("GNU.sparse.size", "9000000000000000000") + pax("GNU.sparse.numblocks", "0") + pax("GNU.sparse.map", "")
	_, err := tryApply(t, dir, tarlayer.ApplyOptions{}, record(sparse, tar.TypeReg, "s"))
	wantError(t, "sparse file of 8 EiB", err, tarlayer.ErrLimit, "Limits.Bytes")
	_, err = tryApply(t, dir, tarlayer.ApplyOptions{}, record(pax("size", "9000000000000000000"), tar.TypeReg, "s"))
	wantError(t, "file of 8 EiB", err, tarlayer.ErrLimit, "Limits.Bytes")
	_, err = tryApply(t, dir, tarlayer.ApplyOptions{}, record(pax("path", strings.Repeat("n", 2<<20)), tar.TypeReg,
		"s"))
	wantError(t, "name of 2 MiB", err, tarlayer.ErrLimit, "Limits.Header")
	one := rawMember(t, tar.TypeXHeader, "pax", []byte(pax("comment", strings.Repeat("c", 512<<10))))
	_, err = tryApply(t, dir, tarlayer.ApplyOptions{}, bytes.Repeat(one, 32))
	wantError(t, "headers without a member", err, tarlayer.ErrLimit, "Limits.Header")
	wantPaths(t, dir)
}

func TestApplySparse(t *testing.T) {
	dir := testenv.Scratch(t)
	data := strings.Repeat("\x00", 1<<20) + strings.Repeat("x", 4096) + strings.Repeat("\x00", 3<<20+77)
	apply(t, dir, tarlayer.ApplyOptions{}, file("s", data), file("zeros", strings.Repeat("\x00", 5<<20)),
		file("small", strings.Repeat("\x00", 4095)))
	want(t, "content", content(t, filepath.Join(dir, "s")) == data, true)
	want(t, "blocks", lstat(t, filepath.Join(dir, "s")).Blocks, 8)
	want(t, "blocks of zeros", lstat(t, filepath.Join(dir, "zeros")).Blocks, 0)
	want(t, "size of zeros", lstat(t, filepath.Join(dir, "zeros")).Size, 5<<20)
	want(t, "size", lstat(t, filepath.Join(dir, "small")).Size, 4095)
	// The form that GNU tar writes with --sparse --format=gnu and --format=pax.
	records := pax("GNU.sparse.major", "0") + pax("GNU.sparse.minor", "1") + pax("GNU.sparse.name", "gnu") +
		pax("GNU.sparse.size", "8388608") + pax("GNU.sparse.numblocks", "1") + pax("GNU.sparse.map", "4194304,4")
	raw := append(rawMember(t, tar.TypeXHeader, "pax", []byte(records)), rawMember(t, tar.TypeReg, "gnu",
		[]byte("data"))...)
	_, err := tryApply(t, dir, tarlayer.ApplyOptions{}, append(raw, make([]byte, 1024)...))
	must(t, err)
	st := lstat(t, filepath.Join(dir, "gnu"))
	want(t, "size", st.Size, 8<<20)
	want(t, "blocks", st.Blocks, 8)
}

func TestApplyBrokenOff(t *testing.T) {
	full := stream(t, directory("d"), file("d/file", strings.Repeat("x", 700)), symlink("l", "d"))
	end := len(full) - 1024
	for cut := range end + 1 {
		if cut%64 != 0 && cut != end {
			continue
		}
		_, err := tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{}, full[:cut])
		wantError(t, fmt.Sprint("cut at ", cut), err, io.ErrUnexpectedEOF)
		if cut > 1024 && cut < 1024+700 {
			wantError(t, fmt.Sprint("cut at ", cut), err, io.ErrUnexpectedEOF, "d/file", "of 700 bytes")
		}
	}
	_, err := tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{AcceptUnterminated: true}, full[:end])
	must(t, err)
	_, err = tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{},
		full[:end+512]) // one block of the mark, as some write it
	must(t, err)
	broken := errors.New("broken")
	_, err = tarlayer.Apply(t.Context(), open(t, testenv.Scratch(t)), io.MultiReader(bytes.NewReader(full[:1500]),
		failing{broken}), tarlayer.ApplyOptions{})
	wantError(t, "reader's error", err, broken, "d/file")
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestApplyReadsToTheEnd(t *testing.T) {
	r := bytes.NewReader(append(stream(t, file("f", "")), bytes.Repeat([]byte("rubbish"), 100_000)...))
	_, err := tarlayer.Apply(t.Context(), open(t, testenv.Scratch(t)), r, tarlayer.ApplyOptions{})
	must(t, err)
	want(t, "rest", r.Len(), 0)
}

func TestApplyIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no longer wanted")
	dir := testenv.Scratch(t)
	_, err := tarlayer.Apply(ctx, open(t, dir), bytes.NewReader(stream(t, file("a", ""), file("b", ""), file("c",
		""))), tarlayer.ApplyOptions{
		Progress: func(p tarlayer.Progress) {
			if p.Entries == 2 {
				cancel(why)
			}
		},
	})
	wantError(t, "cancelled", err, why)
	wantPaths(t, dir, "a", "b")
}

func TestApplyUnknownTypes(t *testing.T) {
	for _, typ := range []byte{'V', 'M', 'D', '9', 'Z'} {
		_, err := tryApply(t, testenv.Scratch(t), tarlayer.ApplyOptions{}, rawMember(t, typ, "x", nil))
		wantError(t, string(typ), err, tarlayer.ErrInvalid, `"x"`)
	}
	dir := testenv.Scratch(t)
	raw := append(rawMember(t, tar.TypeXGlobalHeader, "g", []byte(pax("comment", "of git archive"))), rawMember(t,
		tar.TypeCont, "c", []byte("x"))...)
	_, err := tryApply(t, dir, tarlayer.ApplyOptions{}, append(raw, make([]byte, 1024)...))
	must(t, err)
	wantPaths(t, dir, "c")
}

// What cannot be written must be an error, and never a file that is shorter than it should be.
func TestApplyFullDisk(t *testing.T) {
	mnt := subdir(t, testenv.Scratch(t), "small")
	must(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=256k,nr_inodes=20"))
	t.Cleanup(func() { testenv.Unmount(t, mnt) })
	_, err := tryApply(t, mnt, tarlayer.ApplyOptions{}, stream(t, file("f", strings.Repeat("x", 1<<20))))
	wantError(t, "no space", err, unix.ENOSPC, `"f"`)
	must(t, os.Remove(filepath.Join(mnt, "f")))
	var many []member
	for i := range 30 {
		many = append(many, file(fmt.Sprint(i), ""))
	}
	_, err = tryApply(t, mnt, tarlayer.ApplyOptions{}, stream(t, many...))
	wantError(t, "no inodes", err, unix.ENOSPC)
}

// Whichever system call fails, Apply says so and says at which member, and a second try over what is left gives the
// whole layer.
func TestApplyFailsAtEachCall(t *testing.T) {
	testenv.CheckLeaks(t)
	members := []member{
		directory("d").mode(0o2750).owner(1, 2).xattr("user.a", "1").xattr("system.posix_acl_default",
			acl), file("d/f", "content").owner(3, 4).mode(0o4755),
		hardlink("h", "d/f"), symlink("l", "d"), device("null", 1, 3), file("d/f",
			"again"), directory("r"), file("r/x", "1"), file("r", "now a file"),
		file("z", strings.Repeat("\x00", 10000)), file("d/.wh.gone", ""), device("zero", 0,
			0), directory("o"), file("o/.wh..wh..opq", ""), file("i/m/p", ""),
	}
	broken := errors.New("injected")
	for _, form := range []tarlayer.WhiteoutForm{tarlayer.WhiteoutRemove, tarlayer.WhiteoutKernel} {
		whole := testenv.Scratch(t)
		apply(t, whole, tarlayer.ApplyOptions{Whiteouts: form}, members...)
		for i := 1; ; i++ {
			dir, n := testenv.Scratch(t), 0
			_, err := tryApply(t, dir, tarlayer.ApplyOptions{Whiteouts: form, Mutator: mutator(func(string) error {
				if n++; n == i {
					return broken
				}
				return nil
			})}, stream(t, members...))
			if err == nil {
				if n >= i {
					t.Fatalf("call %d of %d failed and nobody said so", i, n)
				}
				break
			}
			wantError(t, fmt.Sprint("call ", i), err, broken)
			apply(t, dir, tarlayer.ApplyOptions{Whiteouts: form}, members...)
			// Whiteouts, and the root that no member describes, are as old as they are.
			same(t, take(t, whole), take(t, dir), fingerprint.Default&^fingerprint.Mtime)
			must(t, os.RemoveAll(dir))
		}
	}
}

// A directory with a default ACL that the stream does not describe is left and come back to: what is made in it then inherits as little
// as what was made first.
func TestApplyComesBackToDirectoryWithDefaultACL(t *testing.T) {
	dir := testenv.Scratch(t)
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755), os.WriteFile(filepath.Join(dir, "old"), []byte("o"), 0o644),
		unix.Setxattr(filepath.Join(dir, "d"), "system.posix_acl_default", []byte(acl), 0))
	// A symlink that replaces a file empties the cache of directories.
	apply(t, dir, tarlayer.ApplyOptions{}, file("d/first", "1").mode(0o666), symlink("old", "d"), file("d/second", "2").mode(0o666),
		file("d/sub/third", "3").mode(0o666))
	for path, mode := range map[string]uint32{"d/first": 0o666, "d/second": 0o666, "d/sub": 0o755, "d/sub/third": 0o666} {
		want(t, "mode of "+path, fmt.Sprintf("%o", lstat(t, filepath.Join(dir, path)).Mode&0o7777), fmt.Sprintf("%o", mode))
		for _, attr := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
			if got := xattr(filepath.Join(dir, path), attr); !strings.HasPrefix(got, "no ") {
				t.Errorf("%s inherited %s", path, attr)
			}
		}
	}
}
