// Package listing writes a directory tree as lines of text, one for each object, that are equal when the trees are.
// A tree can so be compared from within a container, where only a small program can be brought.
package listing

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is one object of a tree.
type Entry struct {
	Path   string // slash-separated, from the root of the tree, with no leading slash
	Type   string // file, dir, symlink, fifo, char, block or socket
	Mode   uint32 // permission bits with set-id and sticky bits
	UID    uint32
	GID    uint32
	Nlink  uint64 // of what is no directory
	Mtime  int64  // seconds since the epoch
	Target string // of a symbolic link
	Data   []byte // of a file
	Xattrs map[string]string
}

// String formats e as a line. Content is shown by its length and a hash.
func (e Entry) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %s %04o %d:%d mtime %d", e.Path, e.Type, e.Mode, e.UID, e.GID, e.Mtime)
	if e.Type != "dir" {
		fmt.Fprintf(&b, " nlink %d", e.Nlink)
	}
	switch e.Type {
	case "symlink":
		fmt.Fprintf(&b, " -> %q", e.Target)
	case "file":
		sum := sha256.Sum256(e.Data)
		fmt.Fprintf(&b, " size %d %s", len(e.Data), hex.EncodeToString(sum[:6]))
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		fmt.Fprintf(&b, " %s=%x", name, e.Xattrs[name])
	}
	return b.String()
}

// Walk lists what is below root and below the directories of root that are named, sorted by path, the directories
// themselves included. It reads whole files into memory.
func Walk(root string, dirs ...string) ([]string, error) {
	var entries []Entry
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			e, err := read(root, path)
			if err != nil {
				return err
			}
			entries = append(entries, e)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return Lines(entries), nil
}

// Lines formats entries, sorted by path.
func Lines(entries []Entry) []string {
	sort.Slice(entries, func(i, j int) bool { return entries[i].Path < entries[j].Path })
	lines := make([]string, len(entries))
	for i, e := range entries {
		lines[i] = e.String()
	}
	return lines
}

func read(root, path string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Entry{}, fmt.Errorf("lstat %s: %w", path, err)
	}
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return Entry{}, err
	}
	e := Entry{
		Path: rel, Type: typeName(st.Mode), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		Nlink: uint64(st.Nlink), //nolint:unconvert // 32 bits wide on some architectures
		Mtime: st.Mtim.Sec,
	}
	switch e.Type {
	case "symlink":
		e.Target, err = os.Readlink(path)
	case "file":
		e.Data, err = os.ReadFile(path)
	}
	if err != nil {
		return Entry{}, err
	}
	e.Xattrs, err = xattrs(path)
	return e, err
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFBLK:
		return "block"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "file"
}

// xattrs reads the attributes that a layer's tar file carries.
func xattrs(path string) (map[string]string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return nil, fmt.Errorf("llistxattr %s: %w", path, err)
	}
	m := make(map[string]string)
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") && name != "security.capability" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("lgetxattr %s %s: %w", path, name, err)
		}
		m[name] = string(value[:n])
	}
	return m, nil
}

// Diff returns the lines that only one of two listings has, those of a marked "-", those of b marked "+".
func Diff(a, b []string) []string {
	var out []string
	inA, inB := make(map[string]bool, len(a)), make(map[string]bool, len(b))
	for _, l := range a {
		inA[l] = true
	}
	for _, l := range b {
		inB[l] = true
	}
	for _, l := range a {
		if !inB[l] {
			out = append(out, "- "+l)
		}
	}
	for _, l := range b {
		if !inA[l] {
			out = append(out, "+ "+l)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i][2:] < out[j][2:] })
	return out
}
