package control

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// maxAnswer bounds one line of an answer, and maxSockets those of one directory: a reader must not be held up by what another
// user puts there.
const (
	maxAnswer  = 8 << 20
	maxSockets = 4096
)

// ErrGone says that nobody listens on a socket: the server ended.
var ErrGone = errors.New("the server is gone")

// ErrRefused says that a server, or the owner of its directory, does not let this user in.
var ErrRefused = errors.New("refused")

// Socket is the control socket of one mount.
type Socket struct {
	// Path is where it is.
	Path string
	// PID is the server's by the name of the socket: in its own pid namespace.
	PID int
	// UID is the owner.
	UID uint32

	dir, name string
}

// List returns the sockets of a scope, by path. Directories that this user may not read are left out, and so is what is no socket of
// the directory's owner.
func List(s Scope) ([]Socket, error) {
	all, err := dirs(s)
	if err != nil {
		return nil, err
	}
	var list []Socket
	for _, dir := range all {
		found, err := listDir(dir)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	slices.SortFunc(list, func(a, b Socket) int { return cmp.Compare(a.Path, b.Path) })
	return list, nil
}

// Find returns the socket of the mount with that id.
func Find(s Scope, mount uint64) (Socket, bool) {
	list, err := List(s)
	if err != nil {
		return Socket{}, false
	}
	i := slices.IndexFunc(list, func(s Socket) bool { return s.name == SocketName(s.PID, mount) })
	if i < 0 {
		return Socket{}, false
	}
	return list[i], true
}

func listDir(dir string) ([]Socket, error) {
	fd, st, err := openDir(dir)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		return nil, nil
	case err != nil:
		return nil, err
	}
	defer unix.Close(fd)
	f, err := os.Open(sys.ProcPath(fd))
	if errors.Is(err, unix.EACCES) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxSockets)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var list []Socket
	for _, name := range names {
		var entry unix.Stat_t
		if unix.Fstatat(fd, name, &entry, unix.AT_SYMLINK_NOFOLLOW) != nil || entry.Mode&unix.S_IFMT != unix.S_IFSOCK ||
			entry.Uid != st.Uid {
			continue
		}
		list = append(list, Socket{
			Path: filepath.Join(dir, name), PID: pidOf(name), UID: entry.Uid, dir: dir, name: name,
		})
	}
	return list, nil
}

// SocketName is the name of a server's socket: its pid, by which people find it, and the id of its mount, which tells it from
// those of other pid namespaces.
func SocketName(pid int, mount uint64) string { return fmt.Sprintf("%d-%x", pid, mount) }

func pidOf(name string) int {
	num, _, _ := strings.Cut(name, "-")
	pid, err := strconv.Atoi(num)
	if err != nil {
		return 0
	}
	return pid
}

// dial connects, and returns the pid of the server in this pid namespace, 0 if it is not in it. Nothing on the way is followed, and
// the server has to be the owner of the directory. The error wraps ErrGone if nobody listens; a socket that is surely abandoned has
// been removed then.
func (s Socket) dial(ctx context.Context) (net.Conn, int, error) {
	dir, st, err := openDir(s.dir)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, s.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, 0, fmt.Errorf("%s: %w", s.Path, ErrGone)
	}
	if err != nil {
		return nil, 0, &os.PathError{Op: "open", Path: s.Path, Err: err}
	}
	defer unix.Close(fd)
	var file unix.Stat_t
	if err := unix.Fstat(fd, &file); err != nil {
		return nil, 0, &os.PathError{Op: "stat", Path: s.Path, Err: err}
	}
	if file.Mode&unix.S_IFMT != unix.S_IFSOCK || file.Uid != st.Uid {
		return nil, 0, fmt.Errorf("%s is no socket of user %d: %w", s.Path, st.Uid, ErrRefused)
	}
	// By descriptor: there is no room for long paths in the address of a socket.
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", sys.ProcPath(fd))
	if errors.Is(err, unix.ECONNREFUSED) {
		s.clean(dir, file.Ino)
		return nil, 0, fmt.Errorf("%s: %w", s.Path, ErrGone)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("connect to %s: %w", s.Path, err)
	}
	peer, err := sys.PeerCred(c)
	if err == nil && peer.Uid != st.Uid {
		err = fmt.Errorf("%s is served by user %d, not %d: %w", s.Path, peer.Uid, st.Uid, ErrRefused)
	}
	if err != nil {
		_ = c.Close()
		return nil, 0, err
	}
	return c, int(peer.Pid), nil
}

