package plyfs

import (
	"context"
	"errors"
	"sync"
	"time"
)

// replenishAfter is how long a pool waits for a server to come back before it has another one started: who mounts and unmounts in
// turn needs no second one.
const replenishAfter = time.Second

// pool starts servers, and keeps one that waits: the start of a program takes longer than a mount, and so does its end, and whoever
// starts a container waits for both. That is the one that served the last mount. In a process that mounts again and again, as a daemon
// does, it may also be one started in advance; one that mounts once, as a command does, gets none that nobody would use.
type pool struct {
	program, dir string

	mu sync.Mutex
	// spare waits for a mount to serve; nil for none. Guarded by mu.
	spare *process
	// timer is for the start of a spare; nil while none is wanted. Guarded by mu.
	timer *time.Timer
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
	if o.mounts > 1 && o.spare == nil && !o.closed && o.timer == nil {
		o.timer = time.AfterFunc(replenishAfter, o.replenishLater)
	}
	return p, nil
}

// replenishLater is the action of the timer.
func (o *pool) replenishLater() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.timer == nil {
		return // called off
	}
	o.timer = nil
	if o.spare == nil && !o.closed {
		o.starting.Go(o.replenish)
	}
}

// replenish starts a spare. That it fails is no harm: the next mount starts its own, and says why it cannot.
func (o *pool) replenish() {
	if p, err := launch(o.program, o.dir); err == nil {
		o.keep(p)
	}
}

// keep takes a process that waits. It is dismissed if there is one already, or none is wanted.
func (o *pool) keep(p *process) {
	o.mu.Lock()
	wanted := o.spare == nil && !o.closed
	if wanted {
		o.spare = p
		o.stopLocked()
	}
	o.mu.Unlock()
	if !wanted {
		p.dismiss()
	}
}

// stopLocked calls off the start of a spare. Precondition: o.mu is held.
func (o *pool) stopLocked() {
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
}

// close ends the spare, and waits for its end.
func (o *pool) close() error {
	o.mu.Lock()
	o.closed = true
	o.stopLocked()
	o.mu.Unlock()
	o.starting.Wait()
	if p := o.take(); p != nil {
		p.dismiss()
	}
	return nil
}
