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
			if !slices.Contains(list, tarlayer.Change{Path: want, Kind: tarlayer.Add}) {
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
