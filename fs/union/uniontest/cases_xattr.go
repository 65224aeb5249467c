package uniontest

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func xattrCases() []Case {
	low := Layer{Reg("f", "x"), Xattr("f", "user.low", "value"), Dirs("d"), Xattr("d", "user.low", "dir"), Sym("l", "f"), Fifo("p")}
	return []Case{
		{Name: "xattr/flags", Lowers: []Layer{low}, Run: func(c *C) {
			c.Put("up", "")
			for _, p := range []string{"f", "d", "up"} {
				c.OK(c.Setxattr(p, "user.k", []byte("1"), unix.XATTR_CREATE))
				c.Fails(c.Setxattr(p, "user.k", []byte("2"), unix.XATTR_CREATE), unix.EEXIST)
				c.OK(c.Setxattr(p, "user.k", []byte("3"), unix.XATTR_REPLACE))
				c.Fails(c.Setxattr(p, "user.none", []byte("4"), unix.XATTR_REPLACE), unix.ENODATA)
				c.OK(c.Setxattr(p, "user.k", nil, 0))
				Eq(c, "empty value", c.Attr(p, "user.k"), "")
				c.OK(c.Removexattr(p, "user.k"))
				c.Fails(c.Removexattr(p, "user.k"), unix.ENODATA)
				_, err := c.Getxattr(p, "user.k", nil)
				c.Fails(err, unix.ENODATA)
			}
			c.Fails(c.Setxattr("f", "user.low", []byte("2"), unix.XATTR_CREATE), unix.EEXIST)
			c.Fails(c.Setxattr("none", "user.k", nil, 0), unix.ENOENT)
		}},
		{Name: "xattr/sizes", Lowers: []Layer{low}, Run: func(c *C) {
			for range 2 {
				n, err := c.Getxattr("f", "user.low", nil)
				c.OK(err)
				Eq(c, "size", n, 5)
				_, err = c.Getxattr("f", "user.low", make([]byte, 4))
				c.Fails(err, unix.ERANGE)
				_, err = c.Listxattr("f", make([]byte, 3))
				c.Fails(err, unix.ERANGE)
				n, err = c.Listxattr("f", nil)
				c.OK(err)
				if n < len("user.low")+1 {
					c.Errorf("the list has %d bytes", n)
				}
				c.OK(c.Chmod("f", 0o600))
			}
			big := strings.Repeat("v", 3000)
			c.OK(c.Setxattr("f", "user.big", []byte(big), 0))
			if c.Attr("f", "user.big") != big {
				c.Error("a value of 3000 bytes changed")
			}
			c.Fails(c.Setxattr("f", "user."+strings.Repeat("n", 251), nil, 0), unix.ERANGE)
			c.Fails(c.Setxattr("f", "user.huge", make([]byte, 65537), 0), unix.E2BIG, unix.ENOSPC)
		}},
		{Name: "xattr/remove-lower", Lowers: []Layer{low}, Run: func(c *C) {
			c.OK(c.Removexattr("f", "user.low"))
			c.OK(c.Removexattr("d", "user.low"))
			Eq(c, "attributes left", len(c.Attrs("f"))+len(c.Attrs("d")), 0)
			c.OK(c.Remount())
			Eq(c, "attributes left", len(c.Attrs("f"))+len(c.Attrs("d")), 0)
		}},
		{Name: "xattr/merged-directory", Lowers: []Layer{{Dirs("d"), Xattr("d", "user.top", "t")}, {Dirs("d"), Xattr("d", "user.bottom", "b")}}, Run: func(c *C) {
			Eq(c, "attributes", strings.Join(c.Attrs("d"), " "), "user.top")
			c.Put("d/f", "")
			Eq(c, "attributes", strings.Join(c.Attrs("d"), " "), "user.top")
		}},
		{Name: "xattr/symlink", Lowers: []Layer{low}, Run: caseXattrSymlink},
		{Name: "xattr/special", Lowers: []Layer{low}, Run: func(c *C) {
			c.Fails(c.Setxattr("p", "user.k", []byte("v"), 0), unix.EPERM)
			if c.Is(InitialRoot) {
				c.OK(c.Setxattr("p", "trusted.k", []byte("v"), 0))
				Eq(c, "attribute", c.Attr("p", "trusted.k"), "v")
			}
		}},
		{Name: "xattr/namespaces", Lowers: []Layer{low}, Run: func(c *C) {
			c.Fails(c.Setxattr("f", "nonsense.k", nil, 0), unix.ENOTSUP)
			c.Fails(c.Setxattr("f", "user.", nil, 0), unix.EINVAL)
			if c.Is(InitialRoot) {
				c.OK(c.Setxattr("f", "trusted.k", []byte("t"), 0))
				c.OK(c.Setxattr("f", "security.k", []byte("s"), 0))
				c.OK(c.Remount())
				Eq(c, "trusted", c.Attr("f", "trusted.k"), "t")
				Eq(c, "security", c.Attr("f", "security.k"), "s")
			}
		}},
		{Name: "xattr/private-hidden", Lowers: []Layer{
			{Dirs("op", "m"), Opaque("op"), Xattr("m", "overlay.impure", "y"), Reg("f", "x"), Xattr("f", "overlay.origin", "junk"), Xattr("f", "user.k", "v")},
			{Reg("op/hidden", ""), Reg("m/x", "")},
		}, Run: caseXattrPrivate},
		{Name: "xattr/escaped", Needs: Trusted, Lowers: []Layer{{
			Dirs("d"), Xattr("d", "overlay.overlay.opaque", "y"), Reg("d/f", ""), Xattr("d/f", "overlay.overlay.overlay.metacopy", "m"),
		}, {Reg("d/below", "")}}, Run: func(c *C) {
			// One prefix comes off per level, and the mark counts for the inner overlay only.
			c.Lists("d", "below", "f")
			Eq(c, "unescaped mark", c.Attr("d", "trusted.overlay.opaque"), "y")
			Eq(c, "unescaped mark", c.Attr("d/f", "trusted.overlay.overlay.metacopy"), "m")
			Eq(c, "list", strings.Join(c.Attrs("d"), " "), "trusted.overlay.opaque")
			c.Put("d/new", "")
			c.OK(c.Remount())
			c.Lists("d", "below", "f", "new")
			Eq(c, "unescaped mark", c.Attr("d", "trusted.overlay.opaque"), "y")
		}},
		{Name: "xattr/many", Run: func(c *C) {
			c.Put("f", "")
			var want []string
			for i := range 30 {
				n := "user." + strings.Repeat("n", i+1)
				c.OK(c.Setxattr("f", n, []byte(n), 0))
				want = append(want, n)
			}
			slices.Sort(want)
			c.OK(c.Remount())
			if !slices.Equal(c.Attrs("f"), want) {
				c.Errorf("attributes are %v", c.Attrs("f"))
			}
		}},
	}
}

