package fusefs

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tick is how often the watchdog looks. A handler that is found in the same request twice is stuck, so that
	// another reader starts after one to two ticks.
	tick = time.Millisecond
	// idleTicks without any request put the watchdog to sleep.
	idleTicks = 4
	// yieldTicks is how often a reader has to begin a new time slice: well below the 10 milliseconds after which the
	// runtime takes the processor away from a goroutine that did not. A reader that never leaves it would lose its
	// processor at each read that waits from then on, and the runtime's monitor, once it had something to take, would
	// wake every 20 microseconds.
	yieldTicks = 4
	// window is the number of ticks over which the load of the readers is judged.
	window = 32
	// maxWaiting bounds the readers that are kept because handlers wait for disks.
	maxWaiting = 16
)

// watchdog sees to it that somebody reads the device while handlers block, and that there are more readers when one is not enough
// for the load. It sleeps while there is nothing to watch.
type watchdog struct {
	t      *fastTransport
	parked atomic.Bool
	wake   chan struct{}
	done   chan struct{}
	want   atomic.Int32 // readers to keep

	slice       int           // ticks since the readers were asked to yield
	ticks, full int           // ticks of the current window, and how many of them found all readers at work
	cpu         time.Duration // of the process, at the start of the window
	began       time.Time
}

func (d *watchdog) init(t *fastTransport) {
	d.t = t
	d.wake = make(chan struct{}, 1)
	d.done = make(chan struct{})
	d.want.Store(1)
}

func (d *watchdog) stop() { close(d.done) }

func (d *watchdog) wanted() int { return int(d.want.Load()) }

// rouse wakes the watchdog, after a reader has marked itself busy.
func (d *watchdog) rouse() {
	if d.parked.Load() && d.parked.CompareAndSwap(true, false) {
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
}

func (d *watchdog) run() {
	idle := 0
	for {
		select {
		case <-d.done:
			return
		default:
		}
		if d.look() {
			idle = 0
		} else if idle++; idle >= idleTicks {
			idle = 0
			if !d.park() {
				return
			}
		}
		time.Sleep(tick)
	}
}

// park sleeps until a request comes; it reports false when there is nothing left to watch.
func (d *watchdog) park() bool {
	d.want.Store(1)
	d.ticks = 0
	d.parked.Store(true)
	// A request that came before parked was set did not rouse anybody.
	if d.look() {
		d.parked.Store(false)
		return true
	}
	select {
	case <-d.done:
		return false
	case <-d.wake:
		return true
	}
}

// look judges the readers once. It reports whether there was anything to see.
func (d *watchdog) look() bool {
	t := d.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if d.slice++; d.slice >= yieldTicks {
		d.slice = 0
		for _, r := range t.active {
			r.overdue.Store(true)
		}
	}
	active := false
	free, able := 0, 0 // readers that wait, and that wait or get on
	for _, r := range t.active {
		state := r.state.Load()
		if state != r.seen {
			active = true
		}
		switch {
		case state&1 == 0:
			free++
			able++
		case state != r.seen:
			able++
		default:
			active = true
		}
		r.seen = state
	}
	if able == 0 {
		t.addReaderLocked()
	}
	d.judge(free == 0 && able > 0, able)
	return active
}

// judge keeps the number of readers near to what the load asks for. Readers that compute all the time get help only
// where there are processors to spare; readers that are always at work without computing wait for disks, and get
// help in any case.
func (d *watchdog) judge(full bool, able int) {
	if d.ticks == 0 {
		d.full, d.cpu, d.began = 0, cpuTime(), time.Now()
	}
	d.ticks++
	if full {
		d.full++
	}
	if d.ticks < window {
		return
	}
	d.ticks = 0
	want := int(d.want.Load())
	switch {
	case d.full >= window-2:
		limit := runtime.NumCPU() / 2
		if elapsed := time.Since(d.began); (cpuTime()-d.cpu)*2 < elapsed {
			limit = maxWaiting
		}
		if want < limit && able <= want {
			d.want.Store(int32(want + 1))
			d.t.addReaderLocked()
		}
	case d.full < window/2 && want > 1:
		d.want.Store(int32(want - 1))
	}
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
