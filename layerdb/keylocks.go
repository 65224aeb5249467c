package layerdb

import (
	"context"
	"slices"
	"sync"
)

// keyLocks is a sync.RWMutex for each key. Its zero value is ready; a lock that nobody holds or waits for takes no memory.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]*keyLock // guarded by mu
}

type keyLock struct {
	sync.RWMutex
	users int // guarded by keyLocks.mu
}

func (k *keyLocks) use(key string) *keyLock {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held == nil {
		k.held = make(map[string]*keyLock)
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{}
		k.held[key] = l
	}
	l.users++
	return l
}

func (k *keyLocks) done(key string, l *keyLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.held, key)
	}
}

// lock locks all keys, in their order, so that two who want the same ones cannot deadlock. unlock is called once.
func (k *keyLocks) lock(keys ...string) (unlock func()) {
	keys = slices.Compact(slices.Sorted(slices.Values(keys)))
	locks := make([]*keyLock, len(keys))
	for i, key := range keys {
		locks[i] = k.use(key)
		locks[i].Lock()
	}
	return func() {
		for i, key := range keys {
			locks[i].Unlock()
			k.done(key, locks[i])
		}
	}
}

// rlock locks a key for reading. unlock may be called more than once.
func (k *keyLocks) rlock(key string) (unlock func()) {
	l := k.use(key)
	l.RLock()
	return sync.OnceFunc(func() {
		l.RUnlock()
		k.done(key, l)
	})
}

// flights sees to it that a layer is made by one operation at a time.
type flights struct {
	mu     sync.Mutex
	flying map[ChainID]chan struct{} // closed when the layer is made or given up; guarded by mu
}

// begin waits until nobody else makes the layer, or for the end of ctx. The caller calls end when the layer is made or given up. Who
// makes several layers begins with the parents.
func (f *flights) begin(ctx context.Context, id ChainID) (end func(), err error) {
	for {
		f.mu.Lock()
		other := f.flying[id]
		if other == nil {
			if f.flying == nil {
				f.flying = make(map[ChainID]chan struct{})
			}
			mine := make(chan struct{})
			f.flying[id] = mine
			f.mu.Unlock()
			return sync.OnceFunc(func() {
				f.mu.Lock()
				delete(f.flying, id)
				f.mu.Unlock()
				close(mine)
			}), nil
		}
		f.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
