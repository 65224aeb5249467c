package union

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

func checkOnDisk(t *testing.T, path string, uid, gid uint32, mode uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	if st.Uid != uid || st.Gid != gid || st.Mode&0o7777 != mode {
		t.Errorf("%s has owner %d:%d and mode %o, want %d:%d and %o", path, st.Uid, st.Gid, st.Mode&0o7777, uid, gid, mode)
	}
}

// Whoever has no identifier in the mount, as podman has none in a container with --userns=auto, can make objects in it, and give
// them to somebody who has.
func TestCreateUnmapped(t *testing.T) {
	s := newStack(t)
	m := []IDRange{{Disk: 0, Mount: 1, Len: 1000}}
	u, err := s.openAs(Options{UIDMap: m, GIDMap: m})
	must(t, err)
	defer u.Close()
	c := &Caller{Umask: 0o022}
	file, a, err := u.Create(c, u.Root(), "file", 0o666, unix.O_RDWR)
	must(t, err)
	if a.UID != overflowID || a.GID != overflowID {
		t.Errorf("the file shows %d:%d", a.UID, a.GID)
	}
	_, _, err = u.Mkdir(c, u.Root(), "dir", 0o777)
	must(t, err)
	_, _, err = u.Symlink(c, u.Root(), "link", "target")
	must(t, err)
	checkOnDisk(t, s.upper+"/file", overflowID, overflowID, 0o644)
	checkOnDisk(t, s.upper+"/dir", overflowID, overflowID, 0o755)
	checkOnDisk(t, s.upper+"/link", overflowID, overflowID, 0o777)
	_, err = u.SetAttr(c, file, &SetAttrIn{Valid: SetUID | SetGID, UID: 1, GID: 2})
	must(t, err)
	checkOnDisk(t, s.upper+"/file", 0, 1, 0o644)
	if _, err := u.SetAttr(c, file, &SetAttrIn{Valid: SetUID, UID: 0}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("chown to an owner without a mapping: %v", err)
	}
}

// A map whose ranges are all empty is not the same as none: everybody is nobody.
func TestEmptyMap(t *testing.T) {
	s := newStack(t)
	m := []IDRange{{Disk: 0, Mount: 1}}
	u, err := s.openAs(Options{UIDMap: m, GIDMap: m})
	must(t, err)
	defer u.Close()
	_, a, err := u.Create(&Caller{}, u.Root(), "file", 0o666, unix.O_RDWR)
	must(t, err)
	if a.UID != overflowID || a.GID != overflowID {
		t.Errorf("the file shows %d:%d", a.UID, a.GID)
	}
	checkOnDisk(t, s.upper+"/file", overflowID, overflowID, 0o666)
}

// A squashed owner is shown and never written: what anybody makes is the server's on disk, and chown is forgotten. One that is not
// squashed is kept.
func TestSquash(t *testing.T) {
	for _, c := range []struct {
		name                           string
		uid, gid                       *uint32
		showUID, showGID, uidOn, gidOn uint32 // after chown 7:8
	}{
		{"both", new(uint32), new(uint32), 0, 0, 0, 0},
		{"user", &[]uint32{5}[0], nil, 5, 8, 0, 8},
		{"group", nil, &[]uint32{6}[0], 7, 6, 7, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStack(t)
			u, err := s.openAs(Options{SquashUID: c.uid, SquashGID: c.gid})
			must(t, err)
			defer u.Close()
			n, _, err := u.Create(&Caller{UID: 1000, GID: 1001}, u.Root(), "file", 0o644, unix.O_RDWR)
			must(t, err)
			var onDisk [2]uint32
			if c.uid == nil {
				onDisk[0] = 1000
			}
			if c.gid == nil {
				onDisk[1] = 1001
			}
			checkOnDisk(t, s.upper+"/file", onDisk[0], onDisk[1], 0o644)
			a, err := u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetUID | SetGID, UID: 7, GID: 8})
			must(t, err)
			if a.UID != c.showUID || a.GID != c.showGID {
				t.Errorf("the file shows %d:%d, want %d:%d", a.UID, a.GID, c.showUID, c.showGID)
			}
			checkOnDisk(t, s.upper+"/file", c.uidOn, c.gidOn, 0o644)
		})
	}
}

// A set-id bit of an owner that a user namespace does not map does nothing in a lower, and must not come alive in a copy that the
// server owns (CVE-2023-0386).
func TestCopyUpSetIDUnmapped(t *testing.T) {
	for _, c := range []struct {
		uid, gid  int
		namespace bool
		want      uint32
	}{
		{overflowID, 0, true, 0o755},
		{0, overflowID, true, 0o755},
		{1, 2, true, 0o6755},
		{overflowID, overflowID, false, 0o6755},
	} {
		s := newStack(t)
		must(t, os.Chown(s.lower+"/f", c.uid, c.gid))
		must(t, unix.Chmod(s.lower+"/f", 0o6755))
		u, err := s.openAs(Options{})
		must(t, err)
		defer u.Close()
		u.userNS = func() bool { return c.namespace }
		n, _, err := u.Lookup(u.Root(), "f")
		must(t, err)
		_, err = u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetMtimeNow})
		must(t, err)
		checkOnDisk(t, s.upper+"/f", uint32(c.uid), uint32(c.gid), c.want)
	}
}

