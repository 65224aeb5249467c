// Package fingerprint reduces a directory tree to a value that can be compared.
//
// A fingerprint holds all that a user of the tree can observe: names, types, modes, owners, times, extended
// attributes (and with them POSIX ACLs and file capabilities), link counts, which names are hard links of each other,
// device numbers, symlink targets, content, and where files have holes. Two trees with equal fingerprints cannot be
// told apart by reading them.
//
// The tree is walked by directory descriptors and *at calls, so that neither PATH_MAX nor a concurrent rename of an
// ancestor matters. The package only reads. It has no locks and no state.
package fingerprint

import (
	"maps"
	"slices"
)

// Field is a set of properties.
type Field uint32

// The properties of an entry. Names and types are always taken and compared.
const (
	Mode     Field = 1 << iota // permission, set-id and sticky bits
	Owner                      // user and group
	Nlink                      // link counts of everything but directories
	DirNlink                   // link counts of directories
	Rdev                       // device numbers of devices
	Mtime
	Atime
	Ctime
	Xattrs  // all extended attributes, ACLs and capabilities among them
	Target  // symlink targets
	Content // sizes and bytes of regular files
	Holes   // which ranges of regular files are data
	Groups  // which names are hard links of one another
	Inode   // inode numbers and, while walking, that readdir and stat agree on them

	// Default is what two trees of equal meaning have in common on any file system.
	Default = Mode | Owner | Nlink | Rdev | Mtime | Xattrs | Target | Content | Groups
	// All is every property.
	All = Default | DirNlink | Atime | Ctime | Holes | Inode
)

// Time is a time stamp in seconds and nanoseconds since the epoch.
type Time struct {
	Sec  int64
	Nsec int64
}

// Extent is a range of a file that holds data.
type Extent struct {
	Off, Len int64
}

// Entry is one name of a tree. Fields that were not asked for are zero.
type Entry struct {
	Type    uint32 // type bits of a mode (S_IFMT)
	Mode    uint32 // permission, set-id and sticky bits
	UID     uint32
	GID     uint32
	Nlink   uint64
	Rdev    uint64
	Size    int64 // of regular files
	Mtime   Time
	Atime   Time
	Ctime   Time
	Dev     uint64
	Ino     uint64
	DirIno  uint64 // as readdir gave it
	Target  string
	Sum     [32]byte // of the content of a regular file, independent of its holes
	Extents []Extent
	Xattrs  map[string]string
	Group   string // the first name, in sorted order, of the same hard-linked file
}

// Tree is the fingerprint of a directory: its entries by path relative to it, "." being the directory itself.
type Tree struct {
	Entries map[string]*Entry
}

// Paths returns the tree's paths in sorted order.
func (t *Tree) Paths() []string {
	return slices.Sorted(maps.Keys(t.Entries))
}

// Inconsistent returns the paths whose inode number differs between readdir and stat. It needs the field Inode.
func (t *Tree) Inconsistent() []string {
	var bad []string
	for _, p := range t.Paths() {
		if e := t.Entries[p]; p != "." && e.Ino != e.DirIno {
			bad = append(bad, p)
		}
	}
	return bad
}

// Duplicates returns pairs of paths that share device and inode number without being hard links: two directories, or
// files that differ in type or link count, or that have a link count of one.
func (t *Tree) Duplicates() [][2]string {
	type id struct{ dev, ino uint64 }
	var dup [][2]string
	first := make(map[id]string)
	for _, p := range t.Paths() {
		e := t.Entries[p]
		k := id{e.Dev, e.Ino}
		q, seen := first[k]
		if !seen {
			first[k] = p
			continue
		}
		if f := t.Entries[q]; e.Type == sIFDIR || e.Type != f.Type || e.Nlink < 2 || f.Nlink < 2 {
			dup = append(dup, [2]string{q, p})
		}
	}
	return dup
}

// SetGroups fills the field Group of all entries from their device, inode number and link count.
func (t *Tree) SetGroups() {
	type id struct{ dev, ino uint64 }
	first := make(map[id]string)
	for _, p := range t.Paths() {
		e := t.Entries[p]
		if e.Type == sIFDIR || e.Nlink < 2 {
			continue
		}
		k := id{e.Dev, e.Ino}
		if _, ok := first[k]; !ok {
			first[k] = p
		}
		e.Group = first[k]
	}
}
