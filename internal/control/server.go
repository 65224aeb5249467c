package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

const (
	// maxClients are served at a time; more are hung up on.
	maxClients = 16
	// maxRequest is the length of a request with its newline.
	maxRequest = 256

	// Patience with a client that does not ask, and one that does not read.
	askWithin  = 5 * time.Second
	readWithin = 10 * time.Second

	// settleWithin bounds how long the mount of this server may take to settle.
	settleWithin = 2 * time.Second

	// The intervals of a watch.
	minInterval = 100 * time.Millisecond
	maxInterval = time.Hour
)

// Source is what a Server tells. Its methods are called by several goroutines at once.
type Source interface {
	Status() Status
	Metrics() Metrics
	// Watch begins to gather activities until the Watcher is closed.
	Watch() Watcher
	// Settle returns when all that was written to the mount before has been fetched from the kernel. The error wraps ErrGone if the
	// mount has ended.
	Settle(ctx context.Context) error
}

// Watcher gathers activities for one client.
type Watcher interface {
	// Take returns what was gathered since the last call, and how many requests there was no room for.
	Take() ([]Activity, uint64)
	Close()
}

// Server answers on a socket.
type Server struct {
	src    Source
	log    *slog.Logger
	listen net.Listener
	dir    int
	name   string
	self   credentials
	room   chan struct{}

	mu     sync.Mutex
	closed bool                  // guarded by mu
	conns  map[net.Conn]struct{} // guarded by mu
	all    sync.WaitGroup
}

// credentials are what peers are compared with.
type credentials struct {
	uid, overflow uint32
	initial       bool
}

// Serve listens on the socket name in the directory dir, which it makes if needed, and answers from src until Close. It blocks for
// some system calls only. name must be unique among those who share the directory, whatever their pid namespace; what a server
// of that name left behind is replaced.
func Serve(dir, name string, src Source, log *slog.Logger) (*Server, error) {
	fd, err := makeDir(dir)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s := &Server{
		src: src, log: log, dir: fd, name: name, self: ownCredentials(),
		room: make(chan struct{}, maxClients), conns: make(map[net.Conn]struct{}),
	}
	if s.listen, err = listen(fd, name); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("control socket %s/%s: %w", dir, name, err)
	}
	s.all.Go(s.accept)
	return s, nil
}

// listen binds a socket of mode 0600 from the beginning.
func listen(dir int, name string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		// The mode of the unbound socket is that of the file (cf. net/unix/af_unix.c unix_bind_bsd).
		if err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return chmod
	}}
	// There is no room for long paths in the address of a socket.
	address := sys.ProcPath(dir) + "/" + name
	l, err := lc.Listen(context.Background(), "unix", address)
	if errors.Is(err, unix.EADDRINUSE) && abandoned(address) {
		if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
		l, err = lc.Listen(context.Background(), "unix", address)
	}
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // Close does, beneath the directory
	}
	return l, nil
}

// abandoned reports whether nobody listens on a socket.
func abandoned(address string) bool {
	c, err := net.Dial("unix", address)
	if err != nil {
		return errors.Is(err, unix.ECONNREFUSED)
	}
	_ = c.Close()
	return false
}

// Close removes the socket, hangs up on all clients and waits until nothing uses the Source any more.
func (s *Server) Close() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	err := unix.Unlinkat(s.dir, s.name, 0)
	if errors.Is(err, unix.ENOENT) {
		err = nil // a reader took it for abandoned, or the directory is gone
	}
	if cerr := s.listen.Close(); err == nil {
		err = cerr
	}
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.all.Wait()
	return errors.Join(err, unix.Close(s.dir))
}

// acceptAgain is how long accept waits after an error.
const acceptAgain = 100 * time.Millisecond

func (s *Server) accept() {
	failing := false
	for {
		c, err := s.listen.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptor is free, here or in the whole system
			if !failing {
				s.log.Warn("control socket: can't answer", "error", err)
			}
			failing = true
			time.Sleep(acceptAgain)
			continue
		}
		failing = false
		if !s.admit(c) {
			_ = c.Close()
		}
	}
}

// admit lets a client in, or reports that it must not be.
func (s *Server) admit(c net.Conn) bool {
	if err := s.self.accept(c); err != nil {
		s.log.Warn("control socket: refused a client", "error", err)
		return false
	}
	select {
	case s.room <- struct{}{}:
	default:
		s.log.Debug("control socket: too many clients")
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		<-s.room
		return false
	}
	s.conns[c] = struct{}{}
	s.all.Go(func() {
		defer func() {
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
			_ = c.Close()
			<-s.room
		}()
		if err := s.answer(c); err != nil {
			s.log.Debug("control socket: client lost", "error", err)
		}
	})
	return true
}

