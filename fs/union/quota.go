package union

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// quota is the account of an upper with limits: what its inodes take up, those included that have no name any more but are open.
//
// An operation reserves the most that it may need before it begins. What it really took is found out later, by one statx for
// many operations (see ledger), and what write-back still changes after that is the subject of quota_late.go. So counted is never
// less than what is there, but it may be more: before an operation is refused, all that is pending is settled, and where that is
// not enough and could make room, the upper is counted anew (a recount).
//
// The locks are in the package documentation. A nil quota is an upper without limits; all methods that operations call do nothing
// then.
type quota struct {
	u     *Union
	limit Quota
	// block is the allocation unit of the file system, dir what an empty directory takes up on it, both in bytes.
	block, dir int64
	// trims says that the file system allocates beyond the end of files and takes that back by itself (xfs).
	trims  bool
	timing timing

	running  sync.RWMutex
	sweeping sync.Mutex

	mu sync.Mutex
	// counted is what the upper has, reserved what running operations may add to it. Guarded by mu, like all below.
	counted, reserved amount
	// slack is the part of counted of which only a recount can tell whether it is there.
	slack      amount
	recounting bool // a recount is looking at the upper
	// round is the number of recounts. Each ends all that was known of single objects.
	round int
	// ledgers are of the objects that change. sizes is what counted holds of the objects of other nodes, parted of objects whose nodes
	// are gone, by inode number. Both lack objects that did not change, and parted is bounded (see part).
	ledgers map[*Node]*ledger
	sizes   map[*Node]int64
	parted  map[uint64]int64
	// doubted is how many bytes that were counted may turn out not to be there once they are written back, since the mount; cleared
	// is how many of these a recount after a write-back has settled. The difference is in doubt now. A write-back costs more than the
	// recount that slack calls for.
	doubted, cleared int64
	// recounted is when the last recount after a write-back ended, and took how long that took.
	recounted time.Time
	took      time.Duration
	// finding is closed at the end of the recount that an operation waits for, nil while none runs.
	finding chan struct{}
	// held are nodes without a name whose upper object lives by its descriptor, with the time at which they lost it.
	held map[*Node]time.Time
	// awaited is when awaitForgets last began to wait and got nothing: whatever lost its name before that is open.
	awaited time.Time
}

// amount is a part of what a Quota bounds.
type amount struct{ bytes, inodes int64 }

func (a *amount) add(b amount) { a.bytes += b.bytes; a.inodes += b.inodes }
func (a *amount) sub(b amount) { a.bytes -= b.bytes; a.inodes -= b.inodes }

// openQuota opens the account, if the union is bounded, and counts what the upper holds. Precondition: nothing changes it
// meanwhile.
func (u *Union) openQuota() error {
	o := u.opt.Quota
	if o.Bytes < 0 || o.Inodes < 0 {
		return fmt.Errorf("quota of %d bytes, %d inodes: give no negative number: %w", o.Bytes, o.Inodes, unix.EINVAL)
	}
	if o == (Quota{}) || u.work == nil {
		return nil
	}
	q, err := newQuota(u, o)
	if err != nil {
		return fmt.Errorf("quota of upper %s: %w", u.upper.Path, err)
	}
	u.quota = q
	return nil
}

func newQuota(u *Union, limit Quota) (*quota, error) {
	var fs unix.Statfs_t
	if err := sys.Retry(func() error { return unix.Fstatfs(u.upper.FD(), &fs) }); err != nil {
		return nil, fmt.Errorf("statfs: %w", err)
	}
	q := &quota{
		u: u, limit: limit, block: max(fs.Bsize, 512), trims: fs.Type == unix.XFS_SUPER_MAGIC, timing: timingOf(fs.Type),
		ledgers: map[*Node]*ledger{}, sizes: map[*Node]int64{}, parted: map[uint64]int64{}, held: map[*Node]time.Time{},
	}
	var st unix.Statx_t
	stage, err := u.work.Stage()
	if err != nil {
		return nil, err
	}
	if err := sys.Statx(stage, "", &st); err != nil {
		return nil, fmt.Errorf("stat the staging directory: %w", err)
	}
	q.dir = int64(st.Blocks) * statBlock
	if q.timing == dataLate {
		q.writeBack()
	}
	if q.counted, err = q.walk(); err != nil {
		return nil, fmt.Errorf("count what it holds: %w", err)
	}
	q.doubt(q.counted.bytes) // an earlier mount may just have written it
	return q, nil
}

