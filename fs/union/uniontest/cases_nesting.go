package uniontest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/testenv"
)

const escaped = "what plyfs escapes for its guest, the kernel's overlayfs does not give back"

func nestingCases() []Case {
	low := []Layer{{Reg("f", "x"), Reg("d/y", "y")}, {Reg("d/z", "z")}}
	return []Case{
		{Name: "nesting/guest-zero-device", Not: PlainRenames, Lowers: low, NoCross: escaped, Run: caseGuestWhiteout},
		{Name: "nesting/guest-wh-names", Lowers: low, NoCross: escaped, Run: caseGuestNames},
		{Name: "nesting/guest-xattrs", Lowers: low, NoCross: escaped, Run: caseGuestXattrs},
		{Name: "nesting/aufs-guest-names", Options: []string{"whiteout=aufs"}, Not: Kernel, Lowers: low, NoCross: escaped, Run: caseGuestNames},
		{Name: "nesting/aufs-guest-names-removed", Options: []string{"whiteout=aufs"}, Not: Kernel, NoCross: escaped, Lowers: []Layer{{
			Reg("d/.wh.x", "w"), Xattr("d/.wh.x", "overlay.plyfs.literal", "y"), Dirs("d/.wh.y"), Sym("d/.wh.", "t"), Reg("d/z", "z"),
			Reg("e/.wh..opq", "w"), Xattr("e/.wh..opq", "overlay.plyfs.literal", "y"), Reg("e/z", "z"),
		}}, Run: func(c *C) {
			c.OK(c.Unlink("d/.wh.x"))
			c.OK(c.Rmdir("d/.wh.y"))
			c.OK(c.Rename("d/.wh.", "s", 0))
			c.Lists("d", "z")
			c.Fails(c.Unlink("e/.wh..opq"), unix.EINVAL) // its whiteout is the sentinel
			c.OK(c.Remount())
			c.Lists("d", "z")
			c.Lists("e", ".wh..opq", "z")
			c.Absent("d/.wh.x")
			c.Put("d/.wh.x", "new")
			c.OK(c.Remount())
			c.Has("d/.wh.x", "new")
			c.OK(c.Unlink("d/.wh.x"))
			c.Remove("d")
			c.Lists(".", "e", "s")
		}},
		{Name: "nesting/guest-wh-directory", Not: Kernel, Lowers: low, NoCross: escaped, Run: func(c *C) {
			c.OK(c.Mkdir("d/.wh..wh.plnk", 0o755))
			c.Put("d/.wh..wh.plnk/f", "x")
			c.OK(c.Remount())
			c.Has("d/.wh..wh.plnk/f", "x")
			c.Fails(c.Rmdir("d/.wh..wh.plnk"), unix.ENOTEMPTY)
			c.OK(c.Rename("d/.wh..wh.plnk", "d/p", 0))
			c.OK(c.Rename("d/p", "d/.wh..wh.orph", 0))
			c.OK(c.Remount())
			c.Has("d/.wh..wh.orph/f", "x")
		}},
		{Name: "nesting/guest-wh-devices", Not: Kernel | PlainRenames, Lowers: low, NoCross: escaped, Run: caseGuestDevices},
		{
			Name: "nesting/guest-wh-names-in-lower", Not: Kernel, NoCross: escaped,
			Lowers: []Layer{{Reg("y", "y"), Reg(".wh.y", "w"), Xattr(".wh.y", "overlay.plyfs.literal", "y")}}, Run: func(c *C) {
				c.Lists(".", ".wh.y", "y")
				c.OK(c.Chmod(".wh.y", 0o600))
				c.OK(c.Remount())
				c.Has("y", "y")
				c.Append(".wh.y", "+")
				c.OK(c.Remount())
				c.Has("y", "y")
				c.Has(".wh.y", "w+")
			},
		},
		{
			Name: "nesting/own-wh-names", Not: Kernel, NoCross: escaped, Lowers: []Layer{{Reg("f", "x"), Reg("d/g", "x")}},
			Upper: Layer{WhiteoutAUFS("f"), Dirs("d"), OpaqueAUFS("d")}, Run: func(c *C) {
				c.Put("n", "n")
				_, err := c.Open(".wh.f", unix.O_CREAT|unix.O_WRONLY, 0o644)
				c.Fails(err, unix.EINVAL)
				c.Fails(c.Mkdir("d/.wh..wh..opq", 0o755), unix.EINVAL)
				c.Fails(c.Rename("n", ".wh.f", 0), unix.EINVAL)
				c.Fails(c.Link("n", ".wh.f"), unix.EINVAL)
				c.Lists(".", "d", "n")
				c.Lists("d")
			},
		},
		{
			Name: "nesting/special-copied-up", Not: Kernel | PlainRenames, NoCross: escaped, Lowers: []Layer{{
				Dirs("d"), Reg("d/dev", ""), Xattr("d/dev", "overlay.plyfs.special", "0,0,20600,0:0"), Xattr("d", "overlay.plyfs.specials", "y"),
			}}, Run: caseSpecialCopiedUp,
		},
		{Name: "nesting/kernel-upper-on-it", Needs: Mounted | Trusted, Not: Kernel, NoCross: escaped, Run: caseKernelUpperOnIt},
		{Name: "nesting/kernel-lower-on-it", Needs: Mounted | Trusted, Not: Kernel | Passthrough, Lowers: low, Run: caseKernelLowerOnIt},
		{Name: "nesting/itself-on-kernel", Needs: Mounted | Trusted, Not: Kernel, Run: caseItselfOnKernel},
		{Name: "nesting/itself-on-itself", Needs: Mounted, Not: Kernel, NoCross: escaped, Run: caseItselfOnItself},
	}
}