// caseXattrSymlink holds that attribute calls on a symlink never reach its target, in the union or outside.
func caseXattrSymlink(c *C) {
	c.OK(c.Symlink("/", "outside"))
	c.OK(c.Symlink("up", "up"))
	for _, p := range []string{"l", "outside", "up"} {
		c.Fails(c.Setxattr(p, "user.k", []byte("v"), 0), unix.EPERM)
		_, err := c.Getxattr(p, "user.low", nil)
		c.Fails(err, unix.ENODATA, unix.EPERM)
		Eq(c, p+" attributes", len(c.Attrs(p)), 0)
		c.Fails(c.Removexattr(p, "user.low"), unix.EPERM, unix.ENODATA)
		if c.Is(InitialRoot) {
			c.OK(c.Setxattr(p, "trusted.k", []byte("link"), 0))
			Eq(c, p+" attribute", c.Attr(p, "trusted.k"), "link")
		}
		c.OK(c.Chown(p, 5, 5))
		c.OK(c.Utimens(p, Old(), Old()))
		Eq(c, p+" owner", c.Stat(p).UID, 5)
	}
	Eq(c, "attributes of the target", strings.Join(c.Attrs("f"), " "), "user.low")
	Eq(c, "owner of the target", c.Stat("f").UID, 0)
	if _, err := unix.Lgetxattr("/", "trusted.k", nil); err == nil {
		c.Error("an attribute was set outside the layers")
	}
}

func caseXattrPrivate(c *C) {
	own := prefix(c.factory) + "overlay."
	for _, p := range []string{"op", "m", "f"} {
		for _, n := range c.Attrs(p) {
			if strings.HasPrefix(n, own) {
				c.Errorf("%s shows %s", p, n)
			}
		}
	}
	_, err := c.Getxattr("op", own+"opaque", nil)
	c.Fails(err, unix.ENODATA, unix.EPERM, unix.ENOTSUP)
	c.Lists("op")
	c.Append("f", "y")
	c.OK(c.Rename("f", "op/f", 0))
	Eq(c, "attributes", strings.Join(c.Attrs("op/f"), " "), "user.k")
	// Marks that an application sets are its own: given back, and without effect here.
	c.OK(c.Setxattr("m", own+"opaque", []byte("y"), 0))
	Eq(c, "given back", c.Attr("m", own+"opaque"), "y")
	c.Lists("m", "x")
	c.OK(c.Remount())
	c.Lists("m", "x")
	Eq(c, "given back", c.Attr("m", own+"opaque"), "y")
	c.OK(c.Removexattr("m", own+"opaque"))
	_, err = c.Getxattr("m", own+"opaque", nil)
	c.Fails(err, unix.ENODATA)
}
