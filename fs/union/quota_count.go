package union

import (
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// allocatedAt is what the object at fd and name takes up, in bytes.
func (q *quota) allocatedAt(fd int, name string) (int64, error) {
	var st unix.Statx_t
	if err := sys.Statx(fd, name, &st); err != nil {
		return 0, err
	}
	return q.allocated(fd, name, &st), nil
}

// allocated is what the object of st takes up. Space beyond the end that the file system allocated on its own account does
// not count: it goes when the file is closed, or space gets short (cf. xfs_bmap_util.c xfs_can_free_eofblocks).
func (q *quota) allocated(fd int, name string, st *unix.Statx_t) int64 {
	bytes := int64(st.Blocks) * statBlock
	end := q.roundUp(int64(st.Size))
	// A file of exactly its size has nothing beyond; else only the map tells.
	if !q.trims || uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG || bytes == 0 || bytes == end {
		return bytes
	}
	own, err := fd, error(nil)
	if name != "" && name != "." {
		own, err = sys.Openat(fd, name, unix.O_RDONLY|unix.O_NONBLOCK)
	} else if !readable(fd) {
		own, err = sys.Reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK)
	}
	if err != nil {
		return bytes
	}
	if own != fd {
		defer unix.Close(own)
	}
	if preallocated(own) {
		return bytes
	}
	beyond, err := sys.Mapped(own, end, math.MaxInt64-end)
	if err != nil {
		return bytes
	}
	return max(bytes-beyond, 0)
}

// preallocated says whether fallocate(2) asked for space of the open file, or may have.
func preallocated(fd int) bool {
	const flag = 0x2 // FS_XFLAG_PREALLOC
	x, err := sys.GetFSXattr(fd)
	return err != nil || binary.NativeEndian.Uint32(x[:4])&flag != 0
}

// missing is how many of the length bytes at off of an open file are not counted yet, in whole blocks.
func (q *quota) missing(fd int, off, length int64) int64 {
	start := off / q.block * q.block
	end := q.roundUp(off + length)
	var st unix.Statx_t
	if sys.Statx(fd, "", &st) != nil {
		return end - start
	}
	beyond := int64(0)
	if size := q.roundUp(int64(st.Size)); q.trims && end > size && !preallocated(fd) {
		beyond = end - max(size, start)
		end -= beyond
	}
	return beyond + q.holes(fd, start, end, &st)
}

// holes is how many bytes in [start, end), whole blocks, have no storage.
func (q *quota) holes(fd int, start, end int64, st *unix.Statx_t) int64 {
	if start >= end {
		return 0
	}
	if mapped, err := sys.Mapped(fd, start, end-start); err == nil {
		return end - start - min(mapped, end-start)
	}
	// Without a map (tmpfs), preallocated space looks like a hole. A file that has a block for each of its bytes has none.
	if int64(st.Blocks)*statBlock >= q.roundUp(max(int64(st.Size), end)) {
		return 0
	}
	missing := end - start
	for at := start; at < end; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err != nil || data >= end {
			break
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			break
		}
		hole = q.roundUp(hole)
		missing -= min(hole, end) - data/q.block*q.block
		at = hole
	}
	return max(missing, 0)
}

// reserveSpan is reserve for length bytes at off of a file that is open at fd. Precondition: u.quota is not nil.
func (u *Union) reserveSpan(fd int, off, length int64) (charge, error) {
	q := u.quota
	return u.reserve(amount{bytes: q.span(off, length)}, func() int64 { return q.missing(fd, off, length) })
}

// free is how many bytes are left, without what is not settled yet; at least 0.
func (q *quota) free() int64 {
	if q.limit.Bytes == 0 {
		return 1 << 62
	}
	q.sweep()
	q.mu.Lock()
	defer q.mu.Unlock()
	return max(q.limit.Bytes-q.counted.bytes-q.reserved.bytes, 0)
}

