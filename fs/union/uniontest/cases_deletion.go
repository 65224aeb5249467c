package uniontest

import (
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// deletionCases are all combinations of what is deleted, where it lives, and how it goes and comes back.
func deletionCases() []Case {
	var cases []Case
	for _, where := range []string{"lower", "bottom", "upper", "both", "merged"} {
		cases = append(cases, Case{
			Name: "deletion/" + where, Lowers: deletionLayers(where), Run: func(c *C) { caseDeletion(c, where) },
		})
	}
	return cases
}

// A victim is one combination: an object of a type, in a directory of its own, and the way in which it is deleted.
type victim struct{ kind, how string }

func (v victim) dir() string  { return v.kind + "-" + v.how }
func (v victim) path() string { return v.dir() + "/v" }

func victims() []victim {
	var all []victim
	for _, kind := range FileTypes() {
		for _, how := range []string{
			"remove", "same", "file", "dir", "fifo", "symlink", "over", "over-dir", "away", "mkdir", "twice", "away-mkdir", "exchange",
		} {
			all = append(all, victim{kind, how})
		}
	}
	return all
}

func deletionLayers(where string) []Layer {
	top, bottom := Layer{}, Layer{}
	for _, v := range victims() {
		top, bottom = append(top, Dirs(v.dir())), append(bottom, Dirs(v.dir()))
		switch where {
		case "lower":
			top = append(top, Typed(v.path(), v.kind, "top"))
		case "bottom", "both":
			bottom = append(bottom, Typed(v.path(), v.kind, "bottom"))
		case "merged":
			top = append(top, Typed(v.path(), v.kind, "top"))
			bottom = append(bottom, Typed(v.path(), v.kind, "bottom"))
		}
	}
	return []Layer{top, bottom}
}

func caseDeletion(c *C, where string) {
	var checks []func()
	for _, v := range victims() {
		switch where {
		case "upper":
			c.makeTyped(v.path(), v.kind, "upper")
		case "both":
			c.touchTyped(v.path(), v.kind)
		}
		checks = append(checks, c.delete(v))
		if c.Failed() {
			c.Fatalf("in %s", v.path())
		}
	}
	for i, when := range []string{"at once", "after a remount", "after a second remount"} {
		if i > 0 {
			c.OK(c.Remount())
		}
		for _, check := range checks {
			check()
			if c.Failed() {
				c.Fatalf("when checked %s", when)
			}
		}
	}
}

// makeTyped makes through the tree what Typed makes in a layer.
func (c *C) makeTyped(p, kind, content string) {
	c.Helper()
	switch kind {
	case "file":
		c.Put(p, content)
	case "empty":
		c.OK(c.Mkdir(p, 0o755))
	case "full":
		c.OK(c.Mkdir(p, 0o755))
		c.Put(p+"/in-"+content, content)
		c.Put(p+"/common", content)
		c.OK(c.Mkdir(p+"/sub", 0o755))
	case "symlink":
		c.OK(c.Symlink(content, p))
	case "fifo":
		c.OK(c.Mknod(p, unix.S_IFIFO|0o644, 0))
	}
}

// touchTyped changes an object of a lower so that it is in the upper too.
func (c *C) touchTyped(p, kind string) {
	c.Helper()
	switch kind {
	case "file":
		c.Append(p, "+")
	case "full":
		c.Put(p+"/in-upper", "upper")
		c.Append(p+"/common", "+")
	}
	c.OK(c.Utimens(p, Old(), Old()))
}

// Remove removes an object of any type with all that is beneath it.
func (c *C) Remove(p string) {
	c.Helper()
	if c.Stat(p).Type() != unix.S_IFDIR {
		c.OK(c.Unlink(p))
		return
	}
	for _, name := range c.Names(p) {
		c.Remove(path.Join(p, name))
	}
	c.OK(c.Rmdir(p))
}

// delete deletes a victim and returns the check that it stays so.
func (c *C) delete(v victim) func() {
	c.Helper()
	p, isDir := v.path(), v.kind == "empty" || v.kind == "full"
	c.Has0(p)
	lists := func(names ...string) func() { return func() { c.Helper(); c.Lists(v.dir(), names...) } }
	switch v.how {
	case "remove":
		c.Remove(p)
		return func() { c.Absent(p); c.Lists(v.dir()) }
	case "same":
		c.Remove(p)
		c.makeTyped(p, v.kind, "again")
		return func() { c.checkTyped(p, v.kind, "again") }
	case "file", "fifo", "symlink":
		c.Remove(p)
		c.makeTyped(p, v.how, "again")
		return func() { c.checkTyped(p, v.how, "again") }
	case "dir", "mkdir":
		c.Remove(p)
		c.OK(c.Mkdir(p, 0o700))
		return func() { c.Lists(p); c.Lists(v.dir(), "v") }
	case "twice":
		c.Remove(p)
		c.makeTyped(p, "full", "again")
		c.Remove(p)
		c.makeTyped(p, "file", "third")
		c.Remove(p)
		return func() { c.Absent(p); c.Lists(v.dir()) }
	case "over", "over-dir":
		return c.deleteByRename(v, isDir)
	case "away":
		c.OK(c.Rename(p, v.dir()+"/w", 0))
		return func() { c.Absent(p); c.Lists(v.dir(), "w"); c.Has0(v.dir() + "/w") }
	case "away-mkdir":
		c.OK(c.Rename(p, v.dir()+"/w", 0))
		c.OK(c.Mkdir(p, 0o755))
		return func() { c.Lists(p); lists("v", "w")() }
	case "exchange":
		if c.Is(PlainRenames) {
			c.Remove(p)
			return func() { c.Absent(p); c.Lists(v.dir()) }
		}
		c.OK(c.Mkdir(v.dir()+"/e", 0o755))
		c.OK(c.Rename(p, v.dir()+"/e", unix.RENAME_EXCHANGE))
		c.Lists(p)
		c.Remove(v.dir() + "/e")
		return func() { c.Lists(p); lists("v")() }
	}
	c.Fatalf("unknown way %s", v.how)
	return nil
}

// deleteByRename renames another object over a victim; where types forbid it, the victim must stay, and goes then.
func (c *C) deleteByRename(v victim, isDir bool) func() {
	c.Helper()
	p, n := v.path(), v.dir()+"/n"
	kind := "file"
	if v.how == "over-dir" {
		kind = "full"
	}
	c.makeTyped(n, kind, "new")
	err := c.Rename(n, p, 0)
	switch {
	case isDir && kind == "file":
		c.Fails(err, unix.EISDIR)
	case !isDir && kind == "full":
		c.Fails(err, unix.ENOTDIR)
	case v.kind == "full":
		c.Fails(err, unix.ENOTEMPTY, unix.EEXIST)
	default:
		c.OK(err)
	}
	if err != nil {
		c.Remove(p)
		c.OK(c.Rename(n, p, 0))
	}
	return func() { c.checkTyped(p, kind, "new"); c.Lists(v.dir(), "v") }
}

// Has0 checks that a name exists and is listed.
func (c *C) Has0(p string) {
	c.Helper()
	c.Stat(p)
	if !slices.Contains(c.Names(path.Dir(p)), path.Base(p)) {
		c.Errorf("%s is not listed in its directory", p)
	}
}

// checkTyped checks that p is exactly what makeTyped made.
func (c *C) checkTyped(p, kind, content string) {
	c.Helper()
	switch kind {
	case "file":
		c.Has(p, content)
	case "empty":
		c.Lists(p)
	case "full":
		c.Lists(p, "in-"+content, "common", "sub")
		c.Has(p+"/common", content)
		c.Lists(p + "/sub")
	case "symlink":
		got, err := c.Readlink(p)
		c.OK(err)
		Eq(c, p+" target", got, content)
	case "fifo":
		Eq(c, p+" type", c.Stat(p).Type(), unix.S_IFIFO)
	default:
		panic(fmt.Sprintf("no such type %q", kind))
	}
}