// statBlock is the unit of st_blocks.
const statBlock = 512

// roundUp rounds bytes up to whole blocks of the file system.
func (q *quota) roundUp(n int64) int64 { return (n + q.block - 1) / q.block * q.block }

// span is what writing length bytes at off allocates at most.
func (q *quota) span(off, length int64) int64 {
	return q.roundUp(off+length) - off/q.block*q.block
}

// charge is the share of one running operation in the account. The zero value is that of an upper without limits.
type charge struct {
	q    *quota
	need amount // what is reserved
	// l is the ledger of the object that changes, nil for an object that is made; fd and name are where that object is.
	l     *ledger
	fd    int
	name  string
	exact bool // the ledger is settled at once: something may have been given back
}

// reserve reserves need and lets the operation begin; the caller closes the charge when the operation has ended. It returns EDQUOT
// if not that much is left. Before that it asks exact, unless that is nil, how many bytes are really needed. It blocks while a recount
// runs, and may begin one.
//
// Precondition: no lock of the union is held, and no other charge.
func (u *Union) reserve(need amount, exact func() int64) (charge, error) {
	q := u.quota
	if q == nil {
		return charge{}, nil
	}
	got, err := q.reserve(need, exact)
	if err != nil {
		return charge{}, err
	}
	q.running.RLock()
	return charge{q: q, need: got, exact: got != need}, nil
}

// done says that the object of n was made, and takes up this many blocks of 512 bytes.
func (c *charge) done(n *Node, blocks uint64) {
	if c.q != nil {
		c.q.made(n, c.need, amount{int64(blocks) * statBlock, c.need.inodes})
		c.need = amount{}
	}
}

// close ends the operation. What was reserved and not used is free again.
func (c *charge) close() {
	if c.q == nil {
		return
	}
	c.off()
	c.q.commit(c.need, amount{})
	c.q.running.RUnlock()
	c.q = nil
}

// enter begins an operation that changes the account and is never refused; leave ends it. Precondition as of reserve.
func (q *quota) enter() {
	if q != nil {
		q.running.RLock()
	}
}

func (q *quota) leave() {
	if q != nil {
		q.running.RUnlock()
	}
}

// commit turns a reservation into what it became.
func (q *quota) commit(reserved, used amount) {
	q.mu.Lock()
	q.reserved.sub(reserved)
	q.counted.add(used)
	q.mu.Unlock()
}

// made is commit for the new object of n. Precondition: within an operation.
func (q *quota) made(n *Node, reserved, used amount) {
	q.mu.Lock()
	q.reserved.sub(reserved)
	q.counted.add(used)
	q.doubt(used.bytes)
	q.remember(n, used.bytes)
	q.mu.Unlock()
}

// inodes notes that the upper has delta more inodes without blocks: whiteouts. Precondition: within an operation.
func (q *quota) inodes(delta int64) {
	if q != nil {
		q.commit(amount{}, amount{inodes: delta})
	}
}

// take reserves need if that much is left; see fits.
func (q *quota) take(need amount) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.fits(q.counted, need) {
		return false
	}
	q.reserved.add(need)
	return true
}

// fits says whether there is room for need beside used. While used has more bytes than the limit, there is none for inodes either.
// To need nothing always fits. Precondition: mu is held.
func (q *quota) fits(used, need amount) bool {
	used.add(q.reserved)
	used.add(need)
	if need.inodes > 0 && q.limit.Inodes > 0 && used.inodes > q.limit.Inodes {
		return false
	}
	return need == amount{} || q.limit.Bytes == 0 || used.bytes <= q.limit.Bytes
}

// The kernel forgets an inode that lost its last name and its last descriptor only a moment after it has told the application.
// awaitForgets waits 1, 2, 4 ... milliseconds for that.
const (
	// closeWait bounds the single waits for any inode without a name, of which the last descriptor may just have been closed.
	closeWait = 10 * time.Millisecond
	// forgetWait bounds them for inodes that were unlinked less than forgetFresh ago.
	forgetWait  = 100 * time.Millisecond
	forgetFresh = time.Second
)