func caseGuestWhiteout(c *C) {
	err := c.Mknod("d/dev", unix.S_IFCHR|0o600, 0)
	if !c.Differs("nested-whiteout") {
		c.Fails(err, unix.EPERM)
		return
	}
	c.OK(err)
	c.OK(c.Mknod("f2", unix.S_IFCHR|0o600, 0))
	check := func() {
		c.Helper()
		c.Lists("d", "dev", "y", "z")
		st := c.Stat("d/dev")
		Eq(c, "mode", st.Mode, unix.S_IFCHR|0o600)
		Eq(c, "device", st.Rdev, 0)
		c.Lists(".", "d", "f", "f2")
	}
	check()
	c.OK(c.Remount())
	check()
	c.OK(c.Chmod("d/dev", 0o640))
	c.OK(c.Rename("d/dev", "d/y", 0))
	Eq(c, "mode", c.Stat("d/y").Mode, unix.S_IFCHR|0o640)
	c.OK(c.Rename("f2", "f", unix.RENAME_EXCHANGE))
	c.Has("f2", "x")
	c.OK(c.Link("d/y", "d/z2"))
	Eq(c, "links", c.Stat("d/y").Nlink, 2)
	c.OK(c.Remount())
	c.Lists("d", "y", "z", "z2")
	Eq(c, "type", c.Stat("f").Type(), unix.S_IFCHR)
	c.OK(c.Unlink("d/y"))
	c.OK(c.Unlink("f"))
	c.OK(c.Remount())
	c.Lists("d", "z", "z2")
	c.Absent("f")
}

// caseGuestDevices: what the upper keeps as an empty file is no whiteout on account of its name, however it came by that.
func caseGuestDevices(c *C) {
	c.OK(c.Mknod(".wh.f", unix.S_IFCHR|0o600, 0))
	c.OK(c.Mknod("dev", unix.S_IFCHR|0o600, 0))
	c.OK(c.Link("dev", "d/.wh.z"))
	c.OK(c.Rename("dev", "d/.wh.y", 0))
	check := func() {
		c.Helper()
		c.Lists(".", ".wh.f", "d", "f")
		c.Lists("d", ".wh.y", ".wh.z", "y", "z")
		c.Has("f", "x")
		c.Has("d/z", "z")
		Eq(c, "type", c.Stat(".wh.f").Type(), unix.S_IFCHR)
	}
	check()
	c.OK(c.Remount())
	check()
}

