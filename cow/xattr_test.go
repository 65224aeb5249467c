package cow_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/internal/testenv"
)

// attributed makes src, with the given attributes, and dst, without, of the same kind in a new directory.
func attributed(t testing.TB, attrs map[string]string) (dirfd int, dir string) {
	t.Helper()
	dir = testenv.Scratch(t)
	write(t, filepath.Join(dir, "src"), "")
	write(t, filepath.Join(dir, "dst"), "")
	for attr, value := range attrs {
		must(t, unix.Lsetxattr(filepath.Join(dir, "src"), attr, []byte(value), 0))
	}
	return openLayer(t, dir).FD(), dir
}

func TestCopyXattrs(t *testing.T) {
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x01\x00\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	kept := map[string]string{
		"user.a": "1", "user.empty": "", "user.binary": "\x00\xff\n", "user.large": strings.Repeat("x", 20000),
		"trusted.t": "2", "security.s": "3", "security.capability": capability, "system.posix_acl_access": acl,
		// Of an overlay that an application keeps within: its own level stays on it.
		"trusted.overlay.overlay.opaque": "y", "user.overlay.overlay.origin": "o", "user.fuseoverlayfs.fuseoverlayfs.x": "f",
		"user.containers.override_user.containers.override_stat": "0:0:644",
	}
	own := map[string]string{
		"trusted.overlay.origin": "o", "user.overlay.redirect": "r", "user.fuseoverlayfs.opaque": "y",
		"trusted.overlay.plyfs.unsynced": "u", "user.containers.override_stat": "0:0:644", "security.fuseoverlayfs.override_stat": "0:0:644",
	}
	all := map[string]string{"user.skip": "s"}
	for _, m := range []map[string]string{kept, own} {
		for attr, value := range m {
			all[attr] = value
		}
	}
	d, dir := attributed(t, all)
	asked := []string{}
	must(t, cow.CopyXattrs(nil, d, "src", d, "dst", func(attr string) bool {
		asked = append(asked, attr)
		return attr == "user.skip"
	}))
	for attr, value := range kept {
		if got := xattr(filepath.Join(dir, "dst"), attr); got != value {
			t.Errorf("%s is %.40q, want %.40q", attr, got, value)
		}
	}
	got, err := cow.ListXattrs(d, "dst")
	if err != nil || len(got) != len(kept) {
		t.Errorf("the copy has %q, %v", got, err)
	}
	if len(asked) != len(kept)+1 {
		t.Errorf("asked of %q", asked)
	}
}

