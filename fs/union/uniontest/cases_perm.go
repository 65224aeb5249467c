package uniontest

import (
	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

func permissionCases() []Case {
	private := Layer{
		RegMode("f600", "secret", 0o600), RegMode("f000", "secret", 0), Dir("d700", 0o700), Reg("d700/f", "secret"),
		Dir("d711", 0o711), Reg("d711/f", "visible"), RegMode("exec", "x", 0o711), Sym("l", "f600"),
		RegMode("own", "mine", 0o600), Owner("own", 65534, 65534), Dir("owndir", 0o700), Owner("owndir", 65534, 65534),
		RegMode("group", "grouped", 0o660), Owner("group", 0, 100), RegMode("not-group", "", 0o606), Owner("not-group", 0, 100),
	}
	return []Case{
		{Name: "permission/other-user", Needs: Mounted, Lowers: []Layer{private}, Run: caseOtherUser},
		{Name: "permission/owner", Needs: Mounted, Lowers: []Layer{private}, Run: caseOwner},
		{Name: "permission/groups", Needs: Mounted, Lowers: []Layer{private}, Run: func(c *C) {
			member := c.On(testenv.Cred{UID: 1000, GID: 1000, Groups: []int{100}})
			member.Has("group", "grouped")
			member.Append("group", "+")
			_, err := member.Open("not-group", unix.O_RDONLY, 0)
			c.Fails(err, unix.EACCES)
			other := c.On(User(1000))
			_, err = other.Open("group", unix.O_RDONLY, 0)
			c.Fails(err, unix.EACCES)
		}},
		{Name: "permission/sticky", Needs: Mounted, Lowers: []Layer{{
			Dir("t", 0o1777), RegMode("t/root", "r", 0o666), RegMode("t/nobody", "n", 0o666), Owner("t/nobody", 65534, 65534),
			RegMode("t/user", "u", 0o666), Owner("t/user", 1000, 1000), Dir("t/dir", 0o777),
		}}, Run: caseSticky},
		{Name: "permission/set-gid-directory", Lowers: []Layer{{Dir("g", 0o777), Owner("g", 0, 100), Perm("g", 0o2777)}}, Run: caseSetGIDDirectory},
		{Name: "permission/create-supplementary-group", Needs: Mounted, Lowers: []Layer{{Dir("g", 0o777), Owner("g", 0, 100), Perm("g", 0o2777)}}, Run: func(c *C) {
			// Who is a member of the directory's group keeps the set-gid bit of a new file, who is not loses it.
			member := c.On(testenv.Cred{UID: 1000, GID: 1000, Groups: []int{100}})
			member.PutMode("g/member", "", 0o2775)
			Eq(c, "mode", c.Stat("g/member").Perm(), 0o2775)
			Eq(c, "group", c.Stat("g/member").GID, 100)
			other := c.On(User(1000))
			other.PutMode("g/other", "", 0o2775)
			Eq(c, "mode", c.Stat("g/other").Perm(), 0o775)
			Eq(c, "group", c.Stat("g/other").GID, 100)
		}},
		{Name: "permission/created-owner", Run: func(c *C) {
			c.OK(c.Chmod(".", 0o777))
			u := c.On(testenv.Cred{UID: 1000, GID: 1001})
			u.Put("f", "x")
			c.OK(u.Mkdir("d", 0o755))
			c.OK(u.Symlink("t", "l"))
			c.OK(u.Mknod("p", unix.S_IFIFO|0o644, 0))
			c.OK(u.Link("f", "h"))
			for _, p := range []string{"f", "d", "l", "p", "h"} {
				st := c.Stat(p)
				Eq(c, p+" owner", [2]uint32{st.UID, st.GID}, [2]uint32{1000, 1001})
			}
		}},
		{Name: "permission/kill-set-id", Needs: Mounted, Lowers: []Layer{{
			RegMode("f", "content", 0o777), Perm("f", 0o6777), RegMode("g", "content", 0o777), Perm("g", 0o6777),
			RegMode("h", "content", 0o777), Perm("h", 0o6777), RegMode("i", "content", 0o767), Perm("i", 0o2767),
			RegMode("j", "content", 0o777), Perm("j", 0o6777),
		}}, Run: caseKillSetID},
		{Name: "permission/root-keeps-set-id-by-write", Lowers: []Layer{{RegMode("f", "content", 0o755), Perm("f", 0o6755)}}, Needs: Mounted | InitialRoot, Run: func(c *C) {
			c.Append("f", "x")
			Eq(c, "mode", c.Stat("f").Perm(), 0o6755)
		}},
		{Name: "permission/chown", Needs: Mounted, Lowers: []Layer{{Reg("f", ""), Owner("f", 1000, 1000), Perm("f", 0o6755), Dir("d", 0o755), Owner("d", 1000, 1000), Perm("d", 0o6755)}}, Run: func(c *C) {
			u := c.On(testenv.Cred{UID: 1000, GID: 1000, Groups: []int{100}})
			c.Fails(u.Chown("f", 1001, -1), unix.EPERM)
			c.Fails(u.Chown("f", -1, 101), unix.EPERM)
			c.OK(u.Chown("f", -1, 100))
			Eq(c, "mode after chown of a file", c.Stat("f").Perm(), 0o755)
			c.OK(u.Chown("d", -1, 100))
			Eq(c, "mode after chown of a directory", c.Stat("d").Perm(), 0o6755)
			c.Fails(u.Chmod("none", 0o600), unix.ENOENT)
			c.OK(u.Chmod("f", 0o2750))
			Eq(c, "mode", c.Stat("f").Perm(), 0o2750)
			c.OK(c.Chown("f", -1, 101))
			c.OK(u.Chmod("f", 0o2750))
			Eq(c, "set-gid bit of a group that the caller is not in", c.Stat("f").Perm(), 0o750)
		}},
		{Name: "permission/utimens", Needs: Mounted, Lowers: []Layer{{RegMode("w", "", 0o666), RegMode("r", "", 0o644)}}, Run: func(c *C) {
			n := c.On(Nobody())
			c.OK(n.Utimens("w", Now(), Now()))
			c.Fails(n.Utimens("w", Old(), Old()), unix.EPERM)
			c.Fails(n.Utimens("r", Now(), Now()), unix.EACCES)
		}},
		{Name: "permission/search", Needs: Mounted, Lowers: []Layer{{Dir("a", 0o700), Dir("a/b", 0o777), RegMode("a/b/f", "x", 0o666)}}, Run: func(c *C) {
			// Cached names grant nothing.
			c.Has("a/b/f", "x")
			c.Names("a/b")
			n := c.On(Nobody())
			_, err := n.Lstat("a/b/f")
			c.Fails(err, unix.EACCES)
			c.OK(c.Chmod("a", 0o711))
			n.Has("a/b/f", "x")
			_, err = n.ReadDir("a")
			c.Fails(err, unix.EACCES)
			c.OK(c.Chmod("a", 0o700))
			_, err = n.Lstat("a/b/f")
			c.Fails(err, unix.EACCES)
		}},
	}
}

func caseOtherUser(c *C) {
	n := c.On(Nobody())
	for _, p := range []string{"f600", "f000", "d700/f", "l"} {
		_, err := n.Open(p, unix.O_RDONLY, 0)
		c.Fails(err, unix.EACCES)
		_, err = n.Open(p, unix.O_WRONLY, 0)
		c.Fails(err, unix.EACCES)
	}
	n.Has("d711/f", "visible")
	for what, err := range map[string]error{
		"create":      ignore(n.Open("new", unix.O_CREAT|unix.O_WRONLY, 0o600)),
		"tmpfile":     ignore(n.Open(".", unix.O_TMPFILE|unix.O_WRONLY, 0o600)),
		"mkdir":       n.Mkdir("new", 0o700),
		"mknod":       n.Mknod("new", unix.S_IFIFO|0o600, 0),
		"symlink":     n.Symlink("x", "new"),
		"unlink":      n.Unlink("f600"),
		"rmdir":       n.Rmdir("d711"),
		"rename":      n.Rename("f600", "new", 0),
		"rename-into": n.Rename("owndir", "d711/new", 0),
		"read-dir":    ignore(n.ReadDir("d700")),
		"truncate":    n.Truncate("d711/f", 0),
		"setxattr":    n.Setxattr("d711/f", "user.k", nil, 0),
		"getxattr":    ignore(n.Getxattr("f600", "user.k", nil)),
	} {
		if err == nil {
			c.Errorf("%s is allowed", what)
		} else {
			c.Fails(err, unix.EACCES)
		}
	}
	c.Fails(n.Chmod("d711/f", 0o666), unix.EPERM)
	c.Fails(n.Chown("d711/f", 65534, 65534), unix.EPERM)
	c.Fails(n.Setxattr("d711/f", aclAccess, []byte(aclBytes()), 0), unix.EPERM)
	if _, err := n.Lstat("d711/f"); err != nil {
		c.Error(err)
	}
	if _, ok := c.UpperStat("d711"); ok {
		c.Error("a refused operation copied up")
	}
}

func ignore[T any](_ T, err error) error { return err }

func caseOwner(c *C) {
	n := c.On(Nobody())
	n.Has("own", "mine")
	n.Append("own", "+")
	n.Put("owndir/new", "x")
	c.OK(n.Mkdir("owndir/sub", 0o700))
	c.OK(n.Rename("owndir/new", "owndir/sub/new", 0))
	c.OK(n.Chmod("own", 0))
	_, err := n.Open("own", unix.O_RDONLY, 0)
	c.Fails(err, unix.EACCES)
	c.Has("own", "mine+")
	c.OK(n.Unlink("owndir/sub/new"))
	c.OK(n.Rmdir("owndir/sub"))
	st := c.Stat("own")
	Eq(c, "owner", st.UID, 65534)
	// A file without a write bit can be written by who creates it, not by a later open.
	f, err := n.Open("owndir/ro", unix.O_CREAT|unix.O_RDWR, 0o444)
	c.OK(err)
	c.WriteAll(f, "x", 0)
	c.OK(f.Close())
	_, err = n.Open("owndir/ro", unix.O_RDWR, 0)
	c.Fails(err, unix.EACCES)
}

func caseSticky(c *C) {
	n, u := c.On(Nobody()), c.On(User(1000))
	c.Fails(n.Unlink("t/root"), unix.EPERM)
	c.Fails(n.Unlink("t/user"), unix.EPERM)
	c.Fails(n.Rename("t/user", "t/x", 0), unix.EPERM)
	c.Fails(n.Rename("t/nobody", "t/user", 0), unix.EPERM)
	c.Fails(n.Rename("t/nobody", "t/user", unix.RENAME_EXCHANGE), unix.EPERM)
	c.Fails(n.Rmdir("t/dir"), unix.EPERM)
	n.Append("t/user", "+")
	c.OK(n.Rename("t/nobody", "t/mine", 0))
	c.OK(n.Unlink("t/mine"))
	c.OK(u.Unlink("t/user"))
	n.Put("t/new", "")
	c.Fails(u.Unlink("t/new"), unix.EPERM)
	c.OK(n.Unlink("t/new"))
	Eq(c, "mode", c.Stat("t").Perm(), 0o1777)
	c.Lists("t", "dir", "root")
}

func caseSetGIDDirectory(c *C) {
	u := c.On(testenv.Cred{UID: 1000, GID: 1000, Umask: 0o022})
	u.PutMode("g/f", "", 0o666)
	c.OK(u.Mkdir("g/d", 0o777))
	c.OK(u.Symlink("t", "g/l"))
	c.OK(u.Mknod("g/p", unix.S_IFIFO|0o666, 0))
	c.OK(u.Mkdir("g/d/e", 0o777))
	for _, p := range []string{"g/f", "g/d", "g/l", "g/p", "g/d/e"} {
		st := c.Stat(p)
		Eq(c, p+" owner", [2]uint32{st.UID, st.GID}, [2]uint32{1000, 100})
	}
	Eq(c, "file mode", c.Stat("g/f").Perm(), 0o644)
	Eq(c, "directory mode", c.Stat("g/d").Perm(), 0o2755)
	Eq(c, "directory mode", c.Stat("g/d/e").Perm(), 0o2755)
	f, err := u.Open("g", unix.O_TMPFILE|unix.O_WRONLY, 0o600)
	c.OK(err)
	Eq(c, "group of a temporary file", c.StatFile(f).GID, 100)
	c.OK(f.Close())
	Eq(c, "mode of the directory", c.Stat("g").Perm(), 0o2777)
}

func caseKillSetID(c *C) {
	n := c.On(Nobody())
	n.Append("f", "x")
	Eq(c, "mode after a write", c.Stat("f").Perm(), 0o777)
	c.OK(n.Truncate("g", 3))
	Eq(c, "mode after truncate", c.Stat("g").Perm(), 0o777)
	f, err := n.Open("h", unix.O_WRONLY|unix.O_TRUNC, 0)
	c.OK(err)
	c.OK(f.Close())
	Eq(c, "mode after O_TRUNC", c.Stat("h").Perm(), 0o777)
	// Without group execution the set-gid bit means mandatory locking and stays for who is in the group; others lose
	// it since Linux 6.1.
	n.Append("i", "x")
	f, err = n.Open("j", unix.O_WRONLY, 0)
	c.OK(err)
	c.OK(f.Fallocate(0, 0, 4096))
	c.OK(f.Close())
	Eq(c, "mode after fallocate", c.Stat("j").Perm(), 0o777)
	// A write that copies up and later ones alike.
	c.OK(c.Chmod("f", 0o6777))
	n.Append("f", "y")
	Eq(c, "mode after a second write", c.Stat("f").Perm(), 0o777)
}

func aclCases() []Case {
	return []Case{
		{Name: "acl/access", Needs: Mounted, Lowers: []Layer{{RegMode("f", "x", 0o600), Reg("d/f", "y"), Dir("d", 0o700)}}, Run: func(c *C) {
			c.OK(c.Setxattr("f", aclAccess, []byte(aclBytes(aclUser(65534, 4), aclMask(4))), 0))
			n := c.On(Nobody())
			n.Has("f", "x")
			_, err := n.Open("f", unix.O_RDWR, 0)
			c.Fails(err, unix.EACCES)
			c.OK(c.Setxattr("d", aclAccess, []byte(aclBytes(aclUser(65534, 1), aclMask(7))), 0))
			n.Has("d/f", "y")
			_, err = n.ReadDir("d")
			c.Fails(err, unix.EACCES)
			c.OK(c.Remount())
			c.On(Nobody()).Has("f", "x")
			c.OK(c.Removexattr("f", aclAccess))
			c.OK(c.Chmod("f", 0o600))
			_, err = c.On(Nobody()).Open("f", unix.O_RDONLY, 0)
			c.Fails(err, unix.EACCES)
		}},
		{Name: "acl/in-lower", Needs: Mounted, Lowers: []Layer{{
			RegMode("f", "x", 0o600), Xattr("f", aclAccess, aclBytes(aclUser(65534, 6), aclGroup(100, 4), aclMask(6))),
			RegMode("deny", "x", 0o666), Xattr("deny", aclAccess, aclBytes(aclUser(65534, 0), aclMask(6))),
		}}, Run: func(c *C) {
			n := c.On(Nobody())
			n.Has("f", "x")
			n.Append("f", "+")
			c.On(testenv.Cred{UID: 7, GID: 7, Groups: []int{100}}).Has("f", "x+")
			_, err := n.Open("deny", unix.O_RDONLY, 0)
			c.Fails(err, unix.EACCES)
			c.On(User(7)).Has("deny", "x")
		}},
		{Name: "acl/chmod-and-mask", Lowers: []Layer{{Reg("f", "x"), Xattr("f", aclAccess, aclBytes(aclUser(5, 7), aclMask(7)))}}, Run: func(c *C) {
			Eq(c, "mode", c.Stat("f").Perm(), 0o674)
			c.OK(c.Chmod("f", 0o640))
			Eq(c, "mode", c.Stat("f").Perm(), 0o640)
			for _, e := range parseACL(c.Attr("f", aclAccess)) {
				switch e.tag {
				case tagMask:
					Eq(c, "mask", e.perm, 4)
				case tagUser:
					Eq(c, "named user", e.perm, 7)
				case tagGroupObj:
					Eq(c, "owning group", e.perm, 4)
				case tagOther:
					Eq(c, "others", e.perm, 0)
				}
			}
			// An ACL that says no more than a mode becomes one.
			c.OK(c.Setxattr("f", aclAccess, []byte(aclBytes()), 0))
			Eq(c, "mode", c.Stat("f").Perm(), 0o644)
			_, err := c.Getxattr("f", aclAccess, nil)
			c.Fails(err, unix.ENODATA)
		}},
		{Name: "acl/default", Lowers: []Layer{{Dirs("d"), Xattr("d", aclDefault, aclBytes(aclUser(5, 7), aclEntry{tagUserObj, 7, noID}, aclMask(7), aclEntry{tagOther, 0, noID}))}}, Run: caseACLDefault},
		{Name: "acl/default-set", Run: func(c *C) {
			c.OK(c.Mkdir("d", 0o755))
			c.OK(c.Setxattr("d", aclDefault, []byte(aclBytes(aclUser(9, 6), aclMask(6))), 0))
			c.Put("d/f", "")
			c.Attr("d/f", aclAccess)
			c.OK(c.Remount())
			c.Put("d/g", "")
			Eq(c, "inherited", c.Attr("d/g", aclAccess), c.Attr("d/f", aclAccess))
			c.OK(c.Removexattr("d", aclDefault))
			c.Put("d/h", "")
			_, err := c.Getxattr("d/h", aclAccess, nil)
			c.Fails(err, unix.ENODATA)
		}},
		{Name: "acl/errors", Lowers: []Layer{{Reg("f", "x"), Sym("l", "f")}}, Run: func(c *C) {
			c.Fails(c.Setxattr("f", aclDefault, []byte(aclBytes()), 0), unix.EACCES)
			c.Fails(c.Setxattr("f", aclAccess, []byte("junk"), 0), unix.EINVAL, unix.ENOTSUP)
			c.Fails(c.Setxattr("l", aclAccess, []byte(aclBytes()), 0), unix.ENOTSUP)
			c.Fails(c.Setxattr("f", aclAccess, []byte(aclBytes(aclUser(5, 4))), 0), unix.EINVAL)
		}},
	}
}

func caseACLDefault(c *C) {
	u := c.On(testenv.Cred{Umask: 0o077})
	u.PutMode("d/f", "", 0o666)
	c.OK(u.Mkdir("d/s", 0o777))
	c.OK(u.Mknod("d/p", unix.S_IFIFO|0o666, 0))
	c.OK(u.Symlink("t", "d/l"))
	// The umask does not count where a default ACL does.
	Eq(c, "file", c.Stat("d/f").Perm(), 0o660)
	Eq(c, "fifo", c.Stat("d/p").Perm(), 0o660)
	Eq(c, "directory", c.Stat("d/s").Perm(), 0o770)
	Eq(c, "default of the subdirectory", c.Attr("d/s", aclDefault), c.Attr("d", aclDefault))
	for _, e := range parseACL(c.Attr("d/f", aclAccess)) {
		switch e.tag {
		case tagUser:
			Eq(c, "named user", [2]uint32{e.id, uint32(e.perm)}, [2]uint32{5, 7})
		case tagMask:
			Eq(c, "mask", e.perm, 6)
		}
	}
	f, err := u.Open("d", unix.O_TMPFILE|unix.O_RDWR, 0o666)
	c.OK(err)
	Eq(c, "temporary file", c.StatFile(f).Perm(), 0o660)
	c.OK(f.Close())
	u.PutMode("d/s/deep", "", 0o600)
	Eq(c, "deeper file", c.Stat("d/s/deep").Perm(), 0o600)
	_, err = c.Getxattr("d/l", aclAccess, nil)
	c.Fails(err, unix.ENOTSUP, unix.ENODATA)
}