// caseSpecialCopiedUp: a directory with the file that stands for a 0:0 device says so after a copy-up, too: as a lower it would have an
// empty file.
func caseSpecialCopiedUp(c *C) {
	Eq(c, "type", c.Stat("d/dev").Type(), unix.S_IFCHR)
	c.OK(c.Chmod("d/dev", 0o640))
	for _, ns := range [...]*ovl.Names{ovl.Trusted(), ovl.User()} {
		if n, _ := unix.Getxattr(filepath.Join(c.Spec.Upper, "d"), ns.Specials, nil); n > 0 {
			return
		}
	}
	c.Error("the upper directory has no mark")
}

func caseGuestNames(c *C) {
	c.Put("d/.wh.y", "not a whiteout")
	c.Put("d/.wh..wh..opq", "")
	c.OK(c.Mkdir("d/.wh.dir", 0o755))
	c.Put("d/.wh.dir/.wh.", "odd")
	c.OK(c.Symlink("t", ".wh.f"))
	if !c.Is(Kernel) && !c.Differs("guest-wh-names") {
		return
	}
	check := func() {
		c.Helper()
		c.Lists("d", ".wh.y", ".wh..wh..opq", ".wh.dir", "y", "z")
		c.Lists("d/.wh.dir", ".wh.")
		c.Has("d/.wh.y", "not a whiteout")
		c.Has("d/y", "y")
		c.Has("f", "x")
		Eq(c, "type", c.Stat(".wh.f").Type(), unix.S_IFLNK)
	}
	check()
	c.OK(c.Remount())
	check()
	c.OK(c.Rename("d/.wh.y", "d/.wh.z", 0))
	c.OK(c.Rename("d/.wh..wh..opq", "plain", 0))
	c.OK(c.Unlink(".wh.f"))
	c.Remove("d/.wh.dir")
	c.OK(c.Remount())
	c.Lists("d", ".wh.z", "y", "z")
	c.Lists(".", "d", "f", "plain")
	c.OK(c.Unlink("d/.wh.z"))
	c.Lists("d", "y", "z")
}

func caseGuestXattrs(c *C) {
	for _, space := range []string{"trusted.", "user."} {
		if space == "trusted." && !c.Is(InitialRoot) {
			continue
		}
		for _, n := range []string{"overlay.opaque", "overlay.redirect", "overlay.metacopy", "overlay.whiteout", "overlay.overlay.opaque"} {
			p := "d"
			if n == "overlay.metacopy" || n == "overlay.whiteout" {
				p = "d/y"
			}
			c.OK(c.Setxattr(p, space+n, []byte("y"), 0))
			Eq(c, "given back", c.Attr(p, space+n), "y")
			if !slices.Contains(c.Attrs(p), space+n) {
				c.Errorf("%s is not listed: %v", space+n, c.Attrs(p))
			}
		}
	}
	check := func() {
		c.Helper()
		c.Lists("d", "y", "z")
		c.Has("d/y", "y")
		c.Has("d/z", "z")
	}
	check()
	c.OK(c.Remount())
	check()
	Eq(c, "given back", c.Attr("d", "user.overlay.opaque"), "y")
	c.OK(c.Removexattr("d", "user.overlay.opaque"))
	if slices.Contains(c.Attrs("d"), "user.overlay.opaque") {
		c.Error("a removed attribute is listed")
	}
}

// inner makes directories for an overlay inside the tree and returns their paths.
func (c *C) inner(names ...string) map[string]string {
	c.Helper()
	dirs := make(map[string]string)
	for _, n := range names {
		c.OK(c.Mkdir(n, 0o755))
		dirs[n] = filepath.Join(c.Root(), n)
	}
	return dirs
}

// mountPoint makes a directory outside of the tree.
func (c *C) mountPoint(name string) string {
	c.Helper()
	m := filepath.Join(c.Spec.Base, name)
	c.OK(os.MkdirAll(m, 0o755))
	return m
}

