package union

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
	"plyfs/metadata"
)

// StackIndex tells what the merged lowers of a union hold, from an earlier look at them. It is a hint that is checked before it is
// believed: a directory against the layers when it is first used, a file when it is first opened. All methods are safe for
// concurrent use.
type StackIndex interface {
	// Dir returns the record of the directory with that path in the merged lowers; nil if there is none. After an error the
	// union asks no more.
	Dir(view string) (*metadata.Dir, error)
	// MarkStale is told once that the layers are not what was recorded.
	MarkStale(reason string)
}

// StackOf identifies the lowers of o, and the options by which they are read, to find their index.
func StackOf(o *Options) (*metadata.Stack, error) {
	s := &metadata.Stack{}
	for _, l := range o.Lowers {
		s.Layers = append(s.Layers, layerID(l))
	}
	if inUserNamespace() {
		for _, name := range [...]string{"uid_map", "gid_map"} {
			b, err := os.ReadFile("/proc/self/" + name)
			if err != nil {
				return nil, err
			}
			s.IDMap += name + "\n" + strings.Join(strings.Fields(string(b)), " ") + "\n"
		}
	}
	if o.RedirectDir == RedirectOff {
		s.Options = "redirect_dir=off"
	}
	return s, nil
}

func layerID(l *layer.Layer) metadata.LayerID {
	id := metadata.LayerID{
		UUID: l.UUID, FSID: l.FSID, Dev: l.Dev, Ino: l.Ino, Btime: stampTime(l.Btime),
		UID: l.UID, GID: l.GID, Override: l.Override(),
	}
	if h, err := sys.Handle(l.FD(), ""); err == nil {
		id.Handle = append([]byte{byte(h.Type)}, h.Bytes...)
	}
	return id
}

func stampTime(t unix.StatxTimestamp) metadata.Time { return metadata.Time{Sec: t.Sec, Nsec: t.Nsec} }

func stampOf(st *unix.Statx_t) metadata.Stamp {
	return metadata.Stamp{Ino: st.Ino, Size: st.Size, Mtime: stampTime(st.Mtime), Ctime: stampTime(st.Ctime)}
}

// trusted returns the record of a resolved directory as long as the index is believed.
func (u *Union) trusted(d *dirState) *metadata.Dir {
	if d.rec == nil || u.distrusted.Load() {
		return nil
	}
	return d.rec
}

// distrust stops all use of the index: what it says of one thing is wrong, so nothing else can be relied on.
func (u *Union) distrust(reason string) {
	if !u.distrusted.CompareAndSwap(false, true) {
		return
	}
	u.log.Warn("the stack index is not used any more: the layers are read instead", "reason", reason)
	u.opt.StackIndex.MarkStale(reason)
}

// recallLocked resolves the lowers of n from the index. It reports false when the layers have to be read. Preconditions:
// n.dir.mu is held, n.dir.view is settled, and n has lowers: those that the merged lowers have at that path.
func (u *Union) recallLocked(n *Node) bool {
	if u.opt.StackIndex == nil {
		return false
	}
	d := n.dir
	rec := u.recall(d.view)
	u.countRecall(rec != nil)
	if rec == nil {
		if n.has(flagRecorded) { // what was said of it, by the record of its parent, may be as wrong
			n.clear(flagRecorded)
			d.subdirs.Store(0)
			u.corrected(n)
		}
		return false
	}
	d.lowers = make([]lowerDir, len(rec.Lowers))
	for i := range rec.Lowers {
		l := &rec.Lowers[i]
		d.lowers[i] = lowerDir{layer: l.Layer, path: l.Path, marks: dirMarks{xwhiteouts: l.XWhiteouts, specials: l.Specials}}
	}
	d.rec = rec
	return true
}

// countRecall counts one directory that was asked of the index.
func (u *Union) countRecall(found bool) {
	switch {
	case found:
		u.indexHits.Add(1)
	case u.distrusted.Load():
		u.indexFallbacks.Add(1)
	default:
		u.indexMisses.Add(1)
	}
}

// recall returns the record of a directory, unless it is not there or not true.
func (u *Union) recall(view string) *metadata.Dir {
	if u.distrusted.Load() {
		return nil
	}
	rec, err := u.opt.StackIndex.Dir(view)
	if err != nil {
		u.distrust(err.Error())
		return nil
	}
	if rec == nil || !u.checkStamps(view, rec) {
		return nil
	}
	return rec
}

