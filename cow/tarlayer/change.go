package tarlayer

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// Kind says how a path of one tree differs from that of the tree below it.
type Kind uint8

// The kinds of change. The zero Kind is none of them.
const (
	Add    Kind = iota + 1 // the path is new
	Modify                 // the path exists in both, and differs in attributes, content, type or in what is beneath it
	Delete                 // the path is gone, with all that was beneath it
)

// String is the letter of docker diff: A, C or D.
func (k Kind) String() string {
	switch k {
	case Add:
		return "A"
	case Modify:
		return "C"
	case Delete:
		return "D"
	}
	return "Kind(" + strconv.Itoa(int(k)) + ")"
}

// Change is one path that differs.
type Change struct {
	// Path is relative to the tree's root, without leading or trailing slash, and never empty: the root itself is no
	// change.
	Path string
	Kind Kind
	// Type is the type of the file that was found at an added or modified path, in the bits of unix.S_IFMT. 0 says nothing.
	Type uint32
}

// String is the change as docker diff prints it, such as "A /etc/x".
func (c Change) String() string { return c.Kind.String() + " /" + c.Path }

// ComparePaths orders two paths as a walk with sorted directories meets them: component by component, a parent before
// what is beneath it. The result is negative, zero or positive.
func ComparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

// SortChanges puts changes in the order of ComparePaths, which all functions of this package that return changes keep.
func SortChanges(changes []Change) {
	slices.SortStableFunc(changes, func(a, b Change) int { return ComparePaths(a.Path, b.Path) })
}

// Size returns the number of bytes that the regular files among changes hold in src, names of one file counted once:
// what a diff of them adds to an image. What has gone since it was listed, as files of a running container do, holds nothing. An error
// names the path.
func Size(ctx context.Context, src Source, changes []Change) (int64, error) {
	var total int64
	seen := make(map[inode]bool)
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if c.Kind == Delete {
			continue
		}
		a, err := src.Lstat(c.Path)
		if sys.Gone(err) {
			continue
		}
		if err != nil {
			return 0, pathError("size", c.Path, err)
		}
		if a.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if a.Nlink > 1 {
			id := inode{a.Dev, a.Ino}
			if seen[id] {
				continue
			}
			seen[id] = true
		}
		total += a.Size
	}
	return total, nil
}

// parentOf returns the directory part of a clean path, "" for the root.
func parentOf(path string) string {
	return path[:max(strings.LastIndexByte(path, '/'), 0)]
}

// baseOf returns the last component of a clean path.
func baseOf(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// join is the path of name in dir, "" being the root.
func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