// useInner changes things in a mounted union, which needs its upper to take whiteouts, opaque marks and redirects.
func (c *C) useInner(m string) {
	c.Helper()
	c.OK(os.WriteFile(m+"/new", []byte("new"), 0o600))
	c.OK(os.Remove(m + "/gone"))
	c.OK(os.RemoveAll(m + "/dir"))
	c.OK(os.Mkdir(m+"/dir", 0o755))
	c.OK(os.Rename(m+"/moved", m+"/moved2"))
	c.checkInner(m)
}

func (c *C) checkInner(m string) {
	c.Helper()
	names, err := os.ReadDir(m)
	c.OK(err)
	var got []string
	for _, n := range names {
		got = append(got, n.Name())
	}
	Eq(c, "the inner union", strings.Join(got, " "), "dir moved2 new")
	names, err = os.ReadDir(m + "/dir")
	c.OK(err)
	Eq(c, "entries of an opaque directory", len(names), 0)
	text, err := os.ReadFile(m + "/moved2/f")
	c.OK(err)
	Eq(c, "content", string(text), "moved")
}

func innerLower() Layer {
	return Layer{Reg("gone", "x"), Reg("dir/hidden", "x"), Reg("moved/f", "moved")}
}

func caseKernelUpperOnIt(c *C) {
	dirs := c.inner("l", "u", "w")
	c.OK(innerLower().Apply(&LayerDir{Root: dirs["l"], Prefix: "trusted."}))
	m := c.mountPoint("inner")
	o := testenv.Overlay{Lowers: []string{dirs["l"]}, Upper: dirs["u"], Work: dirs["w"], Options: []string{"redirect_dir=on", "index=off"}}
	c.OK(testenv.MountOverlay(o, m))
	c.useInner(m)
	testenv.Unmount(c.T, m)
	c.OK(c.Remount())
	c.OK(testenv.MountOverlay(o, m))
	c.checkInner(m)
	testenv.Unmount(c.T, m)
}

func caseKernelLowerOnIt(c *C) {
	u, w, m := c.mountPoint("iu"), c.mountPoint("iw"), c.mountPoint("im")
	c.OK(testenv.MountOverlay(testenv.Overlay{Lowers: []string{c.Root()}, Upper: u, Work: w}, m))
	text, err := os.ReadFile(m + "/d/z")
	c.OK(err)
	Eq(c, "content", string(text), "z")
	c.OK(os.WriteFile(m+"/d/z", []byte("changed"), 0o600))
	c.OK(os.Remove(m + "/f"))
	testenv.Unmount(c.T, m)
	c.Has("d/z", "z")
	c.Has("f", "x")
}

func caseItselfOnKernel(c *C) {
	base := c.mountPoint("outer")
	for _, n := range []string{"l", "u", "w", "m"} {
		c.OK(os.Mkdir(filepath.Join(base, n), 0o755))
	}
	m := base + "/m"
	c.OK(testenv.MountOverlay(testenv.Overlay{Lowers: []string{base + "/l"}, Upper: base + "/u", Work: base + "/w"}, m))
	defer testenv.Unmount(c.T, m)
	c.onTop(m)
}

func caseItselfOnItself(c *C) { c.onTop(c.Root()) }

// onTop opens another tree of the same implementation whose layers lie in dir.
func (c *C) onTop(dir string) {
	c.Helper()
	spec := Spec{Base: c.mountPoint("top")}
	for _, n := range []string{"l", "u", "w"} {
		c.OK(os.Mkdir(filepath.Join(dir, n), 0o755))
	}
	spec.Lowers, spec.Upper, spec.Work = []string{dir + "/l"}, dir+"/u", dir+"/w"
	c.OK(innerLower().Apply(&LayerDir{Root: dir + "/l", Prefix: prefix(c.factory)}))
	top, err := c.factory.Open(c.T, spec)
	c.OK(err)
	in := &C{T: c.T, Tree: top, Spec: spec, factory: c.factory}
	in.useInner(top.Root())
	in.Put("moved2/f", "moved")
	in.OK(in.Chmod("moved2/f", 0o600))
	in.OK(in.Remount())
	in.checkInner(top.Root())
	in.OK(in.Mknod("n", unix.S_IFIFO|0o600, 0))
	in.OK(in.Unlink("n"))
	in.OK(top.Close())
}
