package union

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// lowerName is what the merged lowers of a directory hold under one name. first and dirs are indexes into dirState.lowers.
type lowerName struct {
	// first is the topmost lower that has the object, -1 when the name is whited out.
	first int16
	// typ is a DT_ constant.
	typ uint8
	// dirs are the lowers, topmost first, whose directories of that name merge; nil for other objects.
	dirs []int16
	ino  uint64
	// open says that lower layers may still add to the directory; only while the table is built.
	open bool
}

// direntType is the DT_ constant of an object with that mode (cf. readdir(3), IFTODT).
func direntType(mode uint32) uint8 { return uint8(mode & unix.S_IFMT >> 12) }

// typeMode is the S_IFMT bits for a DT_ constant.
func typeMode(typ uint8) uint32 { return uint32(typ) << 12 }

// joinPath is dir/name, where an empty dir is a layer's root.
func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// splitPath undoes joinPath.
func splitPath(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

// resolveLocked finds the lowers of n, once: opacity and redirects of the upper and of each candidate are looked at.
// Small directories are listed and merged at once. Precondition: n.dir.mu and renameMu are held.
func (u *Union) resolveLocked(n *Node) error {
	d := n.dir
	if d.resolved.Load() {
		return nil
	}
	cand, walked := d.candidates, false
	if n.has(flagUpper) {
		opaque, redirect, err := u.upperMark(n, len(cand) > 0)
		if err != nil {
			return err
		}
		switch {
		case opaque:
			cand = nil
		case redirect != nil:
			if cand, err = u.redirected(n, *redirect); err != nil {
				return err
			}
			d.view, walked = redirect.Path, true
			if p := u.firstLink(n).parent; !redirect.Absolute && p != nil {
				d.view = joinPath(p.dir.view, redirect.Path)
			}
		}
	}
	// A record vouches for the directories that merge and for those below them, but for none on the way of a redirect.
	if len(cand) == 0 || walked || !u.recorded(n) || !u.recallLocked(n) {
		if err := u.resolveLowersLocked(n, cand); err != nil {
			return err
		}
	}
	d.candidates = nil
	d.below.Store(int32(len(d.lowers)))
	d.resolved.Store(true)
	return nil
}

func (u *Union) resolveRoot() error {
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	u.root.dir.mu.Lock()
	defer u.root.dir.mu.Unlock()
	return u.resolveLocked(u.root)
}

// recorded says whether the place of n in the merged lowers is one that a record of the stack index gave.
func (u *Union) recorded(n *Node) bool {
	p := u.firstLink(n).parent
	return n == u.root || p != nil && p.dir.rec != nil
}

// upperMark reads what the upper directory says of the layers below it.
func (u *Union) upperMark(n *Node, hasCandidates bool) (opaque bool, redirect *ovl.Redirect, err error) {
	f, err := u.dirUpper(n)
	if err != nil {
		return false, nil, err
	}
	defer f.Close()
	m, err := u.readMark(f.FD(), hasCandidates)
	if err != nil {
		return false, nil, err
	}
	if m.impure {
		n.set(flagImpure)
	}
	if m.specials {
		n.set(flagSpecials)
	}
	if m.xwhiteouts {
		n.set(flagXWhiteouts)
	}
	return m.opaque, m.redirect, nil
}

// redirected finds the lowers that a redirect of the upper directory n names.
func (u *Union) redirected(n *Node, r ovl.Redirect) ([]lowerDir, error) {
	if u.opt.RedirectDir == RedirectOff {
		return nil, fmt.Errorf("%s has a redirect to %q and redirect_dir is off: %w", u.pathOf(n), r.Path, unix.EPERM)
	}
	if r.Absolute {
		return u.walkLowers(u.rootLowers(0), r.Path)
	}
	// A sibling's name: in the parent's lowers, which are resolved before a child is looked up.
	p := u.firstLink(n).parent
	if p == nil {
		return nil, unix.ESTALE
	}
	return u.stepLowers(p.dir.lowers, r.Path)
}

// rootLowers are the roots of the lowers from index first on.
func (u *Union) rootLowers(first int32) []lowerDir {
	ds := make([]lowerDir, 0, max(0, len(u.lowers)-int(first)))
	end := int32(len(u.lowers))
	if u.root != nil && u.root.dir.resolved.Load() {
		end = 0
		if ls := u.root.dir.lowers; len(ls) > 0 {
			end = ls[len(ls)-1].layer + 1
		}
	}
	for i := first; i < end; i++ {
		ds = append(ds, lowerDir{layer: i})
	}
	return ds
}

// walkLowers follows path through the merged lowers (cf. overlayfs namei.c ovl_lookup_layer).
func (u *Union) walkLowers(at []lowerDir, path string) ([]lowerDir, error) {
	return u.walkWithin(at, path, new(redirects))
}

// maxRedirects bounds the redirects that one look at the lowers follows. In a hostile image each could lead through directories with
// further ones, which would double the time with each layer.
const maxRedirects = 4096

// redirects counts those that one look at the lowers has followed.
type redirects int

func (u *Union) walkWithin(at []lowerDir, path string, count *redirects) ([]lowerDir, error) {
	for path != "" && len(at) > 0 {
		name, rest, _ := strings.Cut(path, "/")
		_, next, err := u.probeWithin(at, name, count)
		if err != nil {
			return nil, err
		}
		at, path = next, rest
	}
	return at, nil
}

// stepLowers finds the merged directory name in the merged directory at.
func (u *Union) stepLowers(at []lowerDir, name string) ([]lowerDir, error) {
	_, dirs, err := u.probeLowers(at, name)
	return dirs, err
}

// probeLowers looks for one name in the merged directory at, and remembers nothing. It returns the topmost object, noLower if
// there is none, and all that merge if that is a directory; dirs is nil if it is not.
func (u *Union) probeLowers(at []lowerDir, name string) (found lowerRef, dirs []lowerDir, err error) {
	return u.probeWithin(at, name, new(redirects))
}

func (u *Union) probeWithin(at []lowerDir, name string, count *redirects) (found lowerRef, dirs []lowerDir, err error) {
	found = noLower()
	for i := range at {
		f, err := u.tempLower(&at[i])
		if err != nil {
			return found, nil, err
		}
		kind, m, err := u.probeOne(f.FD(), &at[i], name)
		f.Close()
		if err != nil {
			return found, nil, err
		}
		switch kind {
		case probeNone:
			continue
		case probeWhiteout:
			return found, dirs, nil
		case probeObject:
			if !found.exists() {
				found = lowerRef{layer: at[i].layer, dir: at[i].path, name: name}
			}
			return found, dirs, nil
		}
		if !found.exists() {
			found = lowerRef{layer: at[i].layer, dir: at[i].path, name: name}
		}
		if m.own {
			dirs = append([]lowerDir{}, dirs...) // a directory, if only by that
		} else {
			dirs = append(dirs, lowerDir{layer: at[i].layer, path: joinPath(at[i].path, name), marks: m.dirMarks})
		}
		if m.opaque || m.whiteout {
			return found, dirs, nil
		}
		if m.redirect != nil {
			rest, err := u.redirectBelow(at, i, *m.redirect, count)
			return found, append(dirs, rest...), err
		}
	}
	return found, dirs, nil
}

// tempLower opens a lower directory for one use, leaving its slot alone: the lowerDir may be a copy.
func (u *Union) tempLower(d *lowerDir) (*layer.File, error) {
	l := u.lowers[d.layer]
	if d.path == "" {
		return l.Root(), nil
	}
	fd, err := u.retryFiles(func() (int, error) { return l.OpenDir(d.path) })
	if err != nil {
		return nil, err
	}
	return layer.Own(fd), nil
}

// redirectBelow continues a merged directory behind the i-th of at, whose entry carries a redirect.
func (u *Union) redirectBelow(at []lowerDir, i int, r ovl.Redirect, count *redirects) ([]lowerDir, error) {
	if *count++; *count > maxRedirects {
		return nil, fmt.Errorf("more than %d redirects lead to one directory: %w", maxRedirects, unix.ELOOP)
	}
	if u.opt.RedirectDir == RedirectOff {
		return nil, fmt.Errorf("redirect to %q in %s and redirect_dir is off: %w", r.Path,
			u.lowers[at[i].layer].Path, unix.EPERM)
	}
	if r.Absolute {
		return u.walkWithin(u.rootLowers(at[i].layer+1), r.Path, count)
	}
	_, dirs, err := u.probeWithin(at[i+1:], r.Path, count)
	return dirs, err
}

const (
	probeNone = iota
	probeWhiteout
	probeObject
	probeDir
)

// probeOne looks for name in one lower directory.
func (u *Union) probeOne(dirfd int, d *lowerDir, name string) (kind int, m dirMark, err error) {
	var st unix.Statx_t
	err = u.lowers[d.layer].StatRaw(dirfd, name, sys.StatMask, &st)
	wh := u.aufsDeletes(dirfd, name)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG):
		if wh {
			return probeWhiteout, m, nil
		}
		return probeNone, m, nil
	case err != nil:
		return probeNone, m, err
	case u.own(&st):
		return probeDir, dirMark{whiteout: wh, own: true}, nil
	case layer.IsWhiteoutDevice(&st):
		return probeWhiteout, m, nil
	case ovl.IsAUFSName(name) && u.aufsHidden(dirfd, name, direntType(uint32(st.Mode))):
		if wh {
			return probeWhiteout, m, nil
		}
		return probeNone, m, nil
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		if d.marks.xwhiteouts && u.isXWhiteout(dirfd, name, &st) {
			return probeWhiteout, m, nil
		}
		return probeObject, m, nil
	}
	fd, err := sys.Openat(dirfd, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return probeNone, m, err
	}
	defer unix.Close(fd)
	m, err = u.readMark(fd, true)
	m.whiteout = wh
	if errors.Is(err, unix.EACCES) {
		// It can't be read, as whoever enters it is told. It may be opaque, so what lies below it stays hidden.
		m, err = dirMark{whiteout: wh, opaque: true}, nil
	}
	return probeDir, m, err
}

