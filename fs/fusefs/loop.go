package fusefs

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/internal/sys"
)

const (
	pageSize = 4096
	// bufferSize has room for the largest request or answer, its header in a page of its own and a margin.
	bufferSize = pageSize + maxWrite + pageSize

	// maxReaders bounds the readers that are stuck in a handler at a time.
	maxReaders = 64
	// sparePool is the number of readers whose buffers are kept for the next one.
	sparePool = 4

	// graceful is how long Serve waits, after the mount is gone, for handlers that are still at work.
	graceful = 5 * time.Second

	// settleAfter is when a mount is tuned: only one that lives longer gains by it.
	settleAfter = 5 * time.Millisecond

	// shortReply is the size, in bytes, up to which answers are written without telling the scheduler; see sys.WriteNoWait.
	shortReply = 1024
)

// fastTransport reads the device with one reader that handles each request itself: the reader stays on the processor
// of its client, and nothing is handed from thread to thread. A watchdog adds readers while handlers block.
type fastTransport struct {
	*FS
	dev     *Device
	fd      int
	library *fuse.ProtocolServer
	dog     watchdog

	mu      sync.Mutex
	active  []*reader // guarded by mu
	spare   []*reader // guarded by mu
	ending  bool      // guarded by mu
	failure error     // guarded by mu; why reading ended, when not by unmounting

	crowd  atomic.Int32  // len(active)
	closes atomic.Uint64 // RELEASE requests, see learnNoOpen
	probed atomic.Bool

	ended chan struct{} // closed when the first reader ends for good
	left  chan struct{} // closed when the last one did
}

// reader is a goroutine that reads and answers requests.
type reader struct {
	worker
	// state is the number of the current request, shifted left, with the lowest bit set while it is handled.
	state atomic.Uint64
	seen  uint64 // state at the last tick; belongs to the watchdog
	// overdue asks the reader to begin a new time slice; see yieldTicks.
	overdue atomic.Bool
}

func (f *FS) serveFast(dev *Device, report func(error)) error {
	t := &fastTransport{FS: f, dev: dev, fd: dev.Fd(), ended: make(chan struct{}), left: make(chan struct{})}
	t.dog.init(t)
	r, err := t.newReader()
	if err != nil {
		return err
	}
	if mounted, err := t.handshake(r); err != nil || !mounted {
		return err
	}
	t.mu.Lock()
	t.enlistLocked(r)
	t.mu.Unlock()
	go t.run(r)
	go t.dog.run()
	report(nil)
	later := time.AfterFunc(settleAfter, func() {
		spareProcessors()
		f.tune(dev)
	})
	<-t.ended
	later.Stop()
	t.dog.stop()
	failure := t.failed()
	if failure != nil {
		_ = dev.Unmount() // which ends the other readers
	}
	select {
	case <-t.left:
	case <-time.After(graceful):
		return errors.Join(failure, errors.New("fusefs: unmounted, but requests are still being handled"))
	}
	for _, r := range t.spare {
		r.free()
	}
	return t.failed()
}

// failed is why readers had to end, nil if the mount was gone.
func (t *fastTransport) failed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failure
}

// spareProcessors gives the Go scheduler more processors than run at a time. A reader that waits in the kernel keeps its
// own meanwhile; were there no other, the scheduler would take it away after 20 microseconds, and a reader that comes back
// would queue for one: half of the time of a request on a single CPU.
func spareProcessors() {
	const spare = 4
	if want := runtime.NumCPU() + spare; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
}

// newReader returns a reader with buffers of its own.
func (t *fastTransport) newReader() (*reader, error) {
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANON
	r := &reader{worker: worker{FS: t.FS, library: t.library}}
	for _, b := range []*[]byte{&r.inMap, &r.outMap} {
		m, err := unix.Mmap(-1, 0, bufferSize, prot, flags)
		if err != nil {
			r.free()
			return nil, fmt.Errorf("fusefs: buffers: %w", err)
		}
		*b = m
	}
	r.in = r.inMap[pageSize-inHeaderSize-writeInSize:]
	r.out = r.outMap[pageSize-outHeaderSize:]
	return r, nil
}

func (r *reader) free() {
	for _, b := range []*[]byte{&r.inMap, &r.outMap} {
		if *b != nil {
			_ = unix.Munmap(*b)
			*b = nil
		}
	}
	r.in, r.out = nil, nil
}

// handshake answers INIT. It reports false when the mount was gone before.
func (t *fastTransport) handshake(r *reader) (bool, error) {
	req, err := t.read(r)
	if err != nil || req == nil {
		return false, err
	}
	if req.opcode() != opInit || len(req) < initSize {
		return false, fmt.Errorf("fusefs: the first request is %s instead of INIT", opNames[req.opcode()%opLimit])
	}
	t.chooseMode(req.offered())
	raw := newRawFS(t.FS)
	raw.counted = true
	t.library = fuse.NewProtocolServer(raw, t.options(t.modeNow() == modePassthrough))
	r.library = t.library
	reply := r.answer(req)
	if code := int32(order.Uint32(reply[4:])); code != 0 {
		_ = t.write(reply)
		return false, fmt.Errorf("fusefs: the kernel's FUSE is too old: %w", unix.Errno(-code))
	}
	if err := t.write(reply); err != nil {
		return false, fmt.Errorf("fusefs: answer to INIT: %w", err)
	}
	return true, nil
}

