package e2e

import (
	"archive/tar"
	"fmt"
	"path"
	"sort"
	"strings"
	"time"

	"plyfs/internal/e2e/listing"
)

// epoch is the time of the first layer; everything in layer i has the time epoch+i.
const epoch = 1600000000

// change is one member of a layer: an object, another name of an object of the same layer, or a whiteout.
type change struct {
	path   string
	obj    *listing.Entry // nil for a whiteout
	link   string         // path of the object's first name, for a hard link
	opaque bool           // obj is a directory that hides what lower layers have there
}

// image is a stack of layers and the tree that a correct union of them shows. Its methods change the tree and note the
// change in the topmost layer.
type image struct {
	layers [][]change
	tree   map[string]*listing.Entry
	// cmd is what a container runs for which nothing else is said: sh, if this is nil.
	cmd []string
}

func newImage() *image { return &image{tree: make(map[string]*listing.Entry)} }

// begin starts a new layer.
func (im *image) begin() { im.layers = append(im.layers, nil) }

func (im *image) top() *[]change { return &im.layers[len(im.layers)-1] }

// note adds a change after the directories above it, which a layer always has, with their present attributes.
func (im *image) note(c change) {
	for dir := path.Dir(c.path); dir != "."; dir = path.Dir(dir) {
		if im.tree[dir] == nil || im.tree[dir].Type != "dir" {
			panic("no directory above " + c.path)
		}
		if !im.inTop(dir) {
			*im.top() = append(*im.top(), change{path: dir, obj: im.tree[dir]})
		}
	}
	*im.top() = append(*im.top(), c)
}

func (im *image) inTop(p string) bool {
	for _, c := range *im.top() {
		if c.path == p && c.obj != nil {
			return true
		}
	}
	return false
}

// put makes or replaces an object. A directory put where one is keeps its children.
func (im *image) put(p string, e listing.Entry) *listing.Entry {
	if e.Mode == 0 {
		e.Mode = map[string]uint32{"dir": 0o755, "symlink": 0o777}[e.Type]
		if e.Mode == 0 {
			e.Mode = 0o644
		}
	}
	e.Mtime = epoch + int64(len(im.layers))
	if e.Type != "dir" {
		im.drop(p)
	}
	im.tree[p] = &e
	im.note(change{path: p, obj: &e})
	return &e
}

func (im *image) file(p, content string) {
	im.put(p, listing.Entry{Type: "file", Data: []byte(content)})
}

func (im *image) dir(p string) { im.put(p, listing.Entry{Type: "dir"}) }

func (im *image) symlink(p, target string) {
	im.put(p, listing.Entry{Type: "symlink", Target: target})
}

// link makes p another name of old, an object of the same layer.
func (im *image) link(p, old string) {
	im.tree[p] = im.tree[old]
	im.note(change{path: p, obj: im.tree[old], link: old})
}

// opaque replaces the directory p by an empty one.
func (im *image) opaque(p string) {
	im.drop(p)
	e := &listing.Entry{Type: "dir", Mode: 0o755, Mtime: epoch + int64(len(im.layers))}
	im.tree[p] = e
	im.note(change{path: p, obj: e, opaque: true})
}

// remove deletes p and what is below it by a whiteout.
func (im *image) remove(p string) {
	im.drop(p)
	im.note(change{path: p})
}

func (im *image) drop(p string) {
	for q := range im.tree {
		if q == p || strings.HasPrefix(q, p+"/") {
			delete(im.tree, q)
		}
	}
}

// entries returns what a union shows below the directory top, and top itself.
func (im *image) entries(top string) []listing.Entry {
	names := make(map[*listing.Entry]uint64)
	for _, e := range im.tree {
		names[e]++
	}
	var out []listing.Entry
	for p, e := range im.tree {
		if p == top || strings.HasPrefix(p, top+"/") {
			c := *e
			c.Path, c.Nlink = p, names[e]
			out = append(out, c)
		}
	}
	return out
}

// members returns the tar headers of layer i, in an order in which they can be unpacked.
func (im *image) members(i int) []*tar.Header {
	changes := append([]change(nil), im.layers[i]...)
	sort.SliceStable(changes, func(a, b int) bool {
		// First names stand before the hard links to them, which the layers' builder names later in the alphabet.
		return changes[a].path < changes[b].path
	})
	var out []*tar.Header
	for _, c := range changes {
		switch {
		case c.obj == nil:
			out = append(out, whiteout(path.Dir(c.path), ".wh."+path.Base(c.path), i))
		case c.link != "":
			h := header(c)
			h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, c.link, 0, nil
			out = append(out, h)
		default:
			out = append(out, header(c))
			if c.opaque {
				out = append(out, whiteout(c.path, ".wh..wh..opq", i))
			}
		}
	}
	return out
}

func whiteout(dir, name string, layer int) *tar.Header {
	return &tar.Header{
		Typeflag: tar.TypeReg, Name: path.Join(dir, name), Mode: 0o600,
		ModTime: time.Unix(epoch+int64(layer)+1, 0), Format: tar.FormatPAX,
	}
}