// resolveLowersLocked keeps, of the candidates, those down to the first opaque one, and follows redirects. Precondition:
// n.dir.mu is held.
func (u *Union) resolveLowersLocked(n *Node, cand []lowerDir) error {
	d := n.dir
	r := resolution{u: u}
	defer r.close()
	for len(cand) > 0 {
		c := cand[0]
		cand = cand[1:]
		m, err := r.add(c, len(cand) > 0)
		if err != nil {
			return err
		}
		if m.opaque {
			break
		}
		if m.redirect != nil {
			if cand, err = u.redirectFrom(n, c, *m.redirect); err != nil {
				return err
			}
		}
	}
	d.lowers = r.out
	for i, f := range r.files {
		if f != nil && len(r.out) <= u.keptLowers {
			u.dirs.Put(&d.lowers[i].slot, f.FD(), layer.ReadOnly).Close()
			r.files[i] = nil
		}
	}
	if len(r.out) > 1 && r.size <= smallDirs && u.describer == nil && !u.opt.Live {
		return u.keepNamesLocked(d)
	}
	return nil
}

const (
	// smallDirs is the size of several lower directories together up to which listing them all is no dearer than
	// looking a few names up in each.
	smallDirs = 256 << 10
	// maxProbes is how many names are looked up in larger ones before they are listed after all. Of a small directory that
	// does not merge, it is how many absent ones are.
	maxProbes = 32
)

