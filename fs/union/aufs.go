package union

import (
	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// maxVictim bounds the names that a whiteout of the AUFS form can stand for.
const maxVictim = unix.NAME_MAX - 3

// hasAUFS says whether the directory holds a whiteout or sentinel of the AUFS form called wh.
func (u *Union) hasAUFS(dirfd int, wh string) bool {
	has, err := u.findAUFS(dirfd, wh)
	return has && err == nil
}

// findAUFS is hasAUFS that fails with EACCES in a directory that can't be searched.
func (u *Union) findAUFS(dirfd int, wh string) (bool, error) {
	if !u.opt.Forms.All() {
		return false, nil
	}
	var st unix.Statx_t
	if err := sys.Statx(dirfd, wh, &st); err != nil {
		if err == unix.EACCES { //nolint:errorlint // bare, as a system call returns it
			return false, err
		}
		return false, nil
	}
	return u.aufsHidden(dirfd, wh, direntType(uint32(st.Mode))), nil
}

// aufsDeletes says whether the directory holds a whiteout of the AUFS form of name, which may begin like one itself: .wh..wh.x is
// a whiteout of .wh.x to a union, which shows such names, and bookkeeping to layer streams, which can't have them. AUFS's own bookkeeping
// is in directories.
func (u *Union) aufsDeletes(dirfd int, name string) bool {
	wh := ovl.AUFSWhiteout(name)
	if len(name) >= maxVictim || wh == ovl.AUFSOpaque {
		return false
	}
	var st unix.Statx_t
	if ovl.IsAUFSName(name) && (sys.Statx(dirfd, wh, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG) {
		return false
	}
	return u.hasAUFS(dirfd, wh)
}

// aufsVictim returns what an entry that aufsHidden hides deletes, if anything.
func (u *Union) aufsVictim(dirfd int, name string) (victim string, ok bool) {
	if victim, ok = ovl.AUFSVictim(name); ok {
		return victim, true
	}
	victim, ok = ovl.AUFSLiteralVictim(name)
	return victim, ok && u.aufsDeletes(dirfd, victim)
}

// aufsHidden says whether an entry whose name begins like an AUFS whiteout is one, and not an application's file.
func (u *Union) aufsHidden(dirfd int, name string, typ uint8) bool {
	if !u.opt.Forms.All() {
		return false
	}
	if typ == unix.DT_UNKNOWN {
		var st unix.Statx_t
		if sys.Statx(dirfd, name, &st) != nil {
			return true
		}
		typ = direntType(uint32(st.Mode))
	}
	if typ != unix.DT_REG && !(typ == unix.DT_DIR && ovl.IsAUFSBookkeeping(name)) { // AUFS's own bookkeeping
		return false
	}
	for _, ns := range u.opt.Forms.Namespaces() {
		if _, err := sys.Getxattrat(dirfd, name, ns.Literal, nil); err == nil {
			return false
		}
	}
	return true
}