// answer serves one client.
func (s *Server) answer(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(askWithin)); err != nil {
		return err
	}
	in := bufio.NewReader(io.LimitReader(c, maxRequest))
	line, err := in.ReadString('\n')
	if err != nil {
		return fmt.Errorf("a request that does not end: %w", err)
	}
	what, arg, err := parseRequest(line)
	if err != nil {
		return send(c, Header{Version: Version, Error: err.Error()})
	}
	switch what {
	case requestStatus:
		return send(c, struct {
			Header
			Status
		}{Header{Version: Version}, s.src.Status()})
	case requestMetrics:
		return send(c, struct {
			Header
			Metrics
		}{Header{Version: Version}, s.src.Metrics()})
	case requestSettle:
		return s.settle(c)
	}
	interval, err := parseInterval(arg)
	if err != nil {
		return send(c, Header{Version: Version, Error: err.Error()})
	}
	return s.watch(c, interval)
}

// parseRequest takes a request apart.
func parseRequest(line string) (what, arg string, err error) {
	words := strings.Fields(line)
	if len(words) < 2 {
		return "", "", errors.New("a request is plyfs/1 and a word")
	}
	if words[0] != "plyfs/"+strconv.Itoa(Version) {
		return "", "", fmt.Errorf("this server speaks plyfs/%d only", Version)
	}
	what = words[1]
	switch {
	case what == requestWatch && len(words) == 3:
		return what, words[2], nil
	case (what == requestStatus || what == requestMetrics || what == requestSettle) && len(words) == 2:
		return what, "", nil
	}
	return "", "", fmt.Errorf("requests are %s, %s, %s and %s SECONDS", requestStatus, requestMetrics, requestSettle, requestWatch)
}

// settle answers a client that wants to unmount, or has: then Close hangs up on it.
func (s *Server) settle(c net.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), settleWithin)
	defer cancel()
	err := s.src.Settle(ctx)
	if errors.Is(err, ErrGone) {
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, c)
		return nil
	}
	a := Header{Version: Version}
	if err != nil {
		a.Error = err.Error()
	}
	return send(c, a)
}

func parseInterval(arg string) (time.Duration, error) {
	seconds, err := strconv.ParseFloat(arg, 64)
	d := time.Duration(seconds * float64(time.Second))
	if err != nil || !(seconds > 0) || d < minInterval || d > maxInterval {
		return 0, fmt.Errorf("an interval is %v to %v, in seconds", minInterval.Seconds(), maxInterval.Seconds())
	}
	return d, nil
}

// watch sends samples until the client hangs up, or the server ends.
func (s *Server) watch(c net.Conn, interval time.Duration) error {
	w := s.src.Watch()
	defer w.Close()
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	gone := make(chan struct{})
	var hears sync.WaitGroup
	hears.Go(func() {
		_, _ = io.Copy(io.Discard, c) // ends when the client hangs up, or Close does
		close(gone)
	})
	defer hears.Wait()
	defer c.Close()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		var sample Sample
		// In this order the counters have all that the activities tell of.
		sample.Activity, sample.Dropped = w.Take()
		sample.Time, sample.Metrics = time.Now(), s.src.Metrics()
		err := send(c, struct {
			Header
			Sample
		}{Header{Version: Version}, sample})
		if err != nil {
			return err
		}
		select {
		case <-gone:
			return nil
		case <-tick.C:
		}
	}
}

// send writes one line.
func send(c net.Conn, answer any) error {
	b, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(readWithin)); err != nil {
		return err
	}
	_, err = c.Write(append(b, '\n'))
	return err
}

func ownCredentials() credentials {
	_, initial := outerID(0)
	c := credentials{uid: uint32(os.Geteuid()), initial: initial, overflow: 65534}
	if b, err := os.ReadFile("/proc/sys/kernel/overflowuid"); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32); err == nil {
			c.overflow = uint32(n)
		}
	}
	return c
}

// accept returns an error for a client that may not ask.
func (own credentials) accept(c net.Conn) error {
	peer, err := sys.PeerCred(c)
	switch {
	case err != nil:
		return err
	case peer.Uid == own.uid, peer.Uid == 0:
		return nil
	case peer.Uid == own.overflow && !own.initial:
		return nil // root of the outside; see the package documentation
	}
	return fmt.Errorf("user %d (process %d): %w", peer.Uid, peer.Pid, unix.EACCES)
}