func header(c change) *tar.Header {
	h := &tar.Header{
		Name: c.path, Mode: int64(c.obj.Mode), Uid: int(c.obj.UID), Gid: int(c.obj.GID),
		ModTime: time.Unix(c.obj.Mtime, 0), Format: tar.FormatPAX,
	}
	switch c.obj.Type {
	case "file":
		h.Typeflag, h.Size = tar.TypeReg, int64(len(c.obj.Data))
	case "dir":
		h.Typeflag, h.Name = tar.TypeDir, c.path+"/"
	case "symlink":
		h.Typeflag, h.Linkname = tar.TypeSymlink, c.obj.Target
	case "fifo":
		h.Typeflag = tar.TypeFifo
	default:
		panic("no tar form for " + c.obj.Type)
	}
	for name, value := range c.obj.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	return h
}

// netBind is the capability cap_net_bind_service, permitted and effective, as version 2 of the attribute stores it.
const netBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// testImage returns an image of 41 layers below data: whiteouts, opaque directories, hard links, extended attributes,
// file capabilities, directories that become files and links and come back, owners, modes, a fifo, long names.
func testImage(base func(*image)) *image {
	im := newImage()
	im.begin()
	im.dir("data")
	im.dir("data/shared")
	im.dir("data/op")
	im.file("data/op/first", "hidden twice\n")
	im.put("data/sticky", listing.Entry{Type: "dir", Mode: 0o1777})
	im.put("data/private", listing.Entry{Type: "dir", Mode: 0o700, UID: 1000, GID: 1001})
	im.put("data/private/key", listing.Entry{Type: "file", Mode: 0o600, UID: 1000, GID: 1001, Data: []byte("secret\n")})
	if base != nil {
		base(im)
	}
	for i := 1; i <= 40; i++ {
		im.begin()
		im.file("data/top", fmt.Sprintf("%d\n", i))
		im.file(fmt.Sprintf("data/f%02d", i), strings.Repeat(fmt.Sprintf("layer %d\n", i), i))
		im.file(fmt.Sprintf("data/shared/s%d", i%10), strings.Repeat("x", 1000*i))
		if i%3 == 0 {
			im.remove(fmt.Sprintf("data/f%02d", i-1))
		}
		special(im, i)
	}
	return im
}

// special adds to layer i what only some layers have.
func special(im *image, i int) {
	switch i {
	case 2:
		im.file("data/h2_a", "three names\n")
		im.link("data/h2_b", "data/h2_a")
		im.link("data/shared/h2_c", "data/h2_a")
		im.put("data/pipe", listing.Entry{Type: "fifo", Mode: 0o640, GID: 5})
		im.put("data/suid", listing.Entry{Type: "file", Mode: 0o4755, Data: []byte("set-uid\n")})
		im.put("data/sgid", listing.Entry{Type: "dir", Mode: 0o2775, GID: 1001})
	case 4:
		im.put("data/attr", listing.Entry{Type: "file", Data: []byte("a"), Xattrs: map[string]string{
			"user.comment": "line\nand \xff byte", "user.other": "2",
		}})
		im.put("data/attrdir", listing.Entry{Type: "dir", Xattrs: map[string]string{"user.d": "1"}})
		im.put("data/caps", listing.Entry{Type: "file", Mode: 0o755, Data: []byte("caps\n"), Xattrs: map[string]string{
			"security.capability": netBind,
		}})
		im.file("data/"+strings.Repeat("n", 200), "a long name\n")
		im.symlink("data/dangling", "nowhere/at/all")
	case 5:
		im.dir("data/deep")
		im.dir("data/deep/a")
		im.dir("data/deep/a/b")
		im.file("data/deep/a/b/old", "old\n")
		im.file("data/deep/a/b/stays", "stays\n")
		im.dir("data/gone")
		im.dir("data/gone/sub")
		im.file("data/gone/sub/file", "gone\n")
	case 7:
		im.remove("data/deep/a/b/old")
		im.dir("data/flip")
		im.file("data/flip/hidden", "must not come back\n")
		im.remove("data/gone")
	case 8:
		im.file("data/flip", "now a file\n")
	case 9:
		im.dir("data/flip")
		im.file("data/flip/new", "a directory again\n")
		im.dir("data/gone")
		im.file("data/gone/new", "new\n")
	case 12, 33:
		im.opaque("data/op")
		im.file(fmt.Sprintf("data/op/after%d", i), "only this\n")
	case 15:
		im.symlink("data/attrdir", "shared")
		im.file("data/dangling", "was a link\n")
	case 18:
		im.dir("data/attrdir")
		im.file("data/attrdir/x", "x\n")
		im.put("data/private/key", listing.Entry{Type: "file", Mode: 0o640, UID: 1002, GID: 65533, Data: []byte("new\n")})
	case 20:
		im.put("data/deep", listing.Entry{Type: "dir", Mode: 0o711, UID: 7, GID: 8})
		im.dir("data/empty")
	case 40:
		im.file("data/h4_a", "two names\n")
		im.link("data/h4_b", "data/h4_a")
	}
}
