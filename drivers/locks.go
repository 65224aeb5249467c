package drivers

import "sync"

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
