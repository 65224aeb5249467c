package drivers

import (
	"context"
	"sync"
)

// Locks serialises the operations on one id; its zero value is ready. A lock that nobody wants takes no memory.
type Locks struct {
	mu   sync.Mutex
	held map[string]*lockedID // guarded by mu
}

type lockedID struct {
	mu    sync.Mutex
	users int // guarded by Locks.mu
}

// Lock waits until nobody else holds id, and returns what ends the hold. A goroutine holds one id at a time.
func (l *Locks) Lock(id string) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = make(map[string]*lockedID)
	}
	e := l.held[id]
	if e == nil {
		e = &lockedID{}
		l.held[id] = e
	}
	e.users++
	l.mu.Unlock()
	e.mu.Lock()
	return func() {
		e.mu.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(l.held, id)
		}
	}
}

// Begin is what an operation on one layer begins with: it refuses an id that cannot be one, and a context that ended, also
// one that ended while another operation was waited for, and else holds id until unlock.
func (l *Locks) Begin(ctx context.Context, id string) (unlock func(), err error) {
	if err := ValidID(id); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	unlock = l.Lock(id)
	if err := ctx.Err(); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}
