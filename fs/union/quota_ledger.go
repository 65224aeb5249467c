package union

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// ledger is what the account knows of one upper object that changes. Its operations add the most that each may have allocated
// to pending, and after some of that one statx settles it: the amortised price of an operation is a fraction of a system call.
type ledger struct {
	// mu is held while the object is looked at.
	mu    sync.Mutex
	known bool  // size is valid; changed under mu and quota.mu
	size  int64 // what counted holds of the object beside pending: what it took up at the last look; changed like known

	// pending is what finished operations may have added since then; counted contains it. Guarded by quota.mu, like the rest.
	pending int64
	ops     int  // running operations
	gone    bool // the account does not use it any more
}

const (
	// settleEvery is how much may be pending on one object.
	settleEvery = 1 << 20
	// manyLedgers is how many objects may have something pending.
	manyLedgers = 256
)

// on puts the charge on n's object at fd and name (as sys.Statx takes them), which must stay valid until the charge is closed
// or taken off again. n is in the upper. What was reserved is used up from then on, also by an operation that fails half-way.
func (c *charge) on(n *Node, fd int, name string) error {
	if c.q == nil {
		return nil
	}
	l, err := c.q.ledgerOf(n, fd, name)
	if err != nil {
		return err
	}
	c.l, c.fd, c.name = l, fd, name
	return nil
}

// onExact is on for an operation that gives something back.
func (c *charge) onExact(n *Node, fd int, name string) error {
	c.exact = true
	return c.on(n, fd, name)
}

// off ends the change of the object.
func (c *charge) off() {
	if c.l == nil {
		return
	}
	q, l := c.q, c.l
	q.mu.Lock()
	q.reserved.sub(c.need)
	q.counted.bytes += c.need.bytes
	l.pending += c.need.bytes
	c.l, c.need = nil, amount{}
	if c.exact || l.pending >= settleEvery {
		q.mu.Unlock()
		q.settle(l, c.fd, c.name) // as an operation: else a sweep could drop the ledger before what was given back is known
		q.mu.Lock()
	}
	l.ops--
	q.mu.Unlock()
}

// ledgerOf begins an operation on n's object, and looks at it if nothing is known of it.
func (q *quota) ledgerOf(n *Node, fd int, name string) (*ledger, error) {
	q.mu.Lock()
	l := q.ledgers[n]
	if l == nil {
		l = &ledger{}
		l.size, l.known = q.baseline(n)
		q.ledgers[n] = l
	}
	l.ops++
	q.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known {
		return l, nil
	}
	now, err := q.allocatedAt(fd, name)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		l.ops--
		return nil, err
	}
	l.size, l.known = now, true
	return l, nil
}

// The most that a name may add to its directory, beside its own length.
const direntOverhead = 64

// grow notes that the upper directory n, at fd, may get an entry for name. Precondition: within an operation.
func (q *quota) grow(n *Node, fd int, name string) {
	if q != nil {
		q.add(n, fd, "", int64(len(name))+direntOverhead)
	}
}

// mark notes that n's object at l may get one of the union's own attributes, with a value of size bytes. These are counted and
// never refused. Precondition: within an operation.
func (q *quota) mark(n *Node, l loc, size int) {
	if q != nil {
		q.add(n, l.fd(), l.name, q.roundUp(int64(size)+1))
	}
}

func (q *quota) add(n *Node, fd int, name string, bytes int64) {
	c := charge{q: q}
	if c.on(n, fd, name) != nil {
		return // the operation will meet the reason itself
	}
	c.need.bytes = bytes
	q.mu.Lock()
	q.reserved.add(c.need) // off takes it from there
	q.mu.Unlock()
	c.off()
}

// settle looks at what the object of l takes up, and corrects counted. What operations allocate while it looks is seen, and counts
// a second time when they add it to pending, until the next settle.
func (q *quota) settle(l *ledger, fd int, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.known {
		return
	}
	q.mu.Lock()
	taken := l.pending
	l.pending = 0
	q.mu.Unlock()
	seen, err := q.look(fd, name)
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case l.gone:
	case err != nil:
		l.pending += taken
	default:
		now := seen.expected(l.size + taken)
		q.counted.bytes += now - l.size - taken
		q.doubt(taken + seen.spare)
		l.size = now
	}
}

// sweepMany keeps the number of ledgers bounded.
func (q *quota) sweepMany() {
	q.mu.Lock()
	many := len(q.ledgers) > manyLedgers
	q.mu.Unlock()
	if !many || !q.sweeping.TryLock() {
		return
	}
	defer q.sweeping.Unlock()
	q.sweepAll()
}

// sweep settles all that is pending. Precondition: no lock of the union is held.
func (q *quota) sweep() {
	q.sweeping.Lock()
	defer q.sweeping.Unlock()
	q.sweepAll()
}

// sweepAll is sweep. Precondition: sweeping is held.
func (q *quota) sweepAll() {
	q.running.RLock()
	defer q.running.RUnlock()
	q.mu.Lock()
	nodes := make([]*Node, 0, len(q.ledgers))
	for n := range q.ledgers {
		nodes = append(nodes, n)
	}
	q.mu.Unlock()
	for _, n := range nodes {
		q.sweepOne(n)
	}
}

