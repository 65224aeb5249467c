package upperdiff

import (
	"path"

	"golang.org/x/sys/unix"

	"plyfs/cow/tarlayer"
	"plyfs/fs/union"
)

// inode identifies a file with several names.
type inode struct{ birth, ino uint64 }

// linkNames are the names that were compared of files with several.
type linkNames map[inode]*linkSet

type linkSet struct {
	// added says that one of the names is new.
	added bool
	// equal are the names under which nothing changed, and typ is what they stand for.
	equal []string
	typ   uint32
}

// note remembers a name that was compared; k is 0 if it did not change.
func (l linkNames) note(path string, a union.Attr, k tarlayer.Kind) {
	if a.Nlink < 2 || a.Mode&unix.S_IFMT == unix.S_IFDIR {
		return
	}
	id := inode{birth(a), a.Ino}
	set := l[id]
	if set == nil {
		set = &linkSet{typ: a.Mode & unix.S_IFMT}
		l[id] = set
	}
	switch k {
	case tarlayer.Add:
		set.added = true
	case 0:
		set.equal = append(set.equal, path)
	}
}

// complete adds to the changes the unchanged names of files that have a new one: a stream in which they are not
// together would make a second file of it. All of them were compared: a file with a new name was copied up, and so is
// in the upper under all its names, or in the index.
func (l linkNames) complete(list []tarlayer.Change) []tarlayer.Change {
	var listed map[string]bool
	for _, set := range l {
		if !set.added {
			continue
		}
		if listed == nil {
			listed = make(map[string]bool, len(list))
			for _, c := range list {
				listed[c.Path] = true
			}
		}
		for _, p := range set.equal {
			for typ := set.typ; p != "." && !listed[p]; p, typ = path.Dir(p), unix.S_IFDIR {
				listed[p] = true
				list = append(list, tarlayer.Change{Path: p, Kind: tarlayer.Modify, Type: typ})
			}
		}
	}
	return list
}
