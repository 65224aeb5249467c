package layerdb

import (
	"context"
	"fmt"
	"sync"

	"plyfs/drivers"
)

// gate lets operations in, and one that wants to be alone only when nobody is in.
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

// enterAlone waits until all operations have left, while none is let in, and lets one called what in, until leave.
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

// close refuses everybody from now on, for ever, and says whether it was open.
func (g *gate) close() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := !g.closed
	g.closed = true
	return was
}
