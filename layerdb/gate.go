package layerdb

import (
	"context"
	"fmt"
	"sync"

	"plyfs/drivers"
)

// gate counts the operations that are inside, and lets one be alone. Unlike a sync.RWMutex it refuses instead of blocking while
// somebody is alone, or waits to be, and it can be closed.
type gate struct {
	mu     sync.Mutex
	inside int           // guarded by mu
	alone  string        // who is, or waits to be, alone; guarded by mu
	closed bool          // guarded by mu
	empty  chan struct{} // closed when inside becomes 0 while somebody waits to be alone; guarded by mu
}

// enter lets an operation in until leave. The error wraps ErrClosed, or drivers.ErrInUse while somebody is alone.
func (g *gate) enter() (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, ErrClosed
	}
	if g.alone != "" {
		return nil, fmt.Errorf("%s is under way: %w", g.alone, drivers.ErrInUse)
	}
	g.inside++
	return sync.OnceFunc(g.leave), nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// enterAlone refuses new operations from now on, waits until all have left, and lets the caller be alone until leave. what names the
// caller in the errors of others. The errors are those of enter, and ctx's.
func (g *gate) enterAlone(ctx context.Context, what string) (leave func(), err error) {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil, ErrClosed
	}
	if g.alone != "" {
		defer g.mu.Unlock()
		return nil, fmt.Errorf("%s is under way: %w", g.alone, drivers.ErrInUse)
	}
	g.alone = what
	var wait chan struct{}
	if g.inside > 0 {
		wait = make(chan struct{})
		g.empty = wait
	}
	g.mu.Unlock()
	leave = func() {
		g.mu.Lock()
		g.alone, g.empty = "", nil
		g.mu.Unlock()
	}
	if wait == nil {
		return leave, nil
	}
	select {
	case <-wait:
		return leave, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// close refuses everybody from now on, and says whether it was open before. It does not wait for operations that are inside.
func (g *gate) close() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := !g.closed
	g.closed = true
	return was
}
