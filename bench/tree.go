package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// Tree describes a generated tree: regular files in directories of perDir files, two levels deep.
type Tree struct {
	// Files is the number of regular files.
	Files int `json:"files"`
	// Size is the size of each of them in bytes.
	Size int `json:"size"`
	// PerDir is the number of files in a directory.
	PerDir int `json:"per_dir"`
	// Layers is the number of lower layers.
	Layers int `json:"layers"`
	// Spread says which of them hold what.
	Spread Spread `json:"spread"`
}

// Spread says which layers hold a file and its directories.
type Spread int

const (
	// AllMerged has every directory in each layer, and file i in layer i modulo Tree.Layers: all that a union of
	// layers can have to do.
	AllMerged Spread = iota
	// InRuns has as many consecutive files in each layer, with just their directories: like the layers of an image, of
	// which each adds a part.
	InRuns
)

// layerOf returns the layer that holds the i-th file.
func (t Tree) layerOf(i int) int {
	if t.Spread == InRuns {
		return i * t.Layers / t.Files
	}
	return i % t.Layers
}

const (
	perDir     = 100 // files in a directory of a generated tree, unless said otherwise
	dirsPerTop = 10  // directories in a directory of the first level
	// getdentsSize is the buffer that glibc's readdir uses.
	getdentsSize = 32 << 10
	pageSize     = 4096
)

// path returns the name of the i-th file below the root.
func (t Tree) path(i int) string {
	return fmt.Sprintf("%s/f%06d", t.dirOf(i), i)
}

// dirOf returns the directory of the i-th file.
func (t Tree) dirOf(i int) string {
	d := i / t.PerDir
	return fmt.Sprintf("%s/s%d", topName(d/dirsPerTop), d%dirsPerTop)
}

// dirs returns all directories, parents first.
func (t Tree) dirs() []string {
	var out []string
	for d := 0; d*t.PerDir < t.Files; d++ {
		if d%dirsPerTop == 0 {
			out = append(out, topName(d/dirsPerTop))
		}
		out = append(out, t.dirOf(d*t.PerDir))
	}
	return out
}

func topName(i int) string { return fmt.Sprintf("t%03d", i) }

// paths returns the names of the first n files. Workloads make them before measuring.
func (t Tree) paths(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = t.path(i)
	}
	return out
}

// fill writes the content that generated files have at offset off, a multiple of pageSize, into p: each page begins
// with its own offset.
func fill(p []byte, off int64) {
	for i := 0; i < len(p); i += pageSize {
		page := p[i:min(i+pageSize, len(p))]
		for j := range page {
			page[j] = byte(j*7 + 1)
		}
		if len(page) >= 8 {
			binary.LittleEndian.PutUint64(page, uint64(off)+uint64(i))
		}
	}
}

// checkPage verifies that p begins as the page at offset off does.
func checkPage(p []byte, off int64) error {
	if len(p) < 8 {
		return fmt.Errorf("verify: page at %d has %d bytes", off, len(p))
	}
	return expect(fmt.Sprintf("content at offset %d", off), int64(binary.LittleEndian.Uint64(p)), off)
}

// writeFile makes a new file with the content of fill.
func writeFile(root int, name string, content []byte, mode uint32) error {
	fd, err := unix.Openat(root, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, mode)
	if err != nil {
		return opError("create", name, err)
	}
	if err := writeAll(fd, content); err != nil {
		unix.Close(fd)
		return opError("write", name, err)
	}
	if err := unix.Close(fd); err != nil {
		return opError("close", name, err)
	}
	return nil
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// opError names the operation and object of a failed system call.
func opError(op, name string, err error) error { return fmt.Errorf("%s %s: %w", op, name, err) }

// makeParents creates the directories of the i-th file below root, if they are not there.
func (t Tree) makeParents(root, i int) error {
	dir := t.dirOf(i)
	for _, d := range []string{path.Dir(dir), dir} {
		if err := unix.Mkdirat(root, d, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return opError("mkdir", d, err)
		}
	}
	return nil
}

// makeDirs creates all directories of t below root.
func (t Tree) makeDirs(root int) error {
	for _, d := range t.dirs() {
		if err := unix.Mkdirat(root, d, 0o755); err != nil {
			return opError("mkdir", d, err)
		}
	}
	return nil
}

// counts is what a walk saw.
type counts struct {
	files, dirs int // without the root
	bytes       int64
}

// StatMode says whether a walk looks at the attributes of each entry.
type StatMode int

// The modes of a walk.
const (
	ReaddirOnly StatMode = iota
	StatEach
)

// dirent is one entry of a getdents64 buffer.
type dirent struct {
	name string
	typ  byte
}

// readDir returns the entries of an open directory without "." and "..", reading with buf.
func readDir(fd int, buf []byte, out []dirent) ([]dirent, error) {
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return out, nil
		}
		out = parseDirents(buf[:n], out)
	}
}

// parseDirents decodes struct linux_dirent64: d_ino 8, d_off 8, d_reclen 2, d_type 1, d_name.
func parseDirents(b []byte, out []dirent) []dirent {
	for len(b) > 19 {
		reclen := int(binary.NativeEndian.Uint16(b[16:]))
		name := b[19:reclen]
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
		if s := string(name); s != "." && s != ".." {
			out = append(out, dirent{name: s, typ: b[18]})
		}
		b = b[reclen:]
	}
	return out
}

// walk visits everything below root, as find does (ReaddirOnly) or ls -lR (StatEach).
func walk(root int, mode StatMode) (counts, error) {
	var (
		c     counts
		st    unix.Stat_t
		buf   = make([]byte, getdentsSize)
		ents  []dirent
		queue = []string{"."}
	)
	for len(queue) > 0 {
		dir := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		fd, err := unix.Openat(root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return c, opError("open", dir, err)
		}
		ents, err = readDir(fd, buf, ents[:0])
		for _, e := range ents {
			if err != nil {
				break
			}
			if mode == StatEach {
				err = unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW)
				c.bytes += st.Size
			}
			if e.typ == unix.DT_DIR {
				c.dirs++
				queue = append(queue, dir+"/"+e.name)
			} else {
				c.files++
			}
		}
		unix.Close(fd)
		if err != nil {
			return c, opError("walk", dir, err)
		}
	}
	return c, nil
}

// removeAll removes everything below the directory dir of root, as rm -rf does: by the types that readdir gives.
func removeAll(root int, dir string, buf []byte) error {
	fd, err := unix.Openat(root, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return opError("open", dir, err)
	}
	defer unix.Close(fd)
	ents, err := readDir(fd, buf, nil)
	if err != nil {
		return opError("readdir", dir, err)
	}
	for _, e := range ents {
		flags := 0
		if e.typ == unix.DT_DIR {
			if err := removeAll(fd, e.name, buf); err != nil {
				return err
			}
			flags = unix.AT_REMOVEDIR
		}
		if err := unix.Unlinkat(fd, e.name, flags); err != nil {
			return opError("unlink", e.name, err)
		}
	}
	return nil
}

// expectFiles verifies the number of regular files below root.
func expectFiles(root, want int) error {
	c, err := walk(root, ReaddirOnly)
	if err != nil {
		return err
	}
	return expect("files in the tree", c.files, want)
}