// reserve takes need, or less if less is needed. Before it refuses it tries all that could make room, what costs least first.
func (q *quota) reserve(need amount, exact func() int64) (amount, error) {
	q.sweepMany()
	if q.take(need) {
		return need, nil
	}
	q.sweep()
	if q.take(need) {
		return need, nil
	}
	if exact != nil {
		if need.bytes = min(need.bytes, exact()); q.take(need) {
			return need, nil
		}
	}
	q.u.unmarkUnlinked()
	if q.take(need) {
		return need, nil
	}
	if q.awaitForgets(need) {
		return need, nil
	}
	found, err := q.findOut(need)
	if err != nil {
		return amount{}, fmt.Errorf("count what upper %s holds: %w", q.u.upper.Path, err)
	}
	if found {
		return need, nil
	}
	return amount{}, q.refuse(need)
}

// awaitForgets waits while inodes without a name could make room for need: a moment, since the last descriptor may just have
// been closed, and longer for those that were unlinked since it last waited in vain.
func (q *quota) awaitForgets(need amount) bool {
	begin := time.Now()
	for wait := time.Millisecond; wait < forgetWait; wait *= 2 {
		if !q.heldMatter(need, wait < closeWait) {
			return q.take(need) // the last that mattered may have been forgotten since the last try
		}
		time.Sleep(wait)
		if q.take(need) {
			return true
		}
	}
	q.mu.Lock()
	q.awaited = begin // those that are left are open
	q.mu.Unlock()
	return false
}

// heldMatter says whether inodes without a name could make room for need: all, or those that lost it lately.
func (q *quota) heldMatter(need amount, all bool) bool {
	q.mu.Lock()
	least := q.counted
	var held []*Node
	for n, at := range q.held {
		if all || at.After(q.awaited) && time.Since(at) < forgetFresh {
			held = append(held, n)
		}
	}
	q.mu.Unlock()
	for _, n := range held {
		if s, links, err := q.lastLook(n); err == nil && links == 0 {
			least.sub(amount{s.bytes, 1})
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(held) > 0 && q.fits(least, need)
}

func (q *quota) refuse(need amount) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return fmt.Errorf("upper %s has %d of %d bytes and %d of %d inodes (0 is no limit), %d and %d more are too many: %w",
		q.u.upper.Path, q.counted.bytes+q.reserved.bytes, q.limit.Bytes, q.counted.inodes+q.reserved.inodes, q.limit.Inodes,
		need.bytes, need.inodes, unix.EDQUOT)
}

// statfs makes s show the limits, as that of a directory with a project quota does (cf. ext4 super.c ext4_statfs_project).
func (q *quota) statfs(s *Statfs) {
	if q == nil {
		return
	}
	q.sweep()
	q.mu.Lock()
	used := q.counted
	used.add(q.reserved)
	q.mu.Unlock()
	unit := int64(s.Frsize)
	if unit <= 0 {
		unit = max(int64(s.Bsize), 1)
	}
	if q.limit.Bytes > 0 {
		left := uint64(max(q.limit.Bytes-used.bytes, 0) / unit)
		s.Blocks = min(s.Blocks, uint64(q.limit.Bytes/unit))
		s.Bfree, s.Bavail = min(s.Bfree, left), min(s.Bavail, left)
	}
	if q.limit.Inodes > 0 {
		left := uint64(max(q.limit.Inodes-used.inodes, 0))
		// A file system without a fixed number of inodes (btrfs) says 0 of 0.
		if s.Files == 0 {
			s.Files, s.Ffree = uint64(q.limit.Inodes), left
		} else {
			s.Files, s.Ffree = min(s.Files, uint64(q.limit.Inodes)), min(s.Ffree, left)
		}
	}
}

// QuotaUse is what counts against Options.Quota, after everything that is pending was settled; zero without a quota.
func (u *Union) QuotaUse() Quota {
	q := u.quota
	if q == nil {
		return Quota{}
	}
	q.sweep()
	q.mu.Lock()
	defer q.mu.Unlock()
	return Quota{Bytes: q.counted.bytes + q.reserved.bytes, Inodes: q.counted.inodes + q.reserved.inodes}
}

// RecountQuota counts anew what the upper takes up, and blocks changes of the upper meanwhile. The union does so by itself before it
// refuses something that might fit. On file systems that allocate only at write-back it has everything written back first, and waits
// for that.
func (u *Union) RecountQuota() error {
	if u.quota == nil {
		return nil
	}
	if u.quota.timing == dataLate {
		return u.quota.recountWritten()
	}
	return u.quota.recount(0)
}
