package union

import (
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/metadata"
)

// Flags of a node. Each is set, cleared and read atomically, without a lock. Once the node is in the tree, flagUpper and
// flagMetacopy change only under Node.copyMu, together with what they say about Node.data.
const (
	// flagUpper: the upper has the node's object, and its attributes are those that count.
	flagUpper = 1 << iota
	// flagMetacopy: the upper object is a metadata-only copy, whose data is still the lower's.
	flagMetacopy
	// flagUnsynced: the upper object carries the unsynced mark, see sync.go.
	flagUnsynced
	// flagUnlinked: no name is left that is known; an upper object lives by its pinned descriptor.
	flagUnlinked
	// flagSpecial: an application made a 0:0 device, which would be a whiteout; an empty file with a mark stands for it.
	flagSpecial
	// flagSpecials and flagXWhiteouts: the upper of this directory has the dirMarks specials and xwhiteouts.
	flagSpecials
	flagXWhiteouts
	// flagNoCaps: the file is known to carry no capabilities.
	flagNoCaps
	// flagRecorded: the attributes that were given out are those of the stack index, and have not been compared with the layer yet.
	flagRecorded
	// flagImpure: the upper of this directory carries the impure attribute already.
	flagImpure
	// flagOwnMount: when the directory was looked up, a layer showed the union's own mount there; see isOwnMount.
	flagOwnMount
	// flagLeft: a rename of the file left a whiteout that an fsync on btrfs may miss; see Union.syncLeft. Set under the locks of
	// the rename.
	flagLeft
	// flagNameless: the file was made by Tmpfile and never had a name.
	flagNameless
)

// link is one name of a node.
type link struct {
	parent *Node
	name   string
	// upper says that the upper layer has this name.
	upper bool
}

type linkKey struct {
	parent *Node
	name   string
}

// lowerRef is the place of a lower object: never changes, since layers do not.
type lowerRef struct {
	layer int32 // index into Union.lowers, -1 in noLower
	dir   string
	name  string
	// view is the directory's path in the merged view of all lowers, which is dir unless a lower has redirects.
	view string
}

// noLower is the lowerRef of what has no lower object.
func noLower() lowerRef { return lowerRef{layer: -1} }

// exists says whether r is the place of an object.
func (r lowerRef) exists() bool { return r.layer >= 0 }

// viewPath is the path by which a redirect names the object: redirects are followed through the merged lowers.
func (r lowerRef) viewPath() string { return joinPath(r.view, r.name) }

// inodeKey is an inode of a layer's file system.
type inodeKey struct{ dev, ino uint64 }

// hardlink is what a node needs once it has, or may have, more than one name. Guarded by Union.treeMu unless noted.
type hardlink struct {
	keys []inodeKey
	// fresh are links that the upper does not have, since the last change of the object (see linkKnown).
	fresh []linkKey
	// more are the links besides Node.link; the value is link.upper.
	more map[linkKey]bool
	// adjust is added to the link count of a lower file. It is not 0 where the layer was once an upper, whose hard-link index held
	// a link to the inode that is no name of the file. Set once.
	adjust int
	// entry is the name of the node's entry in the hard-link index, nil for none. Changed under Node.copyMu.
	entry atomic.Pointer[string]
	// delta is the union's link count minus the upper inode's, while the node has an entry. Guarded by Node.copyMu.
	delta int
	// ofLower says that the count stored on disk is relative to the lower's link count. That stays right while the upper gets names
	// that the union has already; before the file gains or loses a name, storeDelta makes it relative to the upper's. Guarded by
	// Node.copyMu.
	ofLower bool
}

func (h *hardlink) index() string {
	if p := h.entry.Load(); p != nil {
		return *p
	}
	return ""
}

func (h *hardlink) setIndex(name string) { h.entry.Store(&name) }

