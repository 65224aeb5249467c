package union

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
	"plyfs/metadata"
)

// listEntry is one name of a merged directory.
type listEntry struct {
	name string // "" once removed
	off  uint64
	ino  uint64 // 0: ask the layers when it is wanted
	typ  uint8
}

// listing is a merged directory in offset order. Offsets are hashes of the names, as ext4's are: a listing can be thrown
// away and made again at any time, with any changes between, and a scan goes on where it was.
type listing struct {
	entries []listEntry
	removed int
	// added are names that came, or stand for something else, since entries was made.
	added []listEntry
}

// mostAdded bounds listing.added: who adds more while nobody reads loses the listing.
const mostAdded = 512

// scanTimes tell of scans that a change came between. The kernel puts what it is answered together to one listing and trusts that as long
// as the directory is what it was when the first part was asked for, by whoever. An answer of before a change, which its reader comes
// to late, may so begin a listing that was asked for after the change (cf. fs/fuse/readdir.c fuse_readdir_cached, fuse_add_dirent_to_cache).
type scanTimes struct {
	given time.Time // when entries were last given out, zero if that was before the last change
	torn  time.Time // when the directory last changed while such an answer could be on its way, zero for never
}

// readerDelay is how late a reader may come to an answer.
const readerDelay = time.Second

func (s *scanTimes) changed() {
	if s.given.IsZero() {
		return
	}
	if now := time.Now(); now.Sub(s.given) < readerDelay {
		s.torn = now
	}
	s.given = time.Time{}
}

// ListingTorn reports whether what was given out of dir, up to the end that ReadDir just came to, may be of before and after a
// change.
func (u *Union) ListingTorn(dir *Node) bool {
	d := dir.dir
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.scans.torn.IsZero() {
		return false
	}
	if time.Since(d.scans.torn) >= readerDelay {
		d.scans.torn = time.Time{} // an older answer would have come by now, and this time all goes
	}
	return true
}

// Offsets 1 and 2 are behind "." and ".."; hashes follow. The low bits tell colliding names apart.
const (
	offDot    = 1
	offDotDot = 2
	hashShift = metadata.OffsetShift
)

func nameOffset(name string) uint64 { return metadata.NameOffset(name) }

// ReadDir fills buf with entries of dir from offset on (0 is the beginning) and returns how many; 0 is the end. "." and
// ".." come first.
func (u *Union) ReadDir(dir *Node, offset uint64, buf []Dirent) (int, error) {
	if dir.dir == nil {
		return 0, unix.ENOTDIR
	}
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	n := 0
	if offset < offDot && n < len(buf) {
		buf[n] = Dirent{Name: ".", Ino: dir.ino.Load(), Type: unix.S_IFDIR, Next: offDot}
		n++
	}
	if offset < offDotDot && n < len(buf) {
		up := dir
		if l := u.firstLink(dir); l.parent != nil {
			up = l.parent
		}
		buf[n] = Dirent{Name: "..", Ino: up.ino.Load(), Type: unix.S_IFDIR, Next: offDotDot}
		n++
	}
	if n == len(buf) {
		return n, nil
	}
	d := dir.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return n, nil
	}
	if offset <= offDotDot && u.opt.Live {
		d.listing = nil // somebody stopped in the middle
	}
	if err := u.listLocked(dir); err != nil {
		return n, err
	}
	es := d.listing.entries
	for i := sort.Search(len(es), func(i int) bool { return es[i].off > offset }); i < len(es) && n < len(buf); i++ {
		e := &es[i]
		if e.name == "" {
			continue
		}
		ino, typ, ok := u.entryIno(dir, e)
		if !ok {
			continue
		}
		buf[n] = Dirent{Name: e.name, Ino: ino, Type: typeMode(typ), Next: e.off}
		n++
	}
	if n > 0 {
		d.scans.given = time.Now()
	} else {
		d.listing = nil // the scan is over; see listing for why it can be thrown away
	}
	return n, nil
}

// entryIno is the inode number and type to report for a listed entry: those of its node or, of an upper object that may
// have been copied up, those that a lookup would give. ok is false if it turns out to be gone. Precondition: dir.dir.mu
// and renameMu are held.
func (u *Union) entryIno(dir *Node, e *listEntry) (ino uint64, typ uint8, ok bool) {
	u.treeMu.Lock()
	n := dir.dir.children[e.name]
	u.treeMu.Unlock()
	if n != nil {
		return n.ino.Load(), direntType(n.Mode()), true
	}
	if e.ino != 0 {
		return e.ino, e.typ, true
	}
	ent := entry{lower: noLower()}
	if u.probeLocked(dir, e.name, &ent) != nil {
		return 0, 0, false
	}
	ino = ent.origin
	if ino == 0 {
		ino = u.mapIno(sys.Dev(&ent.st), ent.st.Ino)
	}
	e.ino, e.typ = ino, direntType(ent.mode())
	return e.ino, e.typ, true
}