func (u *Union) corrected(n *Node) {
	if u.opt.Observer != nil {
		u.opt.Observer.Corrected(n)
	}
}

// stampsAlone is how many lower directories one goroutine compares: fewer are done sooner than another one starts.
const stampsAlone = 128

// checkStamps says whether the lower directories of a record are as they were. What takes its time is the kernel, which
// finds each of them for a statx(2), so a tall stack is compared on all processors.
func (u *Union) checkStamps(view string, rec *metadata.Dir) bool {
	ls := rec.Lowers
	parts := min(runtime.NumCPU(), len(ls)/stampsAlone)
	if parts < 2 {
		return u.sameStamps(view, ls)
	}
	var others sync.WaitGroup
	var differ atomic.Bool
	size := (len(ls) + parts - 1) / parts
	for at := size; at < len(ls); at += size {
		others.Go(func() {
			if !u.sameStamps(view, ls[at:min(at+size, len(ls))]) {
				differ.Store(true)
			}
		})
	}
	same := u.sameStamps(view, ls[:size])
	others.Wait()
	return same && !differ.Load()
}

func (u *Union) sameStamps(view string, ls []metadata.Lower) bool {
	for i := range ls {
		l := &ls[i]
		if l.Layer < 0 || int(l.Layer) >= len(u.lowers) {
			u.distrust("a record names a layer that is not there")
			return false
		}
		lay := u.lowers[l.Layer]
		var st unix.Statx_t
		err := lay.StatRaw(lay.FD(), l.Path, sys.StampMask, &st)
		switch {
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
			u.distrust(fmt.Sprintf("/%s is gone from layer %s", l.Path, lay.Path))
			return false
		case err != nil:
			return false // a path longer than one call takes, or an error that reading the directory will show too
		case st.Ino != l.Stamp.Ino || stampTime(st.Mtime) != l.Stamp.Mtime || stampTime(st.Ctime) != l.Stamp.Ctime:
			u.distrust(fmt.Sprintf("/%s changed in layer %s (seen as /%s)", l.Path, lay.Path, view))
			return false
		}
	}
	return true
}

// recordedLocked is lowerNameLocked by the index. ok is false if nothing is visible there; an error says that the index does
// not know after all. Precondition: dir.dir.mu is held.
func (u *Union) recordedLocked(dir *Node, rec *metadata.Dir, name string, e *entry) (ln lowerName, ok bool, err error) {
	var m metadata.Entry
	if ok, err = rec.Find(name, &m); err != nil || !ok {
		return ln, false, err
	}
	d := dir.dir
	low := &d.lowers[m.First]
	ln = lowerName{first: int16(m.First), typ: direntType(m.Mode), ino: m.Ino}
	if ln.typ == unix.DT_DIR {
		ln.dirs = make([]int16, len(m.Below))
		for i, k := range m.Below {
			ln.dirs[i] = int16(k)
		}
	}
	if e.upper || m.Ask || u.opt.VerifyIndex {
		return ln, true, u.verifyEntry(d, &m, e.upper)
	}
	if m.Nlink > 1 && ln.typ != unix.DT_DIR && u.indexFD() >= 0 {
		return ln, true, nil // other names may have been copied up: the caller asks the layer
	}
	e.layer = u.lowers[low.layer]
	e.lower = lowerRef{layer: low.layer, dir: low.path, name: name, view: d.view}
	e.special, e.recorded = m.Special, true
	e.subdirs = m.Subdirs
	fillStatx(&e.st, &m, e.layer.Dev)
	if m.Nlink > 1 && ln.typ != unix.DT_DIR {
		e.adjust = recordedAdjust(e.layer, &m, &e.st)
	}
	return ln, true, nil
}

// verifyEntry compares an entry with its object where VerifyIndex asks for it; hidden says that an upper object hides it.
func (u *Union) verifyEntry(d *dirState, m *metadata.Entry, hidden bool) error {
	if !u.opt.VerifyIndex || hidden || m.Ask {
		return nil
	}
	low := &d.lowers[m.First]
	f, err := u.openLower(low)
	if err != nil {
		return nil // the caller opens it again and reports
	}
	defer f.Close()
	var st unix.Statx_t
	err = u.lowers[low.layer].Stat(f.FD(), m.Name, &st)
	if err == nil && stampOf(&st) == (metadata.Stamp{Ino: m.Ino, Size: m.Size, Mtime: m.Mtime, Ctime: m.Ctime}) {
		return nil
	}
	return fmt.Errorf("/%s in layer %s is not what was recorded", joinPath(low.path, m.Name), u.lowers[low.layer].Path)
}