// Node is one inode of the mount. See the package documentation for its life.
type Node struct {
	ino    atomic.Uint64
	mode   uint16 // type bits, immutable
	spread uint16 // the low bits of the first ino, see Spread; immutable
	flags  atomic.Uint32
	refs   int64 // guarded by Union.treeMu

	link  link                     // guarded by Union.treeMu; of a directory also by renameMu
	hardp atomic.Pointer[hardlink] // set once, under Union.treeMu

	lower lowerRef // the topmost lower object, or the one that holds the data; immutable

	copyMu   sync.Mutex
	reworked atomic.Pointer[reworked]
	data     layer.Slot // descriptor of the data or, pinned, of an upper object without a name

	dir *dirState // directories only

	// Tag belongs to the front end, which guards it; it is zero in a new node.
	Tag uint32

	// lowerBlocks is what keepBlocks keeps: one more than the blocks of the lower, 0 while they are not known.
	lowerBlocks atomic.Uint32
}

// keepBlocks remembers how many blocks the lower of a metadata-only copy has. Lowers do not change, so it stays right.
func (n *Node) keepBlocks(blocks uint64) {
	if blocks < math.MaxUint32 {
		n.lowerBlocks.Store(uint32(blocks) + 1)
	}
}

// Ino is the inode number that the mount shows. It is stable over copy-up and rename, but for a hard link of a lower that
// copy-up breaks (NoIndex).
func (n *Node) Ino() uint64 { return n.ino.Load() }

// Spread is a number by which a front end may share nodes out: it never changes, and two nodes may have the same.
func (n *Node) Spread() uint16 { return n.spread }

// Mode is the node's type, as the S_IFMT bits of a mode.
func (n *Node) Mode() uint32 { return uint32(n.mode) }

// IsDir says whether the node is a directory.
func (n *Node) IsDir() bool { return n.dir != nil }

// hard is what a node with several names knows of them, nil for others.
func (n *Node) hard() *hardlink { return n.hardp.Load() }

func (n *Node) has(flag uint32) bool { return n.flags.Load()&flag != 0 }
func (n *Node) set(flag uint32)      { n.flags.Or(flag) }
func (n *Node) clear(flag uint32)    { n.flags.And(^flag) }

// lowerDir is one lower directory that takes part in a merged one.
type lowerDir struct {
	layer int32
	path  string
	slot  layer.Slot
	marks dirMarks
}

// dirMarks are what a directory announces of its entries.
type dirMarks struct {
	// xwhiteouts: some may be whiteouts in attribute form.
	xwhiteouts bool
	// specials: some empty files may stand for 0:0 devices of an application.
	specials bool
}

// dirState is what a directory node knows.
type dirState struct {
	mu sync.Mutex

	upper layer.Slot
	// candidates are the directories of this name in the lowers of the parent, topmost first. resolveLocked looks at their opacity and
	// redirects, once, to find lowers, and sets resolved. Guarded by mu.
	candidates []lowerDir
	resolved   atomic.Bool
	// below is the number of candidates, one more if there is but one and it has a redirect, and, once resolved, of lowers. With it
	// the directory knows without a lock whether its link count is that of subdirs, so it outlasts hideLowersLocked: a count that
	// was given out goes on as it was.
	below atomic.Int32
	// lowers are the lower directories that merge, topmost first, and view is their path in the merged view of all lowers, which is
	// meaningless without any. Both are immutable once resolved, but for the slots, and hideLowersLocked.
	view   string
	lowers []lowerDir

	// rec is what the stack index says of lowers, nil for nothing; set with them.
	rec *metadata.Dir
	// names is the merged view of lowers, nil until needed; immutable once set. Guarded by mu.
	names map[string]lowerName
	// probes counts the names that were looked up while names is nil. Guarded by mu.
	probes int
	// dead says that the directory was removed: nothing can be created in it. Guarded by mu.
	dead bool
	// listing is the merged directory in offset order, nil when not valid. Guarded by mu.
	listing *listing
	scans   scanTimes // guarded by mu
	// subdirs is one more than the number of subdirectories of a merged directory, 0 while it is not known. Changed
	// under mu.
	subdirs atomic.Int32
	// hint is what creation needs to know of the upper directory. Guarded by mu.
	hint createHint

	children map[string]*Node // guarded by Union.treeMu
	peak     int              // largest len(children) since the map was made; guarded by Union.treeMu
}

