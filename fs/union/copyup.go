package union

import (
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// copyWant is how much of a lower object must be in the upper.
type copyWant int

const (
	// copyMeta: its attributes.
	copyMeta copyWant = iota
	// copyData: its data too.
	copyData
)

// wholeFile is the limit of a copy-up that wants all of the data.
const wholeFile = math.MaxInt64

// copyUpMeta gives n, and its ancestors, upper objects with the attributes of the lower ones; see copyUp.
func (u *Union) copyUpMeta(n *Node) error { return u.copyUp(n, copyMeta, wholeFile) }

// copyUpData does what copyUpMeta does, and puts the data of n into the upper too; see copyUp.
func (u *Union) copyUpData(n *Node) error { return u.copyUp(n, copyData, wholeFile) }

// copyUp gives n, and its ancestors, upper objects. With copyData, limit is how many bytes of the data are wanted: a
// caller that is about to truncate the file needs no more. It blocks for the copying; others that want the same node wait
// for it, nobody else does (cf. overlayfs copy_up.c ovl_copy_up_flags, ovl_copy_up_start).
//
// Precondition: no lock is held.
func (u *Union) copyUp(n *Node, want copyWant, limit int64) error {
	if n.copied(want) {
		if u.opt.ReadOnly {
			return unix.EROFS
		}
		return u.linkKnown(n)
	}
	if u.work == nil {
		return unix.EROFS
	}
	if p := u.firstLink(n).parent; p != nil {
		if err := u.copyUpMeta(p); err != nil {
			return err
		}
	}
	land := n.takeOff(want)
	if land == nil {
		return nil
	}
	began := time.Now()
	err := u.copyUpInFlight(n, want, limit, land)
	if errors.Is(err, errMoved) {
		return u.copyUp(n, want, limit)
	}
	if err != nil {
		return fmt.Errorf("copy-up of %s: %w", u.pathOf(n), err)
	}
	u.copyUps.Add(1)
	u.copyUpTimes.Observe(time.Since(began))
	if u.opt.Observer != nil && n.mode == unix.S_IFREG {
		u.opt.Observer.CopiedUp(n)
	}
	return u.linkKnown(n)
}

// takeOff makes the caller the one who copies n up, until land is called. It waits while others do; land is nil if nothing is left to
// do then.
func (n *Node) takeOff(want copyWant) (land func()) {
	own := n.rework()
	for {
		n.copyMu.Lock()
		if n.copied(want) {
			n.copyMu.Unlock()
			return nil
		}
		if running := own.inflight; running != nil {
			n.copyMu.Unlock()
			<-running
			continue
		}
		done := make(chan struct{})
		own.inflight = done
		n.copyMu.Unlock()
		return func() {
			n.copyMu.Lock()
			own.inflight = nil
			n.copyMu.Unlock()
			close(done)
		}
	}
}

// copyUpInFlight is copyUpOne for who took off, and lands also if it panics.
func (u *Union) copyUpInFlight(n *Node, want copyWant, limit int64, land func()) error {
	defer land()
	return u.copyUpOne(n, want, limit)
}

func (n *Node) copied(want copyWant) bool {
	f := n.flags.Load()
	return f&flagUpper != 0 && (want == copyMeta || f&flagMetacopy == 0)
}

// errMoved says that the name under which an object was to be published is no longer its first.
var errMoved = errors.New("first name changed during copy-up")

// copyUpOne copies one object whose parent is in the upper already.
func (u *Union) copyUpOne(n *Node, want copyWant, limit int64) error {
	if n.has(flagUpper) {
		return u.completeMetacopy(n, limit)
	}
	c := &copyUp{u: u, n: n, limit: limit, tmp: -1}
	c.data = want == copyData || u.opt.NoMetacopy || u.names == nil || u.upper.Override() != ""
	defer c.close()
	if err := c.prepare(); err != nil {
		return err
	}
	if u.quota != nil {
		return c.runCharged()
	}
	if err := c.stage(); err != nil {
		return err
	}
	return c.publish()
}

// copyUp is one running copy-up: prepared, staged and published in this order (cf. overlayfs copy_up.c struct
// ovl_copy_up_ctx).
type copyUp struct {
	u     *Union
	n     *Node
	data  bool // the data is wanted too, up to limit bytes
	limit int64

	from   loc // nowhere, for an own mount's root
	st     unix.Statx_t
	origin *ovl.Origin
	adjust int // see hardlink.adjust

	name   string // in the staging directory, "" for an unnamed file
	tmp    int    // descriptor of the staged object, -1 for none
	marked bool   // the staged file carries the unsynced mark
	meta   bool   // the staged file has no data
	moded  bool   // the staged file was made with the mode that it keeps
	shut   bool   // attributes can't be written any more once the copy has its mode
	done   bool
	// unlinked says that the object has no name left: the descriptor is the only way to it.
	unlinked bool
}

// prepare looks at the lower object.
func (c *copyUp) prepare() (err error) {
	u := c.u
	if c.n.isOwnMount() {
		if !c.n.lower.exists() {
			return unix.EBUSY // in the upper, where it is a mount point
		}
		return u.statOwn(&c.st)
	}
	if c.from, err = u.copySource(c.n); err != nil {
		return err
	}
	if err := c.from.layer.Stat(c.from.fd(), c.from.name, &c.st); err != nil {
		return err
	}
	if h := c.n.hard(); h != nil {
		c.adjust = h.adjust
	}
	if c.from.layer.Handles() && u.names != nil {
		h, err := sys.Handle(c.from.fd(), c.from.name)
		o := ovl.Origin{UUID: c.from.layer.UUID, FileHandle: h}
		if err == nil && o.Fits() {
			c.origin = &o
		}
	}
	c.shut = c.willShut()
	c.meta = c.n.mode == unix.S_IFREG && !c.data && c.st.Size > 0 && !c.n.has(flagSpecial) && !c.shut
	return nil
}

// copySource is where the attributes of n are.
func (u *Union) copySource(n *Node) (loc, error) {
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	return u.attrLoc(n)
}

// willShut says whether this process, a plain user's, has no right to write the attributes of a copy: of one with these permissions
// not even the owner has it. Such a copy has none that would have to change: it is complete, and on the disk, before it gets its mode.
// A directory that can't be read either is not copied: what its marks say is not known.
func (c *copyUp) willShut() bool {
	const readable = unix.S_IRUSR | unix.S_IXUSR
	mode := c.u.copiedMode(&c.st)
	if c.u.euid == 0 || c.u.upper.Override() != "" || mode&unix.S_IWUSR != 0 {
		return false
	}
	return c.n.mode == unix.S_IFREG || c.n.IsDir() && mode&readable == readable
}

func (c *copyUp) close() {
	if c.from.dir != nil {
		c.from.close()
	}
	if c.tmp >= 0 {
		unix.Close(c.tmp)
	}
	if !c.done && c.name != "" {
		c.u.work.Discard(c.name)
	}
}