func (q *quota) sweepOne(n *Node) {
	u := q.u
	u.treeMu.Lock()
	alive := n.refs > 0 || n == u.root
	if alive {
		n.refs++
	}
	u.treeMu.Unlock()
	if !alive {
		return // forget has settled it, or is about to
	}
	defer u.Forget(n, 1)
	q.mu.Lock()
	l := q.ledgers[n]
	clean := l != nil && l.pending == 0
	q.mu.Unlock()
	if l == nil {
		return
	}
	if !clean {
		u.renameMu.RLock()
		u.steady(n)
		at, err := u.openUpperLoc(n)
		if err == nil {
			q.settle(l, at.fd(), at.name)
			at.close()
		}
		u.unsteady(n)
		u.renameMu.RUnlock()
		if err != nil {
			return
		}
	}
	q.mu.Lock()
	if l.ops == 0 && l.pending == 0 && q.ledgers[n] == l {
		l.gone = true
		delete(q.ledgers, n)
		if l.known {
			q.sizes[n] = l.size
		}
	}
	q.mu.Unlock()
}

// keep remembers what the directory n, at fd, takes up now: it is about to be removed, and some file systems shrink it before.
func (q *quota) keep(n *Node, fd int) {
	if q == nil {
		return
	}
	if l, err := q.ledgerOf(n, fd, ""); err == nil { // which is never swept, since that operation has no end
		q.settle(l, fd, "")
	}
}

// unlinked notes that n lost its last name. Precondition: within an operation.
func (u *Union) unlinked(n *Node) {
	n.set(flagUnlinked)
	u.quota.hold(n)
}

// hold keeps n, an upper object without a name, in the account until it is forgotten.
func (q *quota) hold(n *Node) {
	if q == nil || !n.has(flagUpper) {
		return
	}
	q.mu.Lock()
	q.held[n] = time.Now()
	q.mu.Unlock()
}

// linked notes that n has a name again.
func (q *quota) linked(n *Node) {
	if q != nil {
		q.mu.Lock()
		delete(q.held, n)
		q.mu.Unlock()
	}
}

// parting settles n and those of its ancestors that will leave the tree when n loses count references. It finds them by name, which
// they still have, since some have no descriptor. Some callers hold locks of the union: so it only tries
// for renameMu and the names of a node, and leaves to a recount what it can't settle.
func (q *quota) parting(n *Node, count int64) {
	u := q.u
	var leaving []*Node
	u.treeMu.Lock()
	for n != nil && n != u.root && n.refs <= count {
		leaving = append(leaving, n)
		n, count = n.link.parent, 1
	}
	u.treeMu.Unlock()
	for _, n := range leaving {
		q.mu.Lock()
		l := q.ledgers[n]
		dirty := l != nil && l.pending > 0
		q.mu.Unlock()
		if !dirty || n.has(flagUnlinked) || !u.renameMu.TryRLock() {
			continue
		}
		if u.trySteady(n) {
			if at, err := u.openUpperLoc(n); err == nil {
				q.settle(l, at.fd(), at.name)
				at.close()
			}
			u.unsteady(n)
		}
		u.renameMu.RUnlock()
	}
}

// forget settles what is known of a node that leaves the tree and whose descriptor is about to be closed. It may be called with
// locks of the union held, and outside of an operation: so a recount may run meanwhile.
func (q *quota) forget(n *Node) {
	if q == nil || !n.has(flagUpper) {
		return
	}
	unlinked := n.has(flagUnlinked)
	q.mu.Lock()
	l, round := q.ledgers[n], q.round
	size, known := q.baseline(n)
	delete(q.ledgers, n)
	delete(q.sizes, n)
	q.mu.Unlock()
	if l == nil {
		if !unlinked && (!known || q.timing == atOnce) {
			return
		}
		l = &ledger{size: size, known: known}
	}
	s, links, err := q.lastLook(n)
	l.mu.Lock()
	defer l.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.held, n) // not before what it held is given back: who sees it in neither place is refused
	recounted := l.gone || q.round != round
	l.gone = true
	had := s.bytes // a recount found it, or nothing was done to it
	if l.known && !recounted {
		had = l.size + l.pending
	}
	switch {
	case err != nil && unlinked: // nobody can tell any more
		q.slack.add(amount{had, 1})
	case unlinked && links == 0 && (q.recounting || recounted):
		q.slack.add(amount{max(s.bytes, had), 1}) // perhaps it has been seen
	case unlinked && links == 0:
		q.counted.sub(amount{had, 1})
	case recounted || !l.known:
	case err != nil:
		q.slack.bytes += l.pending
		q.part(n, had)
	default:
		now := s.expected(had)
		q.counted.bytes += now - had
		q.doubt(l.pending + s.spare)
		q.part(n, now)
	}
}

// lastLook looks at n, and at how many names it has, by the descriptor that is left of it.
func (q *quota) lastLook(n *Node) (s sight, links uint32, err error) {
	u := q.u
	files, slot := u.files, &n.data
	if n.IsDir() {
		files, slot = u.dirs, &n.dir.upper
	}
	f := files.Get(slot)
	if f == nil {
		return s, 0, unix.EBADF
	}
	defer f.Close()
	if !n.IsDir() && !f.Writable && !f.LetGo && !n.has(flagUnlinked) {
		return s, 0, unix.EBADF // it may be the lower's
	}
	var st unix.Statx_t
	if err := sys.Statx(f.FD(), "", &st); err != nil {
		return s, 0, err
	}
	links = st.Nlink
	if n.IsDir() && n.has(flagUnlinked) {
		links = 0 // some file systems keep the number of a removed directory
	}
	return q.sightOf(f.FD(), "", &st), links, nil
}