// hideLowersLocked notes that the directory, which is resolved, became opaque: no lower takes part any more. Precondition: d.mu is
// held, and renameMu for writing.
func (d *dirState) hideLowersLocked() {
	d.lowers, d.rec, d.names, d.listing = nil, nil, nil, nil
}

// child returns the node of a name that the front end holds already, with a reference.
func (u *Union) child(dir *Node, name string) *Node {
	u.treeMu.Lock()
	defer u.treeMu.Unlock()
	n := dir.dir.children[name]
	if n != nil {
		n.refs++
	}
	return n
}

// attachLocked adds the name (dir, name) to n. Precondition: treeMu is held.
func (u *Union) attachLocked(n, dir *Node, name string, upper bool) {
	d := dir.dir
	if d.children == nil {
		d.children = make(map[string]*Node)
		d.peak = 0
	}
	d.children[name] = n
	d.peak = max(d.peak, len(d.children))
	dir.refs++
	if h := n.hard(); h != nil && !upper {
		h.fresh = append(h.fresh, linkKey{dir, name})
	}
	if n.link.parent == nil {
		n.link = link{parent: dir, name: name, upper: upper}
		return
	}
	if n.hard().more == nil {
		n.hard().more = make(map[linkKey]bool)
	}
	n.hard().more[linkKey{dir, name}] = upper
}

// detachLocked takes the name (dir, name) away from n. The reference that the link held on dir is handed to the caller,
// who gives it back with unrefLocked. Precondition: treeMu is held.
func (u *Union) detachLocked(n, dir *Node, name string) {
	u.dropChildLocked(dir, name)
	if n.link.parent == dir && n.link.name == name {
		n.link = link{}
		if n.hard() != nil {
			// Prefer an upper name as the first one: it is where the object is reached.
			var pick linkKey
			for k, upper := range n.hard().more {
				if pick = k; upper {
					break
				}
			}
			if pick.parent != nil {
				n.link = link{parent: pick.parent, name: pick.name, upper: n.hard().more[pick]}
				delete(n.hard().more, pick)
			}
		}
		return
	}
	if n.hard() != nil {
		delete(n.hard().more, linkKey{dir, name})
	}
}

// dropChildLocked removes a child and rebuilds a map that has become much too large: Go's maps do not shrink.
func (u *Union) dropChildLocked(dir *Node, name string) {
	d := dir.dir
	delete(d.children, name)
	switch n := len(d.children); {
	case n == 0:
		d.children = nil
	case d.peak > 64 && n < d.peak/4:
		smaller := make(map[string]*Node, n)
		for k, v := range d.children {
			smaller[k] = v
		}
		d.children, d.peak = smaller, n
	}
}

// renameLinkLocked moves a link of n. Precondition: treeMu is held, and for a directory renameMu is held for writing.
func (u *Union) renameLinkLocked(n, odir *Node, oname string, ndir *Node, nname string) {
	ndir.refs++ // kept by attach below; this one keeps ndir alive meanwhile
	u.detachLocked(n, odir, oname)
	u.attachLocked(n, ndir, nname, true)
	u.unrefLocked(odir, 1, nil)
	ndir.refs--
}

// firstLink returns n's first name; its parent is nil when none is left (and for the root).
func (u *Union) firstLink(n *Node) link {
	u.treeMu.Lock()
	defer u.treeMu.Unlock()
	return n.link
}

