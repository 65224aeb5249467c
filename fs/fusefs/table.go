package fusefs

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"plyfs/fs/union"
)

const (
	rootID = 1

	chunkBits = 9
	chunkLen  = 1 << chunkBits

	shardCount = 32
)

// slot is what a node id stands for.
type slot struct {
	node atomic.Pointer[union.Node] // nil: the id is free
	open atomic.Pointer[openState]  // nil: never opened; always nil in no-open mode

	// lookups is how many lookups of the id the kernel has not forgotten, refs how many references to node the table has taken over.
	// They differ, since lookups of "." bring no reference, and all references go back with the last lookup. Both are guarded by the
	// shard of node. In a free slot lookups is one more than the place of the chunk's next free slot, 0 in the last.
	lookups uint64
	refs    uint64

	// gen changes in a free slot only. Who answers with it has had the lookup counted, which keeps the slot from becoming free; but the
	// way from that answer to the kernel's forgetting of it is not one that the race detector sees.
	gen atomic.Uint32
	// setIDSeen says that the kernel was told of set-id bits in the mode, and may have cached them.
	setIDSeen atomic.Bool
}

// chunk is a run of slots; a chunk without any used slot is given back.
type chunk struct {
	slots [chunkLen]slot
	used  int
	free  uint64 // first free slot plus one, 0 for none
}

// table maps node ids to nodes and back. Reading an id takes two loads and no lock.
type table struct {
	shards [shardCount]shard

	dir atomic.Pointer[[]atomic.Pointer[chunk]]

	mu sync.Mutex
	// gens holds, per chunk, a generation that none of its ids has had yet; it outlives the chunk. Generations count from first, which
	// differs from mount to mount: old kernels hand out file handles although they are told not to, and a handle of an earlier mount
	// must not be taken for one of this mount.
	gens  []uint32
	first uint32
	// avail has a bit for each chunk that has a free slot or is not allocated.
	avail []uint64
	used  int
	spare int // the chunk that became empty last
}

// shard is the lock of the counts, and of union.Node.Tag, of a part of the nodes.
type shard struct {
	mu sync.Mutex
	_  [56]byte // a cache line each
}

// newTable returns a table in which id 1 stands for root, for ever.
func newTable(root *union.Node) *table {
	t := &table{}
	dir := make([]atomic.Pointer[chunk], 1)
	t.dir.Store(&dir)
	t.first = rand.Uint32()
	t.gens = make([]uint32, 1)
	t.avail = []uint64{1}
	// Id 0 is reserved by the protocol; it and the root are never freed.
	t.alloc()
	_, s := t.alloc()
	s.node.Store(root)
	s.lookups, s.refs = 1, 0
	root.Tag = rootID
	return t
}

func (t *table) shard(n *union.Node) *shard {
	return &t.shards[n.Spread()%shardCount]
}

// slot returns the slot of id, or nil when the kernel does not know the id.
func (t *table) slot(id uint64) *slot {
	dir := *t.dir.Load()
	c := id >> chunkBits
	if c >= uint64(len(dir)) {
		return nil
	}
	ch := dir[c].Load()
	if ch == nil {
		return nil
	}
	s := &ch.slots[id&(chunkLen-1)]
	if s.node.Load() == nil {
		return nil
	}
	return s
}

// node returns the node of id, or nil when the kernel does not know the id.
func (t *table) node(id uint64) *union.Node {
	if s := t.slot(id); s != nil {
		return s.node.Load()
	}
	return nil
}

// acquire counts one more lookup of n and takes over one reference to it.
func (t *table) acquire(n *union.Node) (id uint64, s *slot) {
	sh := t.shard(n)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if n.Tag != 0 {
		id, s = uint64(n.Tag), t.slot(uint64(n.Tag))
	} else {
		id, s = t.alloc()
		s.node.Store(n)
		n.Tag = uint32(id)
	}
	s.lookups++
	s.refs++
	return id, s
}

// again counts one more lookup of id, of which the union knows nothing.
func (t *table) again(id uint64) (*slot, bool) {
	s := t.slot(id)
	if s == nil {
		return nil, false
	}
	sh := t.shard(s.node.Load())
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s.lookups++
	return s, true
}