// enlistLocked counts r among the readers. Precondition: t.mu is held.
func (t *fastTransport) enlistLocked(r *reader) {
	t.active = append(t.active, r)
	t.crowd.Store(int32(len(t.active)))
}

// addReaderLocked starts a reader, unless the mount is gone or there are too many. Precondition: t.mu is held.
func (t *fastTransport) addReaderLocked() {
	if t.ending || len(t.active) >= maxReaders {
		return
	}
	var r *reader
	if n := len(t.spare); n > 0 {
		r, t.spare = t.spare[n-1], t.spare[:n-1]
	} else {
		var err error
		if r, err = t.newReader(); err != nil {
			t.log.Error("no further reader", "error", err)
			return
		}
	}
	t.enlistLocked(r)
	t.counts.readers.Add(1)
	go t.run(r)
}

// relieve makes sure that somebody else reads while r is in a handler that is known to take long.
func (t *fastTransport) relieve(r *reader) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idleLocked(r) == 0 {
		t.addReaderLocked()
	}
}

// idleLocked returns the number of readers besides r that wait for a request. Precondition: t.mu is held.
func (t *fastTransport) idleLocked(r *reader) (n int) {
	for _, other := range t.active {
		if other != r && other.state.Load()&1 == 0 {
			n++
		}
	}
	return n
}

// leave reports whether r, which has nothing to do, is one reader too many, and strikes it off.
func (t *fastTransport) leave(r *reader) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.active) <= t.dog.wanted() || t.idleLocked(r) == 0 {
		return false
	}
	t.strikeLocked(r)
	if len(t.spare) < sparePool {
		t.spare = append(t.spare, r)
	} else {
		r.free()
	}
	return true
}

// strikeLocked removes r from the readers. Precondition: t.mu is held.
func (t *fastTransport) strikeLocked(r *reader) {
	for i, other := range t.active {
		if other == r {
			last := len(t.active) - 1
			t.active[i] = t.active[last]
			t.active[last] = nil
			t.active = t.active[:last]
			break
		}
	}
	t.crowd.Store(int32(len(t.active)))
}

// end strikes r off for good.
func (t *fastTransport) end(r *reader, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ending {
		t.ending = true
		close(t.ended)
	}
	if t.failure == nil {
		t.failure = err
	}
	t.strikeLocked(r)
	r.free()
	if len(t.active) == 0 {
		close(t.left)
	}
}

// run is the loop of a reader.
func (t *fastTransport) run(r *reader) {
	for {
		req, err := t.read(r)
		if err != nil || req == nil {
			t.end(r, err)
			return
		}
		n := r.state.Add(1) // odd: busy
		t.dog.rouse()
		switch req.opcode() {
		case opFsync, opFsyncdir:
			t.relieve(r)
		case opRelease:
			t.closes.Add(1)
		case opCreate:
			t.learnNoOpen(r, req)
		}
		if reply := r.handle(req); len(reply) > 0 {
			if err := t.write(reply); err != nil {
				t.log.Warn("answer refused", "op", opNames[req.opcode()%opLimit], "error", err)
			}
		}
		r.state.Store(n + 1)
		if r.overdue.Load() {
			r.overdue.Store(false)
			runtime.Gosched()
		}
		if t.crowd.Load() > 1 && t.leave(r) {
			return
		}
	}
}

// read waits for a request. It returns neither a request nor an error when the mount is gone.
func (t *fastTransport) read(r *reader) (request, error) {
	for {
		n, err := unix.Read(t.fd, r.in)
		switch err {
		case nil:
			if n < inHeaderSize {
				return nil, fmt.Errorf("fusefs: a request of %d bytes", n)
			}
			return request(r.in[:n]), nil
		case unix.EINTR, unix.EAGAIN, unix.ENOENT:
			// ENOENT: the request was aborted before it could be read.
		case unix.ENODEV, unix.EBADF, unix.ECONNABORTED:
			return nil, nil
		default:
			return nil, fmt.Errorf("fusefs: read /dev/fuse: %w", err)
		}
	}
}

// write sends an answer. Nobody waiting for it any more is no error.
func (t *fastTransport) write(reply []byte) error {
	for {
		var err error
		if len(reply) <= shortReply {
			_, err = sys.WriteNoWait(t.fd, reply)
		} else {
			_, err = unix.Write(t.fd, reply)
		}
		switch errno, _ := err.(unix.Errno); errno { //nolint:errorlint // a bare system call, on the hot path
		case 0, unix.ENOENT, unix.ENODEV, unix.EBADF, unix.ECONNABORTED:
			return nil
		case unix.EINTR, unix.EAGAIN:
		default:
			return err
		}
	}
}