// keepNamesLocked makes the table of the names that the lowers of a directory hold. Precondition: d.mu is held.
func (u *Union) keepNamesLocked(d *dirState) (err error) {
	if d.names == nil {
		d.names, err = u.mergeLowers(d)
	}
	return err
}

// noteAbsentLocked counts a name that the only lower of a directory does not have. Whoever makes many files asks for each of them two
// or three times. Precondition: d.mu is held; f is the lower.
func (u *Union) noteAbsentLocked(d *dirState, f *layer.File) {
	if d.probes++; d.probes != maxProbes || u.opt.Live {
		return
	}
	var st unix.Statx_t
	if err := sys.Statx(f.FD(), "", &st); err != nil || st.Size > smallDirs {
		return
	}
	if err := u.keepNamesLocked(d); err != nil {
		u.log.Debug("the names of a lower directory are not kept", "err", err)
	}
}

// mergeLowers lists the lowers of a directory. Precondition: d.mu is held.
func (u *Union) mergeLowers(d *dirState) (map[string]lowerName, error) {
	names := make(map[string]lowerName)
	for i := range d.lowers {
		f, err := u.openLower(&d.lowers[i])
		if err != nil {
			return nil, err
		}
		err = u.mergeNames(names, f.FD(), &d.lowers[i], int16(i))
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	return sealNames(names), nil
}

// maxKeptLowers is how many lowers of one directory are left open after it was resolved, where there are descriptors enough.
const maxKeptLowers = 128

// resolution collects the lowers of one directory, topmost first.
type resolution struct {
	u     *Union
	out   []lowerDir
	files []*layer.File // nil for layer roots
	size  uint64        // of the directories together
}

// add takes one more lower; more says that others may follow.
func (r *resolution) add(c lowerDir, more bool) (dirMark, error) {
	f, err := r.u.tempLower(&c)
	if err != nil {
		return dirMark{}, err
	}
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	var st unix.Statx_t
	if err := r.u.lowers[c.layer].StatRaw(f.FD(), "", sys.StatMask, &st); err != nil || r.u.own(&st) {
		return dirMark{}, err
	}
	m, err := r.u.readMark(f.FD(), more)
	if err != nil {
		return m, err
	}
	// A slot must not be copied: the cache knows it by its address.
	c = lowerDir{layer: c.layer, path: c.path, marks: m.dirMarks}
	r.out = append(r.out, c)
	r.size += st.Size
	if r.u.describer != nil {
		r.u.describer.stamps = append(r.u.describer.stamps, stampOf(&st))
		r.u.describer.redirected = r.u.describer.redirected || m.redirect != nil
	}
	if c.path == "" || len(r.out) > r.u.keptLowers {
		r.files = append(r.files, nil)
		return m, nil
	}
	r.files = append(r.files, f)
	f = nil
	return m, nil
}

func (r *resolution) close() {
	for _, f := range r.files {
		if f != nil {
			f.Close()
		}
	}
}

// redirectFrom finds where the merge of n continues below its lower c, which carries a redirect.
func (u *Union) redirectFrom(n *Node, c lowerDir, r ovl.Redirect) ([]lowerDir, error) {
	if u.opt.RedirectDir == RedirectOff {
		return nil, fmt.Errorf("redirect to %q in %s and redirect_dir is off: %w", r.Path, u.lowers[c.layer].Path, unix.EPERM)
	}
	if r.Absolute {
		return u.walkLowers(u.rootLowers(c.layer+1), r.Path)
	}
	parent, _ := splitPath(c.path)
	var at []lowerDir
	if p := u.firstLink(n).parent; p != nil && p.dir.resolved.Load() {
		for i := range p.dir.lowers { // resolved: does not change
			if p.dir.lowers[i].layer > c.layer {
				at = append(at, lowerDir{layer: p.dir.lowers[i].layer, path: p.dir.lowers[i].path})
			}
		}
	} else {
		var err error
		if at, err = u.walkLowers(u.rootLowers(c.layer+1), parent); err != nil {
			return nil, err
		}
	}
	return u.stepLowers(at, r.Path)
}

// mergeNames adds the names of one lower directory to the merged table; layers come topmost first.
func (u *Union) mergeNames(t map[string]lowerName, dirfd int, d *lowerDir, i int16) error {
	var whiteouts []string
	err := layer.List(dirfd, func(e layer.RawDirent) error {
		if ovl.IsAUFSName(e.Name) && u.aufsHidden(dirfd, e.Name, e.Type) {
			if victim, ok := u.aufsVictim(dirfd, e.Name); ok {
				whiteouts = append(whiteouts, victim)
			}
			return nil
		}
		typ, err := u.entryType(u.lowers[d.layer], dirfd, e, d.marks)
		if err != nil {
			return err
		}
		have, seen := t[e.Name]
		switch {
		case seen && !have.open:
		case typ == unix.DT_WHT && !seen:
			t[e.Name] = lowerName{first: -1}
		case typ == unix.DT_DIR && !seen:
			t[e.Name] = lowerName{first: i, typ: typ, dirs: []int16{i}, ino: e.Ino, open: true}
		case typ == unix.DT_DIR:
			have.dirs = append(have.dirs, i)
			t[e.Name] = have
		case !seen:
			t[e.Name] = lowerName{first: i, typ: typ, ino: e.Ino}
		default: // a whiteout or another object below a directory ends the merge
			have.open = false
			t[e.Name] = have
		}
		return nil
	})
	if err != nil {
		return err
	}
	// A whiteout beside an object of the same layer hides only what lies below.
	for _, victim := range whiteouts {
		have, seen := t[victim]
		if !seen {
			have = lowerName{first: -1}
		}
		have.open = false
		t[victim] = have
	}
	return nil
}

// entryType is the type of a listed entry: DT_WHT for a whiteout, of whatever form.
func (u *Union) entryType(l *layer.Layer, dirfd int, e layer.RawDirent, m dirMarks) (uint8, error) {
	switch {
	case e.Type == unix.DT_CHR || e.Type == unix.DT_UNKNOWN || m.xwhiteouts && e.Type == unix.DT_REG:
	default:
		return e.Type, nil
	}
	var st unix.Statx_t
	err := l.StatRaw(dirfd, e.Name, sys.StatMask, &st)
	if errors.Is(err, unix.ENOENT) {
		return unix.DT_WHT, nil
	}
	if err != nil {
		return 0, err
	}
	if layer.IsWhiteoutDevice(&st) || m.xwhiteouts && u.isXWhiteout(dirfd, e.Name, &st) {
		return unix.DT_WHT, nil
	}
	return direntType(uint32(st.Mode)), nil
}

// sealNames drops what was needed only while merging.
func sealNames(t map[string]lowerName) map[string]lowerName {
	for k, v := range t {
		if v.open {
			v.open = false
			t[k] = v
		}
	}
	return t
}
