package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
)

// whiteoutForm is how deletions are written.
type whiteoutForm struct {
	// aufs says that they are in the AUFS form, and stay so.
	aufs bool
	// byRename says that renameat2 can leave a whiteout of the kernel's form behind (RENAME_WHITEOUT), exchange that it can let a
	// whiteout and a directory change places (RENAME_EXCHANGE). Where a step needs what is missing, a whiteout of the AUFS form hides
	// the lowers between the two steps that it takes instead: it has a name of its own, so it can be there beforehand.
	byRename, exchange bool
}

// bridged says whether a rename away from a name of the lowers needs a whiteout of the AUFS form first, to stay or as that bridge.
func (f whiteoutForm) bridged() bool { return f.aufs || !f.byRename && !f.exchange }

// whiteouts says how deletions are written. Precondition: the union is writable.
func (u *Union) whiteouts() (whiteoutForm, error) {
	f, err := u.work.Whiteouts()
	return whiteoutForm{aufs: u.opt.Whiteout == WhiteoutAUFS || !f.Mknod, byRename: f.Rename, exchange: f.Exchange}, err
}

// aufsWhiteout deletes a lower name in the AUFS form. While an object of that name is there, it hides nothing.
func (u *Union) aufsWhiteout(dirfd int, name string) error {
	wh := ovl.AUFSWhiteout(name)
	if wh == ovl.AUFSOpaque {
		return unix.EINVAL // it would delete all names
	}
	f, err := u.m.Create(dirfd, wh, unix.O_WRONLY, 0)
	if errors.Is(err, unix.EEXIST) {
		if !u.aufsDeletes(dirfd, name) {
			return unix.EINVAL // an application's object has the name
		}
		return nil
	}
	if err != nil {
		return err
	}
	u.quota.inodes(1)
	return unix.Close(f)
}

// dropAUFSWhiteout removes the whiteout of the AUFS form beside name.
func (u *Union) dropAUFSWhiteout(dirfd int, name string) error {
	wh := ovl.AUFSWhiteout(name)
	if !u.aufsDeletes(dirfd, name) {
		return nil // none, or an application's object of that name
	}
	err := u.m.Unlink(dirfd, wh)
	if err == nil {
		u.quota.inodes(-1)
	}
	return ignoreNotExist(err)
}

// endBridge replaces the whiteout of the AUFS form that was a bridge by one of the kernel's form, unless AUFS is the form. If that
// fails, the deletion stands all the same, so the operation does not fail.
func (u *Union) endBridge(form whiteoutForm, dirfd int, name string) {
	if form.aufs {
		return
	}
	err := u.work.WhiteoutAt(dirfd, name)
	if err == nil {
		err = u.dropAUFSWhiteout(dirfd, name)
	}
	if err != nil {
		u.log.Debug("a deletion stays in the AUFS form", "name", name, "err", err)
	}
}

// unblock frees the name p of its whiteout for a directory, where the two can't change places: a whiteout of the AUFS form, beside
// the name, hides the lowers meanwhile.
func (u *Union) unblock(p *place) error {
	if form, err := u.whiteouts(); err != nil || form.exchange {
		return err
	}
	if p.below {
		if err := u.aufsWhiteout(p.dir.FD(), p.name); err != nil {
			return err
		}
		p.aufs = true
	}
	if err := u.m.Unlink(p.dir.FD(), p.name); err != nil {
		return err
	}
	u.replacedWhiteout(p)
	p.whiteout, p.last = false, false
	return nil
}

// replacedWhiteout notes that the whiteout at p is gone.
func (u *Union) replacedWhiteout(p *place) {
	if p.last {
		u.quota.inodes(-1)
	}
}

// makeOpaque makes a directory of the upper hide the layers below.
func (u *Union) makeOpaque(dirfd int, name string) error {
	form, err := u.whiteouts()
	switch {
	case err != nil:
		return err
	case form.aufs:
		return u.work.MakeOpaqueAUFS(dirfd, name)
	}
	return u.work.MakeOpaque(dirfd, name)
}