// containers/storage gives the directory that it mounts on to the store's root whenever it asks for a mount. When there is a
// container with a map of its own, that is a chown of its root directory to an owner who has no mapping.
func TestChownRootUnmapped(t *testing.T) {
	s := newStack(t)
	m := []IDRange{{Disk: 0, Mount: 1, Len: 1000}}
	u, err := s.openAs(Options{UIDMap: m, GIDMap: m})
	must(t, err)
	defer u.Close()
	a, err := u.SetAttr(&Caller{}, u.Root(), &SetAttrIn{Valid: SetUID | SetGID})
	if err != nil || a.UID != 1 || a.GID != 1 {
		t.Errorf("chown of the root: %d:%d, %v", a.UID, a.GID, err)
	}
	checkOnDisk(t, s.upper, 0, 0, 0o755)
	if _, err := u.SetAttr(&Caller{}, u.Root(), &SetAttrIn{Valid: SetUID | SetMode}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("chown of the root with more than that: %v", err)
	}
}

// With noacl ACLs are not looked at, and not lost either: the group bits of a mode are the mask of an ACL, so that without it the
// group would have what only others were given.
func TestNoACLKeepsACLs(t *testing.T) {
	const tags = "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\x07\x00\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	acl := []byte(tags)
	s := newStack(t)
	must(t, os.Mkdir(s.lower+"/d", 0o755), os.Mkdir(s.upper+"/up", 0o755),
		unix.Setxattr(s.lower+"/f", xattrACLAccess, acl, 0), unix.Setxattr(s.lower+"/d", xattrACLDefault, acl, 0),
		unix.Setxattr(s.upper+"/up", xattrACLDefault, acl, 0))
	u, err := s.openAs(Options{NoACL: true})
	must(t, err)
	defer u.Close()
	f, _, err := u.Lookup(u.Root(), "f")
	must(t, err)
	_, err = u.SetAttr(&Caller{}, f, &SetAttrIn{Valid: SetMtimeNow})
	must(t, err)
	for _, dir := range []string{"d", "up"} {
		d, _, err := u.Lookup(u.Root(), dir)
		must(t, err)
		_, _, err = u.Mkdir(&Caller{Umask: 0o022}, d, "new", 0o777)
		must(t, err)
		_, _, err = u.Create(&Caller{Umask: 0o022}, d, "file", 0o666, unix.O_RDWR)
		must(t, err)
		checkOnDisk(t, s.upper+"/"+dir+"/new", 0, 0, 0o755)
		checkOnDisk(t, s.upper+"/"+dir+"/file", 0, 0, 0o644)
	}
	buf := make([]byte, 256)
	for path, attr := range map[string]string{"/f": xattrACLAccess, "/d": xattrACLDefault} {
		if n, err := unix.Getxattr(s.upper+path, attr, buf); err != nil || !bytes.Equal(buf[:n], acl) {
			t.Errorf("%s of the copy of %s: %q, %v", attr, path, buf[:max(n, 0)], err)
		}
	}
}

// What xattr_permissions keeps in attributes counts in later mounts without the option, too, and where the upper is a lower.
func TestOverridesOutlastOption(t *testing.T) {
	s := newStack(t)
	u, err := s.openAs(Options{XattrPermissions: XattrPermissionsUser})
	must(t, err)
	_, _, err = u.Create(&Caller{UID: 7, GID: 8}, u.Root(), "secret", 0o600, unix.O_RDWR)
	must(t, err)
	u.Close()
	checkSecret := func(u *Union, err error) {
		t.Helper()
		must(t, err)
		defer u.Close()
		_, a, err := u.Lookup(u.Root(), "secret")
		must(t, err)
		if a.UID != 7 || a.GID != 8 || a.Mode&0o7777 != 0o600 {
			t.Errorf("the file has owner %d:%d and mode %o", a.UID, a.GID, a.Mode)
		}
	}
	checkSecret(s.openAs(Options{}))
	above := newStack(t)
	above.lower = s.upper
	checkSecret(above.openAs(Options{}))
}

// With xattr_permissions, too, a chown costs the set-id bits of all but directories.
func TestOverrideChownSetID(t *testing.T) {
	u, err := newStack(t).openAs(Options{XattrPermissions: XattrPermissionsUser})
	must(t, err)
	defer u.Close()
	for typ, want := range map[uint32]uint32{unix.S_IFREG: 0o755, unix.S_IFIFO: 0o755, unix.S_IFSOCK: 0o755, unix.S_IFCHR: 0o755, unix.S_IFDIR: 0o6755} {
		name := fmt.Sprintf("%o", typ)
		var n *Node
		if typ == unix.S_IFDIR {
			n, _, err = u.Mkdir(&Caller{}, u.Root(), name, 0o755)
		} else {
			n, _, err = u.Mknod(&Caller{}, u.Root(), name, typ|0o755, unix.Mkdev(1, 3))
		}
		must(t, err)
		_, err = u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetMode, Mode: 0o6755})
		must(t, err)
		a, err := u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetUID, UID: 7})
		must(t, err)
		if got := a.Mode & 0o7777; got != want {
			t.Errorf("type %s has mode %o, want %o", name, got, want)
		}
	}
}

// An upper that does not take the attributes is refused at once, not with each change.
func TestOverridesRefused(t *testing.T) {
	s := newStack(t)
	m := &sys.Mutator{Hook: func(op string) error {
		if op == "setxattr" {
			return unix.EPERM
		}
		return nil
	}}
	u, err := s.openAs(Options{XattrPermissions: XattrPermissionsPrivileged, Mutator: m})
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("mounted: %v", err)
	}
	if err == nil {
		u.Close()
	}
}