// recordedAdjust is hardlink.adjust of a recorded entry, with the attributes st, as probeLinks finds it out of the layer.
func recordedAdjust(l *layer.Layer, m *metadata.Entry, st *unix.Statx_t) int {
	for _, ns := range [...]*ovl.Names{ovl.Trusted(), ovl.User()} {
		var nlink, origin []byte
		for i := range m.Xattrs {
			switch m.Xattrs[i].Name {
			case ns.Nlink:
				nlink = m.Xattrs[i].Value
			case ns.Origin:
				origin = m.Xattrs[i].Value
			}
		}
		if nlink != nil && origin != nil {
			if adjust := formerIndexLinks(l, st, nlink, origin); adjust != 0 {
				return adjust
			}
		}
	}
	return 0
}

// fillStatx is what statx(2) said of the object.
func fillStatx(st *unix.Statx_t, m *metadata.Entry, dev uint64) {
	st.Mode, st.Nlink, st.Uid, st.Gid = uint16(m.Mode), m.Nlink, m.UID, m.GID
	st.Ino, st.Size, st.Blocks, st.Blksize = m.Ino, m.Size, m.Blocks, m.Blksize
	st.Rdev_major, st.Rdev_minor = unix.Major(m.Rdev), unix.Minor(m.Rdev)
	st.Dev_major, st.Dev_minor = unix.Major(dev), unix.Minor(dev)
	st.Atime, st.Mtime, st.Ctime = statxTime(m.Atime), statxTime(m.Mtime), statxTime(m.Ctime)
	st.Mask = unix.STATX_BASIC_STATS
	if m.Btime != (metadata.Time{}) {
		st.Btime, st.Mask = statxTime(m.Btime), st.Mask|unix.STATX_BTIME
	}
}

func statxTime(t metadata.Time) unix.StatxTimestamp {
	return unix.StatxTimestamp{Sec: t.Sec, Nsec: t.Nsec}
}

// entryOf finds the recorded entry of a lower object whose attributes came from the index, in the directory that it lies in.
func (u *Union) entryOf(n *Node, m *metadata.Entry) bool {
	if !n.has(flagRecorded) || u.opt.StackIndex == nil || u.distrusted.Load() {
		return false
	}
	var rec *metadata.Dir
	p := u.firstLink(n).parent
	if p != nil && p.dir.resolved.Load() && p.dir.rec != nil && p.dir.view == n.lower.view {
		rec = p.dir.rec
	} else {
		var err error
		if rec, err = u.opt.StackIndex.Dir(n.lower.view); err != nil || rec == nil {
			return false
		}
	}
	ok, err := rec.Find(n.lower.name, m)
	return ok && err == nil && !m.Ask
}

// checkOpened compares a lower file that was opened for its data with what was said of it, once. If it was edited in place,
// which leaves the times of its directory alone, the front end is told that the attributes are others: it is told before a
// byte is served.
func (u *Union) checkOpened(n *Node, fd int) {
	if !n.has(flagRecorded) {
		return
	}
	var m metadata.Entry
	known := u.entryOf(n, &m)
	n.clear(flagRecorded)
	if !known {
		return
	}
	var st unix.Statx_t
	if sys.Statx(fd, "", &st) != nil || stampOf(&st) == (metadata.Stamp{Ino: m.Ino, Size: m.Size, Mtime: m.Mtime, Ctime: m.Ctime}) {
		return
	}
	u.log.Error("a file of a layer was changed in place; its attributes are read anew",
		"layer", u.lowers[n.lower.layer].Path, "file", joinPath(n.lower.dir, n.lower.name))
	u.distrust(fmt.Sprintf("/%s in layer %s was changed", joinPath(n.lower.dir, n.lower.name), u.lowers[n.lower.layer].Path))
	u.corrected(n)
}

// lacksXattr says whether a lower object is known to have no extended attribute of that name on disk; of any name, if it is "".
// It is what is asked most often.
func (u *Union) lacksXattr(n *Node, disk string) bool {
	var m metadata.Entry
	if n.has(flagUpper) || !u.entryOf(n, &m) {
		return false
	}
	for i := range m.Xattrs {
		if disk == "" || m.Xattrs[i].Name == disk {
			return false
		}
	}
	return true
}
