package drivertest

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

func markCases() []aCase {
	return []aCase{
		{"MarksOfContainers", caseMarksOfContainers},
		{"MarksOfLayers", caseMarksOfLayers},
		{"MarksOfOwners", caseMarksOfOwners},
	}
}

// marked are directories in which a container leaves what some union would take for its own mark.
func marked() map[string]step {
	return map[string]step{
		"whiteout":      file("whiteout/.wh.f", "", 0o644),
		"sentinel":      file("sentinel/.wh..wh..opq", "", 0o644),
		"opaque":        forged("opaque", ovl.User().Opaque, "y"),
		"fuse":          forged("fuse", ovl.FuseOverlayfsOpaque, "y"),
		"origin":        forged("origin", ovl.FuseOverlayfsOrigin, "x"),
		"redirect":      forged("redirect", ovl.User().Redirect, "/opaque"),
		"bad-redirect":  forged("bad-redirect", ovl.User().Redirect, "../.."),
		"metacopy":      forged("metacopy/f", ovl.User().Metacopy, ""),
		"attr-whiteout": forged("attr-whiteout/empty", ovl.User().Whiteout, "y"),
	}
}

// forged sets an attribute, where the kernel lets it be set: before Linux 6.7 an overlay refuses those of its own namespace.
func forged(p, name, value string) step {
	return func(at *place) error {
		err := xattr(p, name, value)(at)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		return errors.Join(err, at.stamp(p))
	}
}

// caseMarksOfContainers: what a container leaves deletes nothing of the image, in no list of changes and in no layer made of it,
// whatever it is called.
func caseMarksOfContainers(e *env) {
	var base, forge, whole []step
	for name, mark := range marked() {
		base = append(base, dir(name, 0o755), file(name+"/f", name, 0o644), file(name+"/empty", "", 0o644))
		forge = append(forge, mark)
		whole = append(whole, holds(name+"/f", name), holds(name+"/empty", ""))
	}
	e.image("base", "", base...)
	e.writable("c", "base")
	e.change("c", forge...)
	e.check("c", whole...)
	differs := []drivers.Differ{drivers.DifferOf(e.d), drivers.NaiveDiffer(e.d)}
	for _, d := range differs {
		list, err := d.Changes(ctx(), "c", "base")
		e.must(err)
		for _, c := range list {
			if c.Kind == tarlayer.Delete || c.Kind == tarlayer.Add && !ovl.IsAUFSName(path.Base(c.Path)) {
				e.Errorf("the changes have %s", c)
			}
		}
		for _, want := range []string{"whiteout/.wh.f", "sentinel/.wh..wh..opq"} {
			if !slices.ContainsFunc(list, func(c tarlayer.Change) bool { return c.Path == want && c.Kind == tarlayer.Add }) {
				e.Errorf("the changes %v lack %s", list, want)
			}
		}
	}
	// A stream has no such names.
	whole = append(whole, absent("whiteout/.wh.f"), absent("sentinel/.wh..wh..opq"))
	for i, parent := range []string{"base", ""} {
		for j, d := range differs {
			id := fmt.Sprintf("made-%d-%d", i, j)
			e.must(e.d.Create(ctx(), id, parent, nil))
			e.copyDiffOf(d, "c", parent, id)
			e.check(id, whole...)
		}
	}
}

// caseMarksOfOwners: an attribute in which some stores keep owner and mode is one like any other where a container sets it, on its root,
// too.
func caseMarksOfOwners(e *env) {
	attr := ovl.OverrideNames()[1]
	e.image("base", "", dir("d", 0o755), file("d/f", "f", 0o644), file("d/old", "old", 0o644))
	e.writable("c", "base")
	e.change("c", xattr(".", attr, "0:0:0755"), file("d/mine", "m", 0o644), xattr("d/mine", attr, "1:1:04777"),
		xattr("d/f", attr, "1:1:04777"), touch("d/f"), file("d/broken", "b", 0o644), xattr("d/broken", attr, "x"))
	for i, d := range []drivers.Differ{drivers.DifferOf(e.d), drivers.NaiveDiffer(e.d)} {
		list, err := d.Changes(ctx(), "c", "base")
		e.must(err)
		want := []string{"C /d", "A /d/broken", "C /d/f", "A /d/mine"}
		var got []string
		for _, c := range list {
			got = append(got, c.String())
		}
		if !slices.Equal(got, want) {
			e.Errorf("changes %q, want %q", got, want)
		}
		id := fmt.Sprint("made-", i)
		e.must(e.d.Create(ctx(), id, "base", nil))
		e.copyDiffOf(d, "c", "base", id)
		e.check(id, owned("d/mine", attr, "1:1:04777"), owned("d/f", attr, "1:1:04777"), owned("d/broken", attr, "x"))
	}
	_, err := e.d.Usage(ctx(), "c")
	e.must(err)
}

// owned fails if a file is not 0644 and the caller's, or has not the attribute.
func owned(p, attr, value string) step {
	return func(at *place) error {
		var st unix.Stat_t
		if err := unix.Lstat(at.path(p), &st); err != nil {
			return err
		}
		if st.Mode != unix.S_IFREG|0o644 || st.Uid != 0 || st.Gid != 0 {
			return fmt.Errorf("%s has mode %o and owner %d:%d", p, st.Mode, st.Uid, st.Gid)
		}
		return shows(p, attr, value)(at)
	}
}

// shows fails if a file has not the attribute.
func shows(p, attr, value string) step {
	return func(at *place) error {
		var buf [256]byte
		n, err := unix.Lgetxattr(at.path(p), attr, buf[:])
		if err != nil || string(buf[:n]) != value {
			return fmt.Errorf("attribute %s of %s is %q, want %q: %w", attr, p, buf[:max(n, 0)], value, err)
		}
		return nil
	}
}

// caseMarksOfLayers: attributes that a layer brings along, of a union that was in a container, a container sees as they were given.
func caseMarksOfLayers(e *env) {
	attrs := map[string]string{
		ovl.User().Opaque: "y", ovl.EscapeXattr(ovl.User().Opaque): "y", ovl.FuseOverlayfsOpaque: "y", ovl.FuseOverlayfsOrigin: "o",
		ovl.OverrideNames()[1]: "1:1:0700", ovl.EscapeXattr(ovl.OverrideNames()[1]): "1:1:0700",
	}
	e.must(e.d.Create(ctx(), "base", "", nil))
	_, err := e.apply("base", archive(e.T, member{name: "d/"}, member{name: "d/f", content: "f"}), nil)
	e.must(err)
	e.must(e.d.Create(ctx(), "l", "base", nil))
	_, err = e.apply("l", archive(e.T, member{name: "./", attrs: attrs}, member{name: "d/", attrs: attrs},
		member{name: "g", attrs: attrs}, member{name: "g", attrs: attrs}), nil)
	e.must(err)
	steps := []step{holds("d/f", "f")}
	for name, value := range attrs {
		steps = append(steps, shows("d", name, value), shows("g", name, value))
	}
	withRoot := slices.Clone(steps)
	for name, value := range attrs {
		withRoot = append(withRoot, shows(".", name, value))
	}
	e.check("l", withRoot...)
	e.writable("c", "l")
	e.change("c", touch("g"), chmod("d", 0o700))
	e.check("c", withRoot...)
	e.wantChanges("c", "l", "C /d", "C /g")
	e.must(e.d.Create(ctx(), "flat", "", nil))
	e.copyDiff("c", "", "flat")
	e.check("flat", steps...)
}
