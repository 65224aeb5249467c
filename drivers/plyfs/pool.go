package plyfs

import (
	"context"
	"errors"
	"sync"
)

// pool starts servers. In a process that mounts again and again, as a daemon does, it keeps one started in advance: the
// start of a program takes longer than a mount, and whoever starts a container waits for both. A process that mounts once,
// as a command does, starts none that nobody would use.
type pool struct {
	program, dir string

	mu sync.Mutex
	// spare waits for a mount to serve; nil for none. Guarded by mu.
	spare *process
	// mounts counts those that were served; closed says that there will be none. Guarded by mu.
	mounts int
	closed bool
	// starting is what brings the next spare. Add is guarded by mu.
	starting sync.WaitGroup
}

// start returns a server that serves what args, a command line of plyfs, say.
func (o *pool) start(ctx context.Context, args []string) (*process, error) {
	if p := o.take(); p != nil {
		err := p.serve(ctx, args)
		if !errors.Is(err, errNotWaiting) {
			return o.served(p, err)
		}
	}
	p, err := launch(o.program, o.dir)
	if err != nil {
		return nil, err
	}
	return o.served(p, p.serve(ctx, args))
}

// take returns the spare, if there is one.
func (o *pool) take() *process {
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.spare
	o.spare = nil
	return p
}

// served hands on a server, and has the next one started if this process is one that mounts more than once.
func (o *pool) served(p *process, err error) (*process, error) {
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mounts++
	if o.mounts > 1 && o.spare == nil && !o.closed {
		o.starting.Go(o.replenish)
	}
	return p, nil
}

// replenish starts a spare. That it fails is no harm: the next mount starts its own, and says why it cannot.
func (o *pool) replenish() {
	p, err := launch(o.program, o.dir)
	if err != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.spare != nil || o.closed {
		p.dismiss()
		return
	}
	o.spare = p
}

// close ends the spare, and waits for its end.
func (o *pool) close() error {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.starting.Wait()
	if p := o.take(); p != nil {
		p.dismiss()
		<-p.ended
	}
	return nil
}

// dismiss makes a waiting process end.
func (p *process) dismiss() {
	_ = p.orders.Close() // it has nothing to flush
	p.orders = nil
}
