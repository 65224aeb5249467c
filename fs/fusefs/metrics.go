package fusefs

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/latency"
)

// Metrics are counters of events since the mount, for people and programs. Of TransportGoFUSE only requests are counted.
type Metrics struct {
	// Ops are the operations that were asked for, in the order of their opcodes.
	Ops []OpMetrics
	// BytesRead and BytesWritten are data of files that passed through this process; with DataPassthrough most does not.
	BytesRead, BytesWritten uint64
	// Panics were in handlers, and answered EIO.
	Panics uint64
	// Readers were started because the others were busy.
	Readers uint64
	// StaleIDs are node ids that went stale; see the package documentation.
	StaleIDs uint64
	// Notifications were written to the kernel.
	Notifications uint64
	// Nodes are the node ids that the kernel knows now.
	Nodes int
	// Data is the data mode that is in effect: "noopen", "reopen" (as noopen, but every open is asked for) or "passthrough".
	Data string
}

// OpMetrics are those of one operation.
type OpMetrics struct {
	// Op is the name of its opcode, such as LOOKUP.
	Op       string
	Requests uint64
	// Errors are how many were refused, by class of error (see the constants of type ErrorClass). Classes without any are
	// left out. A name that does not exist is no error where the kernel may remember that.
	Errors map[ErrorClass]uint64
	// Durations are those of the requests since MeasureDurations, from reading a request to its answer.
	Durations latency.Snapshot
}

// ErrorClass groups error numbers by whose concern they are.
type ErrorClass string

// The classes.
const (
	ClassNotFound    ErrorClass = "not_found"   // ENOENT, ENODATA
	ClassExists      ErrorClass = "exists"      // EEXIST, ENOTEMPTY
	ClassPermission  ErrorClass = "permission"  // EPERM, EACCES, EROFS
	ClassInvalid     ErrorClass = "invalid"     // what the caller got wrong: EINVAL, ENOTDIR, EISDIR, ENAMETOOLONG and the like
	ClassUnsupported ErrorClass = "unsupported" // ENOSYS, EOPNOTSUPP, ENOTTY, EXDEV
	ClassStale       ErrorClass = "stale"       // ESTALE
	ClassSpace       ErrorClass = "space"       // ENOSPC, EDQUOT, EFBIG
	ClassResource    ErrorClass = "resource"    // ENOMEM, EMFILE, ENFILE, EAGAIN
	ClassIO          ErrorClass = "io"          // EIO, EUCLEAN: damage
	ClassOther       ErrorClass = "other"
)

// classCount is the number of classes, and the length of classes.
const classCount = 10

func classes() [classCount]ErrorClass {
	return [...]ErrorClass{
		ClassNotFound, ClassExists, ClassPermission, ClassInvalid, ClassUnsupported, ClassStale, ClassSpace, ClassResource,
		ClassIO, ClassOther,
	}
}

// classOf returns the index of an error's class in classes.
func classOf(errno unix.Errno) int {
	switch errno {
	case unix.ENOENT, unix.ENODATA:
		return 0
	case unix.EEXIST, unix.ENOTEMPTY:
		return 1
	case unix.EPERM, unix.EACCES, unix.EROFS:
		return 2
	case unix.EINVAL, unix.ENOTDIR, unix.EISDIR, unix.ENAMETOOLONG, unix.ELOOP, unix.ERANGE, unix.EMLINK, unix.ENXIO, unix.E2BIG,
		unix.EBUSY, unix.ETXTBSY:
		return 3
	case unix.ENOSYS, unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV:
		return 4
	case unix.ESTALE:
		return 5
	case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
		return 6
	case unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EAGAIN:
		return 7
	case unix.EIO, unix.EUCLEAN, unix.EFAULT, unix.EBADF:
		return 8
	}
	return classCount - 1
}

// timing holds the histograms of a mount that somebody asked for.
type timing struct {
	base time.Time // reading the clock as a distance from it takes three quarters of the time of time.Now
	ops  [opLimit]latency.Histogram
}

// outcomes are counters of answers.
type outcomes struct {
	errors        [opLimit][classCount]atomic.Uint64
	read, written atomic.Uint64
	timing        atomic.Pointer[timing] // nil: durations are not measured
}

// MeasureDurations makes all requests from now on count in OpMetrics.Durations. Reading the clock twice costs about one
// percent of the shortest request, so it is done only once somebody wants to know. It can't be undone; calling it again does
// nothing.
func (f *FS) MeasureDurations() {
	f.counts.timing.CompareAndSwap(nil, &timing{base: time.Now()})
}

// Metrics returns the current counters.
func (f *FS) Metrics() Metrics {
	c := &f.counts
	m := Metrics{
		BytesRead: c.read.Load(), BytesWritten: c.written.Load(), Panics: c.panics.Load(), Readers: c.readers.Load(),
		StaleIDs: c.stale.Load(), Notifications: c.notices.Load(), Nodes: f.Nodes(), Data: f.modeNow().String(),
	}
	t := c.timing.Load()
	for op := range c.ops {
		n := c.ops[op].Load()
		if n == 0 {
			continue
		}
		o := OpMetrics{Op: opName(uint32(op)), Requests: n}
		for i, class := range classes() {
			if k := c.errors[op][i].Load(); k != 0 {
				if o.Errors == nil {
					o.Errors = make(map[ErrorClass]uint64)
				}
				o.Errors[class] = k
			}
		}
		if t != nil {
			o.Durations = t.ops[op].Snapshot()
		}
		m.Ops = append(m.Ops, o)
	}
	return m
}

// Data returns the data mode in effect; see Metrics.Data. It is "" before Serve has answered the kernel's INIT.
func (f *FS) Data() string { return f.modeNow().String() }

// String returns the mode as Metrics.Data has it.
func (m mode) String() string {
	switch m {
	case modeNoOpen:
		return "noopen"
	case modeReopen:
		return "reopen"
	case modePassthrough:
		return "passthrough"
	}
	return ""
}

func opName(op uint32) string {
	if op < opLimit && opNames[op] != "" {
		return opNames[op]
	}
	return fmt.Sprintf("OPCODE_%d", op)
}

// handle answers a request as answer does, and counts how that went.
func (w *worker) handle(req request) []byte {
	op := min(req.opcode(), opLimit-1)
	var reply []byte
	if t := w.counts.timing.Load(); t != nil {
		began := time.Since(t.base)
		reply = w.answer(req)
		t.ops[op].Observe(time.Since(t.base) - began)
	} else {
		reply = w.answer(req)
	}
	if len(reply) < outHeaderSize {
		return reply
	}
	if code := int32(order.Uint32(reply[4:])); code != 0 {
		w.counts.errors[op][classOf(unix.Errno(-code))].Add(1)
		return reply
	}
	switch op {
	case opRead:
		w.counts.read.Add(uint64(len(reply) - outHeaderSize))
	case opWrite, opCopyRange:
		w.counts.written.Add(uint64(order.Uint32(reply[outHeaderSize:])))
	}
	if list := w.watchers.list.Load(); list != nil {
		w.watched(*list, op, req, reply)
	}
	return reply
}
