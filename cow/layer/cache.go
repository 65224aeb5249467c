package layer

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Cache bounds the descriptors that a mount keeps open. Each descriptor lives in a Slot of its owner; when the bound is
// reached, the ones not used recently and not in use are closed, and their owners open them again at need.
type Cache struct {
	mu   sync.Mutex
	max  int
	ring []*File // clock order
	hand int

	hits, misses uint64

	letGo   time.Duration // see LetGo
	timer   *time.Timer   // for the next look at writers; nil for none. Guarded by mu.
	looking sync.Mutex    // held during a look; before mu
}

// Slot is a place for one descriptor; its zero value is empty. It is guarded by the Cache that it is used with.
type Slot struct{ f *File }

// File is an open descriptor in use. Close gives the use back; the descriptor itself is closed by the Cache.
type File struct {
	cache *Cache
	slot  *Slot
	fd    int
	refs  int
	pos   int // index in ring, -1 when pinned or dropped
	// Writable says that the descriptor was opened for writing.
	Writable bool
	// LetGo says that it was Writable, until the Cache's LetGo.
	LetGo    bool
	used     bool
	recent   bool // used since the last look at writers
	dropped  bool
	borrowed bool
}

// Access is what a descriptor was opened for.
type Access uint8

const (
	// ReadOnly is for reading, or for no more than *at calls (O_PATH).
	ReadOnly Access = iota
	// ReadWrite is for writing, too.
	ReadWrite
)

// AccessOf returns what a descriptor serves that was opened with these flags of open(2).
func AccessOf(flags int) Access {
	if flags&unix.O_ACCMODE == unix.O_RDWR {
		return ReadWrite
	}
	return ReadOnly
}

// NewCache returns a cache of at most limit descriptors, not counting pinned ones and those in use.
func NewCache(limit int) *Cache { return &Cache{max: max(limit, 4)} }

// Borrow wraps a descriptor that belongs to someone else: Close does nothing.
func Borrow(fd int) *File { return &File{fd: fd, borrowed: true, pos: -1} }

// Own wraps a descriptor that no cache keeps: Close closes it.
func Own(fd int) *File { return &File{fd: fd, pos: -1} }

// FD is the descriptor, valid until Close.
func (f *File) FD() int { return f.fd }

// Get returns the descriptor in s, nil if there is none. The caller must Close it.
func (c *Cache) Get(s *Slot) *File {
	c.mu.Lock()
	f := s.f
	if f != nil {
		f.refs++
		f.used, f.recent = true, true
		c.hits++
	} else {
		c.misses++
	}
	c.mu.Unlock()
	return f
}

// Put stores fd, which it owns from then on, in s and returns it in use. If s was filled meanwhile with a descriptor that serves as
// well, fd is closed and that one is returned. A descriptor that does not serve, one for reading where fd is for writing, is replaced.
func (c *Cache) Put(s *Slot, fd int, a Access) *File {
	writable := a == ReadWrite
	var victims []int
	c.mu.Lock()
	if f := s.f; f != nil {
		if f.Writable || !writable {
			f.refs++
			c.mu.Unlock()
			unix.Close(fd)
			return f
		}
		c.dropLocked(f)
		if f.refs == 0 {
			victims = append(victims, f.fd)
		}
	}
	f := &File{cache: c, slot: s, fd: fd, refs: 1, Writable: writable, recent: true, pos: len(c.ring)}
	s.f = f
	if writable {
		c.lookLaterLocked()
	}
	c.ring = append(c.ring, f)
	victims = append(victims, c.shrinkLocked()...)
	c.mu.Unlock()
	closeAll(victims)
	return f
}

// Close gives back one use.
func (f *File) Close() {
	c := f.cache
	if c == nil {
		if !f.borrowed {
			unix.Close(f.fd)
		}
		return
	}
	c.mu.Lock()
	f.refs--
	last := f.dropped && f.refs == 0
	c.mu.Unlock()
	if last {
		unix.Close(f.fd)
	}
}

// Drop empties s. The descriptor is closed when its last user is done.
func (c *Cache) Drop(s *Slot) {
	c.mu.Lock()
	f := s.f
	if f == nil {
		c.mu.Unlock()
		return
	}
	c.dropLocked(f)
	closeNow := f.refs == 0
	c.mu.Unlock()
	if closeNow {
		unix.Close(f.fd)
	}
}

// Pin keeps the descriptor in s open until Drop, whatever the bound: it is the only way to an unlinked file.
func (c *Cache) Pin(s *Slot) {
	c.mu.Lock()
	if s.f != nil && s.f.pos >= 0 {
		c.unringLocked(s.f)
	}
	c.mu.Unlock()
}

// PutPinned is Put and Pin in one, for a descriptor that nobody uses yet: between the two another's Put could close it.
func (c *Cache) PutPinned(s *Slot, fd int, a Access) {
	f := c.Put(s, fd, a)
	c.Pin(s)
	f.Close()
}

// Shrink closes half of the idle descriptors: the process ran into RLIMIT_NOFILE.
func (c *Cache) Shrink() {
	c.mu.Lock()
	old := c.max
	c.max = min(old, len(c.ring)/2)
	victims := c.shrinkLocked()
	c.max = old
	c.mu.Unlock()
	closeAll(victims)
}

// Len is the number of descriptors that the bound counts.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ring)
}

// Lookups returns how often Get found a descriptor, and how often there was none.
func (c *Cache) Lookups() (hits, misses uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits, c.misses
}

// CloseAll drops every idle descriptor; slots are emptied.
func (c *Cache) CloseAll() {
	c.looking.Lock() // which has idle descriptors in use
	defer c.looking.Unlock()
	c.mu.Lock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	old := c.max
	c.max = 0
	victims := c.shrinkLocked()
	c.max = old
	c.mu.Unlock()
	closeAll(victims)
}

// dropLocked detaches f from its slot and the ring. Precondition: c.mu is held; the caller closes f.fd if f.refs is 0.
func (c *Cache) dropLocked(f *File) {
	f.slot.f = nil
	f.dropped = true
	if f.pos >= 0 {
		c.unringLocked(f)
	}
}

// unringLocked takes f out of the clock. Precondition: c.mu is held and f.pos >= 0.
func (c *Cache) unringLocked(f *File) {
	last := len(c.ring) - 1
	c.ring[f.pos] = c.ring[last]
	c.ring[f.pos].pos = f.pos
	c.ring[last] = nil
	c.ring = c.ring[:last]
	f.pos = -1
}

// shrinkLocked detaches descriptors until the bound holds and returns those to be closed. Precondition: c.mu is held.
// A second chance is given to each used since the hand last passed; those in use are skipped.
func (c *Cache) shrinkLocked() []int {
	var victims []int
	for steps := 2 * len(c.ring); len(c.ring) > c.max && steps > 0; steps-- {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		f := c.ring[c.hand]
		if f.refs > 0 || f.used {
			f.used = false
			c.hand++
			continue
		}
		c.dropLocked(f)
		victims = append(victims, f.fd)
	}
	return victims
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
