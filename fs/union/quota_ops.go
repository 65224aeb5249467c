package union

import (
	"errors"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// What operations reserve, and what they tell the account when they are done.

// writeCharged is writeTo with a quota.
func (u *Union) writeCharged(n *Node, f *layer.File, p []byte, off int64, bits SetIDBits) (int, error) {
	c, err := u.reserveSpan(f.FD(), off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := c.on(n, f.FD(), ""); err != nil {
		return 0, err
	}
	return u.writeTo(f, p, off, bits)
}

// reserveFallocate reserves what fallocate(2) on f adds: it either allocates or gives back.
func (u *Union) reserveFallocate(f *layer.File, mode uint32, off, length int64) (charge, error) {
	const gives = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_COLLAPSE_RANGE | unix.FALLOC_FL_INSERT_RANGE
	if mode&gives != 0 {
		u.quota.punched(length)
	}
	if u.quota == nil || mode&gives != 0 || off < 0 || length <= 0 || off+length < 0 {
		return u.reserve(amount{}, nil) // what is not valid is for the file system to say
	}
	return u.reserveSpan(f.FD(), off, length)
}

// reserveCopy reserves what copying a range adds, and says how much of it there is room for.
func (u *Union) reserveCopy(in *layer.File, soff int64, out *layer.File, doff, length int64) (charge, int64, error) {
	q := u.quota
	if q == nil {
		return charge{}, length, nil
	}
	var st unix.Statx_t
	if err := sys.Statx(in.FD(), "", &st); err != nil {
		return charge{}, 0, err
	}
	length = min(length, max(int64(st.Size)-soff, 0))
	if soff < 0 || doff < 0 || length == 0 {
		c, err := u.reserve(amount{}, nil)
		return c, length, err
	}
	c, err := u.reserveSpan(out.FD(), doff, length)
	if !errors.Is(err, unix.EDQUOT) {
		return c, length, err
	}
	// A copy may be short: as much as there is room for, up to the end of a block.
	fits := (doff+q.free())/q.block*q.block - doff
	if fits <= 0 || fits >= length {
		return charge{}, 0, err
	}
	c, err = u.reserveSpan(out.FD(), doff, fits)
	return c, fits, err
}

// smallXattr is the size up to which a value mostly fits into the inode: it is counted, and not refused.
const smallXattr = 128

// reserveXattr reserves what an attribute of this size adds.
func (u *Union) reserveXattr(size int) (charge, error) {
	q := u.quota
	if q == nil || size <= smallXattr {
		return u.reserve(amount{}, nil)
	}
	return u.reserve(amount{bytes: q.roundUp(int64(size))}, nil)
}

// inlineTarget is the size up to which the target of a symlink takes no block (cf. ext4 namei.c ext4_symlink, the smallest).
const inlineTarget = 59

// reserveObject reserves what the new object called name in dir adds. EEXIST goes before EDQUOT.
func (u *Union) reserveObject(dir *Node, name string, o *newObject) (charge, error) {
	q := u.quota
	if q == nil {
		return charge{}, nil
	}
	need := amount{inodes: 1}
	switch o.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		need.bytes = q.dir
	case unix.S_IFLNK:
		if len(o.target) > inlineTarget {
			need.bytes = q.roundUp(int64(len(o.target)))
		}
	}
	c, err := u.reserve(need, nil)
	if errors.Is(err, unix.EDQUOT) {
		if n, found := u.find(dir, name); found == nil {
			u.Forget(n, 1)
			return c, unix.EEXIST
		}
	}
	return c, err
}

// dataNeed is what a copy of the first size bytes of the file that st describes takes up at most: holes stay holes.
func (q *quota) dataNeed(st *unix.Statx_t, size int64) int64 {
	return min(q.roundUp(size), q.roundUp(int64(st.Blocks)*statBlock))
}

// reserveData reserves what copying the first size bytes of the open lower file src adds.
func (u *Union) reserveData(src int, size int64) (charge, error) {
	q := u.quota
	if q == nil {
		return charge{}, nil
	}
	var st unix.Statx_t
	if err := sys.Statx(src, "", &st); err != nil {
		return charge{}, err
	}
	return u.reserve(amount{bytes: q.dataNeed(&st, size)}, nil)
}

// runCharged is the copy-up of one object with a quota. A recount does not wait for the copying: it sees nothing of what is
// staged, and what is reserved comes on top.
func (c *copyUp) runCharged() error {
	q := c.u.quota
	need := amount{inodes: 1}
	switch {
	case c.n.IsDir():
		need.bytes = q.dir
	case c.n.mode == unix.S_IFREG && !c.meta:
		need.bytes = q.dataNeed(&c.st, min(int64(c.st.Size), c.limit))
	}
	need, err := q.reserve(need, nil)
	if err != nil {
		return err
	}
	defer func() { q.commit(need, amount{}) }()
	if err := c.stage(); err != nil {
		return err
	}
	dirfd, name := c.at()
	seen, err := q.look(dirfd, name)
	if err != nil {
		return err
	}
	bytes := seen.expected(need.bytes)
	if more := bytes - need.bytes; more > 0 { // the lower keeps it more densely: compressed, or in larger files
		extra, err := q.reserve(amount{bytes: more}, nil)
		if err != nil {
			return err
		}
		need.add(extra)
	}
	q.enter()
	defer q.leave()
	if err := c.publish(); err != nil {
		return err
	}
	// Before a recount sees it, or another operation is done.
	q.made(c.n, need, amount{bytes, 1})
	need = amount{}
	return nil
}

// removed calls remove for an object at fd and name that counted holds and no node stands for. Precondition: within an operation.
func (q *quota) removed(fd int, name string, remove func() error) error {
	if q == nil {
		return remove()
	}
	var st unix.Statx_t
	if err := sys.Statx(fd, name, &st); err != nil {
		return err
	}
	had := amount{-q.allocated(fd, name, &st), -1}
	if err := remove(); err != nil || st.Nlink > 1 {
		return err
	}
	q.commit(amount{}, had)
	return nil
}

// replacedDir notes that the empty upper directory of n, which had this many blocks, was replaced by the one at fd and name,
// and is staged, about to be removed with the whiteouts in it. Precondition: within an operation.
func (q *quota) replacedDir(n *Node, blocks uint64, stagedName string, fd int, name string) {
	if q == nil {
		return
	}
	had := int64(blocks) * statBlock
	q.mu.Lock()
	l := q.ledgers[n]
	delete(q.ledgers, n)
	if size, known := q.baseline(n); known {
		had = size
	}
	delete(q.sizes, n)
	q.mu.Unlock()
	if l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		q.mu.Lock()
		l.gone = true
		if l.known {
			had = l.size + l.pending
		}
		q.mu.Unlock()
	}
	has, err := q.allocatedAt(fd, name)
	if err != nil {
		has = had
	}
	whiteouts, err := q.u.work.LastNames(stagedName)
	if err != nil {
		q.u.log.Warn("whiteouts that go with a directory count on until the next mount", "err", err)
	}
	q.mu.Lock()
	q.counted.add(amount{has - had, -int64(whiteouts)})
	q.remember(n, has)
	q.mu.Unlock()
}