// recount counts anew, with no operation running; what was doubted up to this has been written back. Precondition: no lock of the
// union and no charge is held.
func (q *quota) recount(written int64) error {
	q.running.Lock()
	defer q.running.Unlock()
	q.mu.Lock()
	q.recounting = true
	q.slack = amount{}
	held := make([]*Node, 0, len(q.held))
	for n := range q.held {
		held = append(held, n)
	}
	q.mu.Unlock()
	found, err := q.walk()
	for _, n := range held {
		if s, links, err := q.lastLook(n); err == nil && links == 0 {
			found.add(amount{s.bytes, 1})
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.recounting = false
	if err != nil {
		return err
	}
	for _, l := range q.ledgers {
		l.gone = true
	}
	clear(q.ledgers)
	clear(q.sizes)
	clear(q.parted)
	q.round++
	q.counted = found
	q.cleared = max(q.cleared, written)
	if q.timing == dataLate {
		q.counted.bytes += q.doubted - q.cleared // perhaps it was not there to be seen
	}
	return nil
}

// walk counts the objects of the upper and those that only the hard-link index has.
func (q *quota) walk() (amount, error) {
	u := q.u
	c := &counter{q: q, helpers: make(chan struct{}, runtime.GOMAXPROCS(0)-1), seen: map[inodeKey]struct{}{}}
	var st unix.Statx_t
	if err := sys.Statx(u.upper.FD(), "", &st); err != nil {
		return amount{}, err
	}
	c.add(amount{int64(st.Blocks) * statBlock, 1})
	roots := []int{u.upper.FD()}
	if idx := u.indexFD(); idx >= 0 {
		roots = append(roots, idx)
	}
	for _, fd := range roots {
		c.note(c.walk(fd))
	}
	c.running.Wait()
	if err := u.work.StatWhiteout(&st); err == nil {
		c.note(c.object(u.work.StageFD(), "", &st))
	}
	return c.sum, c.err
}

// counter is one running walk. Directories are shared out among as many goroutines as run at a time.
type counter struct {
	q       *quota
	helpers chan struct{}
	running sync.WaitGroup

	mu   sync.Mutex
	sum  amount                // guarded by mu, like all below
	seen map[inodeKey]struct{} // objects with several names
	err  error
}

func (c *counter) add(a amount) {
	c.mu.Lock()
	c.sum.add(a)
	c.mu.Unlock()
}

func (c *counter) note(err error) {
	c.mu.Lock()
	c.err = errors.Join(c.err, err)
	c.mu.Unlock()
}

// walk counts what is in the directory fd.
func (c *counter) walk(fd int) error {
	var dirs []string
	err := layer.List(fd, func(e layer.RawDirent) error {
		var st unix.Statx_t
		if err := c.q.u.upper.StatRaw(fd, e.Name, sys.StatMask, &st); err != nil {
			return ignoreNotExist(err)
		}
		if c.q.u.own(&st) {
			c.add(amount{inodes: 1}) // what it covers is out of sight
			return nil
		}
		if uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR {
			dirs = append(dirs, e.Name)
		}
		return c.object(fd, e.Name, &st)
	})
	if err != nil {
		return err
	}
	for _, name := range dirs {
		sub, err := sys.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			if ignoreNotExist(err) == nil {
				continue
			}
			return err
		}
		select {
		case c.helpers <- struct{}{}:
			c.running.Go(func() {
				c.note(c.walk(sub))
				unix.Close(sub)
				<-c.helpers
			})
			continue
		default:
		}
		err = c.walk(sub)
		unix.Close(sub)
		if err != nil {
			return err
		}
	}
	return nil
}

// object counts one object, if it is met for the first time.
func (c *counter) object(dirfd int, name string, st *unix.Statx_t) error {
	a := amount{c.q.allocated(dirfd, name, st), 1}
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.Nlink > 1 && uint32(st.Mode)&unix.S_IFMT != unix.S_IFDIR {
		k := inodeKey{sys.Dev(st), st.Ino}
		if _, met := c.seen[k]; met {
			return nil
		}
		c.seen[k] = struct{}{}
	}
	c.sum.add(a)
	return nil
}
