package fingerprint

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Diff lists the differences between two trees in the given fields (zero means Default), one line each, sorted by path;
// nil if there are none. A line reads "path: property: in a != in b".
func Diff(a, b *Tree, fields Field) []string {
	if fields == 0 {
		fields = Default
	}
	var out []string
	paths := make(map[string]bool, len(a.Entries))
	for p := range a.Entries {
		paths[p] = true
	}
	for p := range b.Entries {
		paths[p] = true
	}
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		x, y := a.Entries[p], b.Entries[p]
		switch {
		case y == nil:
			out = append(out, fmt.Sprintf("%s: only in the first tree (%s)", show(p), typeName(x.Type)))
		case x == nil:
			out = append(out, fmt.Sprintf("%s: only in the second tree (%s)", show(p), typeName(y.Type)))
		default:
			for _, d := range diffEntry(x, y, fields) {
				out = append(out, show(p)+": "+d)
			}
		}
	}
	return out
}

// Format joins at most limit lines of a Diff for a message, saying how many were left out; limit 0 means all.
func Format(lines []string, limit int) string {
	if limit > 0 && len(lines) > limit {
		lines = append(slices.Clone(lines[:limit]), fmt.Sprintf("... and %d more", len(lines)-limit))
	}
	return strings.Join(lines, "\n")
}

func diffEntry(x, y *Entry, fields Field) []string {
	var out []string
	note := func(what string, a, b any) { out = append(out, fmt.Sprintf("%s: %v != %v", what, a, b)) }
	if x.Type != y.Type {
		note("type", typeName(x.Type), typeName(y.Type))
		return out
	}
	has := func(f Field) bool { return fields&f != 0 }
	isDir, isReg := x.Type == sIFDIR, x.Type == sIFREG
	if has(Mode) && x.Mode != y.Mode {
		note("mode", fmt.Sprintf("%04o", x.Mode), fmt.Sprintf("%04o", y.Mode))
	}
	if has(Owner) && (x.UID != y.UID || x.GID != y.GID) {
		note("owner", fmt.Sprintf("%d:%d", x.UID, x.GID), fmt.Sprintf("%d:%d", y.UID, y.GID))
	}
	if (has(Nlink) && !isDir || has(DirNlink) && isDir) && x.Nlink != y.Nlink {
		note("nlink", x.Nlink, y.Nlink)
	}
	if has(Rdev) && x.Rdev != y.Rdev {
		note("rdev", rdev(x.Rdev), rdev(y.Rdev))
	}
	for _, t := range []struct {
		f    Field
		name string
		a, b Time
	}{{Mtime, "mtime", x.Mtime, y.Mtime}, {Atime, "atime", x.Atime, y.Atime}, {Ctime, "ctime", x.Ctime, y.Ctime}} {
		if has(t.f) && t.a != t.b {
			note(t.name, fmt.Sprintf("%d.%09d", t.a.Sec, t.a.Nsec), fmt.Sprintf("%d.%09d", t.b.Sec, t.b.Nsec))
		}
	}
	if has(Target) && x.Target != y.Target {
		note("target", show(x.Target), show(y.Target))
	}
	if has(Content) && isReg {
		if x.Size != y.Size {
			note("size", x.Size, y.Size)
		} else if x.Sum != y.Sum {
			note("content", fmt.Sprintf("%x", x.Sum[:6]), fmt.Sprintf("%x", y.Sum[:6]))
		}
	}
	if has(Holes) && !slices.Equal(x.Extents, y.Extents) {
		note("data extents", x.Extents, y.Extents)
	}
	if has(Groups) && x.Group != y.Group {
		note("hard link of", show(x.Group), show(y.Group))
	}
	if has(Inode) && x.Ino != y.Ino {
		note("inode", x.Ino, y.Ino)
	}
	if has(Xattrs) {
		out = append(out, diffXattrs(x.Xattrs, y.Xattrs)...)
	}
	return out
}

func diffXattrs(x, y map[string]string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(x)) {
		if v, ok := y[k]; !ok {
			out = append(out, fmt.Sprintf("xattr %s: only in the first tree (%q)", k, x[k]))
		} else if v != x[k] {
			out = append(out, fmt.Sprintf("xattr %s: %q != %q", k, x[k], v))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(y)) {
		if _, ok := x[k]; !ok {
			out = append(out, fmt.Sprintf("xattr %s: only in the second tree (%q)", k, y[k]))
		}
	}
	return out
}

func rdev(d uint64) string { return fmt.Sprintf("%d:%d", unix.Major(d), unix.Minor(d)) }

// show keeps plain paths plain and quotes what would garble a message, shortening what would flood it.
func show(p string) string {
	if len(p) > 200 {
		p = p[:90] + "..." + p[len(p)-90:]
	}
	if q := fmt.Sprintf("%q", p); p == "" || q != `"`+p+`"` {
		return q
	}
	return p
}

func typeName(m uint32) string {
	switch m & sIFMT {
	case sIFREG:
		return "file"
	case sIFDIR:
		return "directory"
	case sIFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	}
	return fmt.Sprintf("type %#o", m)
}