// upperLink returns a name of n that the upper layer has.
func (u *Union) upperLink(n *Node) (link, bool) {
	u.treeMu.Lock()
	defer u.treeMu.Unlock()
	if n.link.parent != nil && n.link.upper {
		return n.link, true
	}
	if n.hard() != nil {
		for k, upper := range n.hard().more {
			if upper {
				return link{k.parent, k.name, true}, true
			}
		}
	}
	return link{}, false
}

// linkIsUpper says whether the upper layer has this name of n.
func (u *Union) linkIsUpper(n, dir *Node, name string) bool {
	u.treeMu.Lock()
	defer u.treeMu.Unlock()
	if n.link.parent == dir && n.link.name == name {
		return n.link.upper
	}
	return n.hard() != nil && n.hard().more[linkKey{dir, name}]
}

// setLinkUpperLocked notes that the upper layer has this name of n now. Precondition: treeMu is held.
func (n *Node) setLinkUpperLocked(dir *Node, name string) {
	if n.link.parent == dir && n.link.name == name {
		n.link.upper = true
	} else if n.hard() != nil {
		n.hard().more[linkKey{dir, name}] = true
	}
}

// Forget gives back count references that Lookup and the creating calls returned.
func (u *Union) Forget(n *Node, count uint64) {
	if u.quota != nil {
		u.quota.parting(n, int64(count))
	}
	var room goneRoom
	u.treeMu.Lock()
	gone := u.unrefLocked(n, int64(count), room[:0])
	u.treeMu.Unlock()
	u.closeNodes(gone)
}

// goneRoom has room for the nodes that mostly go at a time: one that is forgotten, and perhaps its parent.
type goneRoom [2]*Node

// unrefLocked drops references and takes nodes without any out of the tree, parents included. It appends to gone the
// nodes whose descriptors closeNodes has to close once treeMu is released. Precondition: treeMu is held.
func (u *Union) unrefLocked(n *Node, count int64, gone []*Node) []*Node {
	for queue := []*Node{n}; len(queue) > 0; count = 1 {
		n := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		n.refs -= count
		if n.refs > 0 || n == u.root {
			continue
		}
		for n.link.parent != nil {
			p := n.link.parent
			u.detachLocked(n, p, n.link.name)
			queue = append(queue, p)
		}
		if n.hard() != nil {
			u.forgetKeysLocked(n)
		}
		u.nodes.Add(-1)
		gone = append(gone, n)
	}
	return gone
}

func (u *Union) forgetKeysLocked(n *Node) {
	for _, k := range n.hard().keys {
		if u.inodes[k] == n {
			delete(u.inodes, k)
		}
	}
	if len(u.inodes) == 0 && u.inodesPeak > 1024 {
		u.inodes, u.inodesPeak = make(map[inodeKey]*Node), 0
	}
}

// addKeyLocked makes n the node of an inode that may be reached by other names. Precondition: treeMu is held.
func (u *Union) addKeyLocked(n *Node, k inodeKey) {
	if n.hard() == nil {
		n.hardp.Store(&hardlink{})
	}
	for _, have := range n.hard().keys {
		if have == k {
			return
		}
	}
	n.hard().keys = append(n.hard().keys, k)
	u.inodes[k] = n
	u.inodesPeak = max(u.inodesPeak, len(u.inodes))
}

func (u *Union) closeNodes(gone []*Node) {
	for _, n := range gone {
		u.quota.forget(n)
		u.files.Drop(&n.data)
		if n.dir == nil {
			continue
		}
		u.dirs.Drop(&n.dir.upper)
		if n.dir.resolved.Load() {
			for i := range n.dir.lowers {
				u.dirs.Drop(&n.dir.lowers[i].slot)
			}
		}
	}
}

// newNode makes a node that is in no table yet.
func (u *Union) newNode(ino uint64, mode uint32) *Node {
	n := &Node{mode: uint16(mode & unix.S_IFMT), spread: uint16(ino), lower: noLower()}
	n.ino.Store(ino)
	if n.mode == unix.S_IFDIR {
		n.dir = &dirState{}
	}
	u.nodes.Add(1)
	return n
}