func TestCopyXattrsOfKinds(t *testing.T) {
	d, dir := attributed(t, nil)
	for name, mk := range map[string]func(string) error{
		"symlink": func(p string) error { return os.Symlink("src", p) },
		"fifo":    func(p string) error { return unix.Mkfifo(p, 0o600) },
		"dir":     func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		from, to := filepath.Join(dir, name), filepath.Join(dir, name+"-copy")
		must(t, mk(from), mk(to), unix.Lsetxattr(from, "trusted.t", []byte(name), 0))
		must(t, cow.CopyXattrs(nil, d, name, d, name+"-copy", nil))
		if got := xattr(to, "trusted.t"); got != name {
			t.Errorf("%s: %q", name, got)
		}
		// By descriptors that cannot be read.
		src, err := unix.Open(from, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		must(t, err, unix.Lsetxattr(from, "trusted.u", []byte("u"), 0))
		must(t, cow.CopyXattrs(nil, src, "", d, name+"-copy", nil))
		unix.Close(src)
		if got := xattr(to, "trusted.u"); got != "u" {
			t.Errorf("%s by descriptor: %q", name, got)
		}
	}
	if got := xattr(filepath.Join(dir, "src"), "trusted.t"); !strings.HasPrefix(got, "no ") {
		t.Errorf("a symlink was followed: %q", got)
	}
	must(t, cow.CopyXattrs(nil, d, "src", d, "absent", nil)) // there is nothing to copy
	if err := cow.CopyXattrs(nil, d, "absent", d, "dst", nil); !errors.Is(err, unix.ENOENT) {
		t.Errorf("of nothing: %v", err)
	}
}

// What the upper does not take is left out where it has no effect without a privilege, and fails the copy where an
// application put it there.
func TestCopyXattrsRefused(t *testing.T) {
	for _, c := range []struct {
		attr  string
		err   error
		drops bool
	}{
		{"user.a", unix.EOPNOTSUPP, true},
		{"user.a", unix.EPERM, false},
		{"user.a", unix.ENOSPC, false},
		{"user.a", unix.E2BIG, false},
		{"trusted.t", unix.EPERM, true},
		{"trusted.t", unix.EOPNOTSUPP, true},
		{"trusted.t", unix.ENOSPC, false},
		{"security.s", unix.EPERM, true},
		{"security.s", unix.EOPNOTSUPP, true},
		{"security.s", unix.EDQUOT, false},
		{"security.selinux", unix.EACCES, true},
		{"security.selinux", unix.EINVAL, true},
	} {
		d, _ := attributed(t, map[string]string{c.attr: "label"})
		rec := recorder{fail: failing("setxattr", c.err)}
		err := cow.CopyXattrs(rec.mutator(), d, "src", d, "dst", nil)
		if c.drops && err != nil || !c.drops && !errors.Is(err, c.err) || rec.made("setxattr") != 1 {
			t.Errorf("%s, %v: %v after %q", c.attr, c.err, err, rec.all())
		}
	}
}

func TestListXattrs(t *testing.T) {
	attrs := make(map[string]string)
	want := []string{}
	for i := range 300 { // more than the first guess at their size
		name := fmt.Sprintf("user.%03d.%s", i, strings.Repeat("n", 100))
		attrs[name] = "v"
		want = append(want, name)
	}
	d, _ := attributed(t, attrs)
	got, err := cow.ListXattrs(d, "src")
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d names, %v", len(got), err)
	}
	if got, err := cow.ListXattrs(d, "dst"); len(got) != 0 || err != nil {
		t.Errorf("of none: %q, %v", got, err)
	}
	if _, err := cow.ListXattrs(d, "absent"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("of nothing: %v", err)
	}
	proc, err := unix.Open("/proc/sys", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(proc)
	if got, err := cow.ListXattrs(proc, "kernel"); len(got) != 0 || err != nil {
		t.Errorf("where there are none: %q, %v", got, err)
	}
}

func TestGetXattr(t *testing.T) {
	values := map[string]string{
		"user.a": "1", "user.empty": "", "user.512": strings.Repeat("a", 512), "user.513": strings.Repeat("b", 513),
		"user.large": strings.Repeat("c", 60000),
	}
	d, _ := attributed(t, values)
	for attr, want := range values {
		got, err := cow.GetXattr(d, "src", attr)
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v; want %d", attr, len(got), err, len(want))
		}
	}
	if v, err := cow.GetXattr(d, "src", "user.none"); !errors.Is(err, unix.ENODATA) || v != nil {
		t.Errorf("none: %q, %v", v, err)
	}
}

// TestMappedACL: entries for ids without a mapping go, all others stay.
func TestMappedACL(t *testing.T) {
	entry := func(tag, perm uint16, id uint32) []byte {
		b := binary.LittleEndian.AppendUint16(nil, tag)
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(b, perm), id)
	}
	const none = ^uint32(0)
	acl := func(entries ...[]byte) []byte { return slices.Concat(append([][]byte{{2, 0, 0, 0}}, entries...)...) }
	owner, user, group, mask, other := entry(1, 7, none), entry(2, 6, 1000), entry(4, 5, none), entry(16, 7, none), entry(32, 4, none)
	in := acl(owner, user, entry(2, 7, none), group, entry(8, 7, none), mask, other)
	if got, want := cow.MappedACL(in), acl(owner, user, group, mask, other); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	for _, odd := range [][]byte{nil, {2}, acl(), acl(owner)[:9]} {
		if got := cow.MappedACL(slices.Clone(odd)); len(got) > len(odd) {
			t.Errorf("%x became %x", odd, got)
		}
	}
}
