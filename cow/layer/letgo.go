package layer

import (
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// LetGo has descriptors that are open for writing, and were not used for a time between after and twice that, replaced by such for reading:
// as long as there is one for writing, their file system can't be made read-only. The file stays open, so that an error of writing it
// back, which comes later, is not forgotten before somebody asks for it. It is called before the first Put; pinned descriptors stay.
func (c *Cache) LetGo(after time.Duration) { c.letGo = after }

// lookLaterLocked sees to it that writers are looked at. Precondition: c.mu is held.
func (c *Cache) lookLaterLocked() {
	if c.letGo > 0 && c.timer == nil {
		c.timer = time.AfterFunc(c.letGo, c.look)
	}
}

// look lets go of the writers that were not used since the last look, and comes again while there are others.
func (c *Cache) look() {
	c.looking.Lock()
	defer c.looking.Unlock()
	c.mu.Lock()
	if c.timer == nil {
		c.mu.Unlock()
		return // called off
	}
	c.timer = nil
	var idle []*File
	for _, f := range c.ring {
		switch {
		case !f.Writable:
		case f.refs == 0 && !f.recent:
			f.refs++ // so that nobody closes it
			idle = append(idle, f)
		default:
			f.recent = false
			c.lookLaterLocked()
		}
	}
	c.mu.Unlock()
	for _, f := range idle {
		c.demote(f)
	}
}

// demote replaces the descriptor of f, of which the caller has one use and gives it back, by one for reading, if it could be opened for
// writing again.
func (c *Cache) demote(f *File) {
	defer f.Close()
	again, err := sys.Reopen(f.fd, unix.O_RDWR)
	if err != nil {
		return
	}
	unix.Close(again)
	fd, err := sys.Reopen(f.fd, unix.O_RDONLY)
	if err != nil {
		return
	}
	c.mu.Lock()
	if f.refs == 1 && !f.dropped && f.pos >= 0 {
		f.fd, fd = fd, f.fd
		f.Writable, f.LetGo = false, true
	} else if !f.dropped && f.pos >= 0 {
		c.lookLaterLocked()
	}
	c.mu.Unlock()
	unix.Close(fd)
}