// listLocked makes dir's listing valid. Precondition: dir.dir.mu and renameMu are held.
func (u *Union) listLocked(dir *Node) error {
	d := dir.dir
	if d.listing != nil && d.listing.merge() {
		return nil
	}
	d.listing = nil
	if err := u.resolveLocked(dir); err != nil {
		return err
	}
	l := &listing{}
	var hide map[string]struct{} // names that the upper has or deletes
	if dir.has(flagUpper) {
		var err error
		if hide, err = u.listUpper(dir, l); err != nil {
			return err
		}
	}
	if err := u.listLowers(dir, l, hide); err != nil {
		return err
	}
	slices.SortFunc(l.entries, func(a, b listEntry) int {
		if c := cmp.Compare(a.off, b.off); c != 0 {
			return c
		}
		return cmp.Compare(a.name, b.name)
	})
	for i := 1; i < len(l.entries); i++ {
		if l.entries[i].off <= l.entries[i-1].off {
			l.entries[i].off = l.entries[i-1].off + 1
		}
	}
	d.listing = l
	return nil
}

// listUpper adds the upper's entries and returns the names that the lowers must not add; nil where there are no lowers.
func (u *Union) listUpper(dir *Node, l *listing) (map[string]struct{}, error) {
	f, err := u.dirUpper(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	merged := len(dir.dir.lowers) > 0
	var hide map[string]struct{}
	if merged {
		hide = make(map[string]struct{})
	}
	unsure := merged || dir.has(flagImpure) || u.upper.Override() != ""
	upperMarks := dirMarks{xwhiteouts: dir.has(flagXWhiteouts)}
	err = layer.List(f.FD(), func(e layer.RawDirent) error {
		if ovl.IsAUFSName(e.Name) && u.aufsHidden(f.FD(), e.Name, e.Type) {
			if victim, ok := u.aufsVictim(f.FD(), e.Name); ok && merged {
				if _, shown := hide[victim]; !shown {
					hide[victim] = struct{}{}
				}
			}
			return nil
		}
		if merged {
			hide[e.Name] = struct{}{}
		}
		typ, err := u.entryType(u.upper, f.FD(), e, upperMarks)
		if err != nil || typ == unix.DT_WHT {
			return err
		}
		le := listEntry{name: e.Name, off: nameOffset(e.Name), ino: u.mapIno(u.upper.Dev, e.Ino), typ: typ}
		if unsure || dir.has(flagSpecials) && typ == unix.DT_REG {
			le.ino = 0 // the number to show may be the origin's, the type that of a device: entryIno looks
		}
		l.entries = append(l.entries, le)
		return nil
	})
	return hide, err
}

// listLowers adds what the lowers hold and the upper does not hide.
func (u *Union) listLowers(dir *Node, l *listing, hide map[string]struct{}) error {
	d := dir.dir
	add := func(name string, low *lowerDir, ino uint64, typ uint8) {
		if _, hidden := hide[name]; hidden {
			return
		}
		lay := u.lowers[low.layer]
		num := u.mapIno(lay.Dev, ino)
		if lay.Override() != "" || low.marks.specials && typ == unix.DT_REG {
			num = 0 // the type may be another than the inode's
		}
		l.entries = append(l.entries, listEntry{name: name, off: nameOffset(name), ino: num, typ: typ})
	}
	if rec := u.trusted(d); rec != nil {
		l.entries = slices.Grow(l.entries, rec.Len())
		for i := range rec.Len() {
			name, typ, ino, first, err := rec.NameAt(i)
			if err != nil {
				return fmt.Errorf("%w: %w", err, unix.EIO)
			}
			add(name, &d.lowers[first], ino, typ)
		}
		return nil
	}
	names := d.names
	if names == nil && len(d.lowers) > 1 {
		var err error
		if names, err = u.mergeLowers(d); err != nil {
			return err
		}
		if !u.opt.Live {
			d.names = names
		}
	}
	if names != nil {
		l.entries = slices.Grow(l.entries, len(names))
		for name, ln := range names {
			if ln.first >= 0 {
				add(name, &d.lowers[ln.first], ln.ino, ln.typ)
			}
		}
		return nil
	}
	if len(d.lowers) == 0 {
		return nil
	}
	low := &d.lowers[0]
	f, err := u.openLower(low)
	if err != nil {
		return err
	}
	defer f.Close()
	return layer.List(f.FD(), func(e layer.RawDirent) error {
		typ, hidden, err := u.listedType(u.lowers[low.layer], f.FD(), e, low.marks)
		if err == nil && !hidden {
			add(e.Name, low, e.Ino, typ)
		}
		return err
	})
}

// listedType is the type of an entry of a lower directory; hidden says that it is a whiteout or its like.
func (u *Union) listedType(l *layer.Layer, dirfd int, e layer.RawDirent, m dirMarks) (typ uint8, hidden bool, err error) {
	if ovl.IsAUFSName(e.Name) && u.aufsHidden(dirfd, e.Name, e.Type) {
		return 0, true, nil
	}
	typ, err = u.entryType(l, dirfd, e, m)
	return typ, typ == unix.DT_WHT, err
}

// listRemovedLocked takes a name out of the listing. Precondition: d.mu is held.
func (d *dirState) listRemovedLocked(name string) {
	d.scans.changed()
	l := d.listing
	if l == nil {
		return
	}
	l.added = slices.DeleteFunc(l.added, func(e listEntry) bool { return e.name == name })
	if i, _ := l.find(name, nameOffset(name)); i >= 0 {
		l.entries[i].name = ""
		l.removed++
	}
	if l.removed > 64 && l.removed > len(l.entries)/2 {
		l.entries = slices.DeleteFunc(l.entries, func(e listEntry) bool { return e.name == "" })
		l.removed = 0
	}
}

// find returns where a name with the offset off, as nameOffset has it, is among the entries, -1 if it is not. alone says that no
// other name shares the hash.
func (l *listing) find(name string, off uint64) (at int, alone bool) {
	es := l.entries
	at, alone = -1, true
	for i := sort.Search(len(es), func(i int) bool { return es[i].off >= off }); i < len(es) && es[i].off>>hashShift == off>>hashShift; i++ {
		switch es[i].name {
		case name:
			at = i
		case "":
		default:
			alone = false
		}
	}
	return at, alone
}

// listAddedLocked notes that a name was added, or stands for another object, of the type in mode. Precondition: d.mu is held.
func (d *dirState) listAddedLocked(name string, mode uint32) {
	d.scans.changed()
	l := d.listing
	switch {
	case l == nil:
	case len(l.added) == mostAdded:
		d.listing = nil
	default:
		l.added = append(l.added, listEntry{name: name, off: nameOffset(name), typ: direntType(mode)})
	}
}

// merge brings the names in added to their places. It reports false if the listing has to be made anew: of names that share a
// hash, all together decide about the offsets.
func (l *listing) merge() bool {
	if len(l.added) == 0 {
		return true
	}
	slices.SortStableFunc(l.added, func(a, b listEntry) int { return cmp.Compare(a.off, b.off) })
	fresh := l.added[:0]
	for _, e := range l.added {
		at, alone := l.find(e.name, e.off)
		last := len(fresh) - 1
		switch {
		case !alone, last >= 0 && fresh[last].off == e.off && fresh[last].name != e.name:
			return false
		case at >= 0:
			l.entries[at].ino, l.entries[at].typ = 0, e.typ
		case last >= 0 && fresh[last].off == e.off:
			fresh[last] = e
		default:
			fresh = append(fresh, e)
		}
	}
	// From the end on, each entry moves once.
	i := len(l.entries) - 1
	l.entries = append(l.entries, fresh...)
	for at := len(l.entries) - 1; len(fresh) > 0; at-- {
		last := fresh[len(fresh)-1]
		if i >= 0 && l.entries[i].off > last.off {
			l.entries[at] = l.entries[i]
			i--
			continue
		}
		l.entries[at] = last
		fresh = fresh[:len(fresh)-1]
	}
	l.added = nil
	return true
}

// emptyLocked says whether the merged directory has no entry. Precondition: dir.dir.mu and renameMu are held.
func (u *Union) emptyLocked(dir *Node) (bool, error) {
	if err := u.listLocked(dir); err != nil {
		return false, err
	}
	l := dir.dir.listing
	return len(l.entries) == l.removed, nil
}