// clean removes an abandoned socket, unless it is another one by now, or its process lives: one that has just bound it does not
// listen yet.
func (s Socket) clean(dir int, ino uint64) {
	if s.PID > 0 && lives(s.PID) {
		return
	}
	var now unix.Stat_t
	if unix.Fstatat(dir, s.name, &now, unix.AT_SYMLINK_NOFOLLOW) == nil && now.Ino == ino {
		_ = unix.Unlinkat(dir, s.name, 0) // another user's: it stays
	}
}

// Status asks what the mount is. The PID is that in this pid namespace, where it has one. The error wraps ErrGone,
// os.ErrDeadlineExceeded for a server that does not answer until ctx's deadline, or ErrRefused.
func (s Socket) Status(ctx context.Context) (Status, error) {
	var a struct {
		Header
		Status
	}
	err := s.ask(ctx, requestStatus, &a, &a.Header, &a.PID)
	return a.Status, err
}

// Metrics asks for the counters. Errors are those of Status.
func (s Socket) Metrics(ctx context.Context) (Metrics, error) {
	var a struct {
		Header
		Metrics
	}
	err := s.ask(ctx, requestMetrics, &a, &a.Header, &a.PID)
	return a.Metrics, err
}

// Settle returns when the server has fetched all that was written to the mount before, so that an unmount loses nothing of it. Called
// after an unmount, it returns at once if the mount lives on elsewhere, and else waits until the server has handled all requests and hangs up,
// which is ErrRefused as any hanging up. Other errors are those of Status, and the server's own if it could not tell. pid is that of the
// server, in this process's namespace; 0 if it has none there, and with an error.
func (s Socket) Settle(ctx context.Context) (pid int, err error) {
	var a Header
	err = s.ask(ctx, requestSettle, &a, &a, &pid)
	return pid, err
}

// Watch calls visit with each sample, the first at once, until ctx ends, visit returns an error, or the server is gone. It returns
// nil if ctx ended, visit's error, or those of Status. The interval is 0.1 seconds at least.
func (s Socket) Watch(ctx context.Context, interval time.Duration, visit func(Sample) error) error {
	c, pid, err := s.request(ctx, requestWatch+" "+strconv.FormatFloat(interval.Seconds(), 'f', -1, 64))
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	in := bufio.NewReader(c)
	for {
		var a struct {
			Header
			Sample
		}
		if err := readAnswer(in, &a, &a.Header); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%s: %w", s.Path, err)
		}
		if pid > 0 {
			a.PID = pid
		}
		if err := visit(a.Sample); err != nil {
			return err
		}
	}
}

// ask sends a request that has one line of answer. header and pid are those in answer.
func (s Socket) ask(ctx context.Context, what string, answer any, header *Header, pid *int) error {
	c, peer, err := s.request(ctx, what)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := readAnswer(bufio.NewReader(c), answer, header); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer: %w", os.ErrDeadlineExceeded)
		}
		return fmt.Errorf("%s: %w", s.Path, err)
	}
	if peer > 0 {
		*pid = peer
	}
	return nil
}

// request connects and sends one line.
func (s Socket) request(ctx context.Context, what string) (net.Conn, int, error) {
	c, pid, err := s.dial(ctx)
	if err != nil {
		return nil, 0, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = c.SetDeadline(deadline)
	}
	if err == nil {
		_, err = fmt.Fprintf(c, "plyfs/%d %s\n", Version, what)
	}
	if err != nil {
		_ = c.Close()
		return nil, 0, fmt.Errorf("%s: %w", s.Path, err)
	}
	return c, pid, nil
}

// readAnswer decodes one line. header is the one in answer.
func readAnswer(in *bufio.Reader, answer any, header *Header) error {
	line, err := readLine(in)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, answer); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	switch {
	case header.Error != "":
		return fmt.Errorf("the server says: %.200q", header.Error)
	case header.Version != Version:
		return fmt.Errorf("answer in version %d of the protocol, this program knows %d: update it", header.Version, Version)
	}
	return nil
}

// readLine reads a line of at most maxAnswer bytes. A connection that ends before its first byte was refused, or its server ended.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case len(line) > maxAnswer:
			return nil, fmt.Errorf("answer of more than %d bytes", maxAnswer)
		case errors.Is(err, io.EOF) && len(line) == 0, errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
			return nil, fmt.Errorf("the server hung up: %w", ErrRefused)
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, fmt.Errorf("answer: %w", err)
		}
	}
}
