package server

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/metrics"
	"strconv"

	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
	"plyfs/internal/exit"
	"plyfs/internal/sys"
)

// standbyEnv holds the descriptor of a socket over which this process, started in advance, gets its command lines, and over
// which its verdicts go back. The start of a program takes longer than a mount, and so does its end; the graph driver has the one
// done before, and gives the process that served a mount the next one (drivers/plyfs).
const standbyEnv = mountopt.StandbyEnv

// maxOrder bounds a command line; the kernel's own bound on one argument is less.
const maxOrder = 4 << 20

// reuseLimit is the heap, in bytes, beyond which a process does not stand by again: the next mount shall not pay for what the last
// one was big with.
const reuseLimit = 24 << 20

// standby is this process while it waits for mounts to serve, one after the other.
type standby struct {
	process *process
	orders  fdSocket
	indexes Indexes
	// dir is the directory that it was started in, out and err the files that it was given. A mount that is served leaves all three.
	dir, out, err int
}

// StandbyFD is the descriptor that the variable names, if there is one.
func StandbyFD() (fd int, ok bool) {
	fd, err := strconv.Atoi(os.Getenv(standbyEnv))
	return fd, err == nil && fd >= 3
}

// StandBy serves mounts that are ordered over the socket fd until nobody wants any more of them. A mount that could not be served
// ends it too: then something here may not be as it should.
func StandBy(fd int, from Indexes) error {
	if err := os.Unsetenv(standbyEnv); err != nil {
		return exit.Faultf(exit.System, "%v", err)
	}
	unix.CloseOnExec(fd)
	s := &standby{orders: fdSocket(fd), indexes: from}
	if err := s.keep(); err != nil {
		return exit.Faultf(exit.System, "stand by: %v", err)
	}
	s.process = prepareProcess()
	go widenTable()
	for first := true; ; first = false {
		if !first {
			if err := s.restore(); err != nil {
				return exit.Faultf(exit.System, "stand by again: %v", err)
			}
			if err := s.tell([]byte{exit.OK}); err != nil {
				return nil //nolint:nilerr // nobody is there any more, and the mount ended well
			}
			if err := s.process.releaseIndex(); err != nil { // behind the answer: it waits for the disk
				return exit.Faultf(exit.System, "stand by again: %v", err)
			}
		}
		order, err := receiveOrder(s.orders)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return exit.Faultf(exit.System, "wait for a mount to serve: %v", err)
		}
		if err := s.serve(order); err != nil {
			return silent(err)
		}
		if heapSize() > reuseLimit {
			return nil
		}
	}
}

// keep remembers what this process was started with.
func (s *standby) keep() (err error) {
	if s.dir, err = unix.Open(".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if s.out, err = unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3); err != nil {
		return err
	}
	s.err, err = unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 3)
	return err
}

// restore goes back to what this process was started with.
func (s *standby) restore() error {
	return errors.Join(unix.Fchdir(s.dir), unix.Dup3(s.out, 1, 0), unix.Dup3(s.err, 2, 0))
}

// serve serves one mount, and tells whether it does. The error has been told.
func (s *standby) serve(order []string) error {
	d := &daemon{fd: -1, target: -1, send: s.tell}
	r, err := orderedMount(order)
	if err == nil {
		err = s.process.serve(r, d, s.indexes)
	}
	if err == nil && !d.told {
		err = exit.Faultf(exit.Mount, "%s: the mount was gone before it was served", r.target)
	}
	if err != nil {
		d.failed(err)
	}
	return err
}

// orderedMount understands a command line that mounts.
func orderedMount(order []string) (request, error) {
	p, ok := PersonalityOf(order[0])
	args := order[1:]
	if !ok {
		if len(args) == 0 || args[0] != "mount" {
			return request{}, exit.Faultf(exit.Usage, "stand by: the command line %q does not mount", order)
		}
		p, args = MountPersonality(), args[1:]
	}
	r, err := parseRequest(p, args)
	if err == nil && (r.help || r.version) {
		err = exit.Faultf(exit.Usage, "stand by: the command line %q does not mount", order)
	}
	return r, err
}

// tell sends a verdict: its length as four bytes, and what daemon.tell gives.
func (s *standby) tell(verdict []byte) error {
	_, err := s.orders.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(verdict))), verdict...))
	return err
}

// heapSize is what the heap takes up, garbage included, in bytes.
func heapSize() (size uint64) {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	for _, m := range samples {
		if m.Value.Kind() == metrics.KindUint64 {
			size += m.Value.Uint64()
		}
	}
	return size
}

// receiveOrder reads a command line. The error is io.EOF if the other end closed before it sent any.
func receiveOrder(r io.Reader) ([]string, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(length[:])
	if n > maxOrder {
		return nil, fmt.Errorf("command line of %d bytes: %w", n, unix.E2BIG)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("command line: %w", noEOF(err))
	}
	var order []string
	if err := json.Unmarshal(b, &order); err != nil {
		return nil, fmt.Errorf("command line: %w", err)
	}
	if len(order) == 0 {
		return nil, fmt.Errorf("command line without a name: %w", unix.EINVAL)
	}
	return order, nil
}

// noEOF makes the end of a message that began no end of the stream.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// fdSocket is a socket that nothing else in this process uses.
type fdSocket int

func (fd fdSocket) Read(p []byte) (int, error) { return sys.FDReader(fd).Read(p) }

func (fd fdSocket) Write(p []byte) (int, error) {
	for done := 0; ; {
		n, err := unix.Write(int(fd), p[done:])
		done += max(n, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || done == len(p):
			return done, err
		}
	}
}