// forget takes back count lookups of id. When none is left the id is free, and the caller gives refs references of
// node back and releases open.
func (t *table) forget(id, count uint64) (node *union.Node, refs uint64, open *openState) {
	s := t.slot(id)
	if s == nil || id == rootID {
		return nil, 0, nil
	}
	n := s.node.Load()
	sh := t.shard(n)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if count < s.lookups {
		s.lookups -= count
		return nil, 0, nil
	}
	refs, open = s.refs, s.open.Load()
	if n.Tag == uint32(id) {
		n.Tag = 0
	}
	t.release(id, s)
	return n, refs, open
}

// current returns the id under which the kernel finds n, 0 for none.
func (t *table) current(n *union.Node) uint64 {
	sh := t.shard(n)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return uint64(n.Tag)
}

// detach makes the next lookup of n give a new id.
func (t *table) detach(n *union.Node, id uint64) {
	sh := t.shard(n)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if n.Tag == uint32(id) {
		n.Tag = 0
	}
}

// len returns the number of ids the kernel knows.
func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.used - 1
}

// takeLocks takes each lock and gives it back before it takes the next, as union.Union.TakeLocks does.
func (t *table) takeLocks() {
	for i := range t.shards {
		func() {
			t.shards[i].mu.Lock()
			defer t.shards[i].mu.Unlock()
		}()
	}
	t.len()
}

// alloc takes the free id of the lowest chunk, so that the table gets dense again after it shrank.
func (t *table) alloc() (uint64, *slot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ci := t.lowest()
	dir := *t.dir.Load()
	ch := dir[ci].Load()
	if ch == nil {
		ch = newChunk(t.first + t.gens[ci])
		dir[ci].Store(ch)
	}
	i := ch.free - 1
	s := &ch.slots[i]
	ch.free = s.lookups
	ch.used++
	if ch.free == 0 {
		t.avail[ci/64] &^= 1 << (ci % 64)
	}
	t.used++
	s.lookups, s.refs = 0, 0
	return uint64(ci)<<chunkBits | i, s
}

// lowest returns the first chunk with a free slot, growing the table when there is none.
func (t *table) lowest() int {
	for w, word := range t.avail {
		if word != 0 {
			return w*64 + bits.TrailingZeros64(word)
		}
	}
	old := *t.dir.Load()
	ci := len(old)
	dir := make([]atomic.Pointer[chunk], 2*ci)
	for i := range old {
		dir[i].Store(old[i].Load())
	}
	t.dir.Store(&dir)
	t.gens = append(t.gens, make([]uint32, ci)...)
	for len(t.avail)*64 < len(dir) {
		t.avail = append(t.avail, 0)
	}
	for i := ci; i < len(dir); i++ {
		t.avail[i/64] |= 1 << (i % 64)
	}
	return ci
}

func newChunk(gen uint32) *chunk {
	ch := &chunk{free: 1}
	for i := range ch.slots {
		ch.slots[i].gen.Store(gen)
		ch.slots[i].lookups = uint64(i) + 2
	}
	ch.slots[chunkLen-1].lookups = 0
	return ch
}

// release frees an id. Its next use has another generation, by which file handles tell them apart.
func (t *table) release(id uint64, s *slot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ci := int(id >> chunkBits)
	dir := *t.dir.Load()
	ch := dir[ci].Load()
	s.node.Store(nil)
	s.open.Store(nil)
	s.setIDSeen.Store(false)
	t.gens[ci] = max(t.gens[ci], s.gen.Add(1)-t.first)
	s.lookups, s.refs = ch.free, 0
	ch.free = id&(chunkLen-1) + 1
	ch.used--
	t.used--
	t.avail[ci/64] |= 1 << (ci % 64)
	if ch.used == 0 {
		// One empty chunk is kept, lest a single file come and go at the price of a chunk.
		if last := dir[t.spare].Load(); t.spare != ci && last != nil && last.used == 0 {
			dir[t.spare].Store(nil)
		}
		t.spare = ci
	}
}
