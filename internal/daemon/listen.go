package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

var (
	// ErrServed is wrapped by the error over an address at which a process listens already.
	ErrServed = errors.New("already served")
	// ErrUnsafe is wrapped by the error over a socket whose place others could change.
	ErrUnsafe = errors.New("others can replace it")
)

const (
	// socketMode lets nobody but the owner, and root, connect.
	socketMode = 0o600
	// parentMode is that of the directories which Listen makes.
	parentMode = 0o700
	// probeTimeout bounds the attempt to connect to a socket that is there already.
	probeTimeout = 2 * time.Second
)

// Listen returns a listener at address, which is "unix:///PATH", "/PATH" or "tcp://HOST:PORT" with a host of this machine's loopback
// interface. It never waits for connections; ctx bounds what it waits for, other daemons that start at the same moment. The
// listener belongs to the caller and lasts until it is closed, whatever becomes of ctx.
//
// If systemd passes a socket with that address (LISTEN_FDS of sd_listen_fds(3)), the listener is that one.
//
// A unix socket has mode 0600 from the moment it exists. Missing directories above it are made, with mode 0700; the last must
// belong to root or this user, and be written by no others unless it is sticky (ErrUnsafe). A socket that is there and at which
// nobody listens is replaced; one that is served is ErrServed; a file of another kind stays. Connections of users other than root and the effective
// user of this process end at once: they read nothing, and Accept never returns them. The refusals are logged to
// Logger(ctx). Close removes the socket, unless systemd made it or another took its place.
//
// A TCP port knows nothing of users: all of this machine can connect.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	network, where, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	inherited, err := activated(ctx, network, where)
	switch {
	case err != nil:
		return nil, fmt.Errorf("socket from systemd for %s: %w", address, err)
	case inherited != nil && network == "tcp":
		return inherited, nil
	case inherited != nil:
		return guard(ctx, inherited)
	case network == "tcp":
		return listenTCP(ctx, where)
	}
	return listenUnix(ctx, where)
}

func listenTCP(ctx context.Context, where string) (net.Listener, error) {
	var c net.ListenConfig
	l, err := c.Listen(ctx, "tcp", where)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("tcp://%s: another process listens there; end it, or choose another port: %w", where, ErrServed)
	}
	return l, err
}

// listenUnix makes the socket.
func listenUnix(ctx context.Context, path string) (l net.Listener, err error) {
	if err := makeParent(filepath.Dir(path)); err != nil {
		return nil, err
	}
	unlock, err := lockPath(ctx, path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	// The kernel takes the mode of the new file from the descriptor: at no moment can others connect.
	private := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var inner error
		err := raw.Control(func(fd uintptr) { inner = unix.Fchmod(int(fd), socketMode) })
		return errors.Join(err, inner)
	}}
	made, err := private.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	g, err := guard(ctx, made)
	if err != nil {
		return nil, errors.Join(err, made.Close())
	}
	g.UnixListener.SetUnlinkOnClose(false)
	if err := unix.Lstat(path, &g.own); err != nil {
		return nil, errors.Join(fmt.Errorf("lstat %s: %w", path, err), made.Close())
	}
	g.path = path
	return g, nil
}

// makeParent makes the directory if it is missing, and checks that only those who may write it.
func makeParent(dir string) error {
	if err := os.MkdirAll(dir, parentMode); err != nil {
		return fmt.Errorf("directory of the socket: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("directory of the socket: stat %s: %w", dir, err)
	}
	switch {
	case !trusted(st.Uid):
		return fmt.Errorf("directory of the socket: %s belongs to user %d; choose one of your own or of root's: %w", dir, st.Uid, ErrUnsafe)
	case st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0:
		return fmt.Errorf("directory of the socket: %s can be written by others (mode %04o); chmod go-w %s, or choose another: %w",
			dir, st.Mode&0o7777, dir, ErrUnsafe)
	}
	return nil
}

// removeStale removes a socket at which nobody listens.
func removeStale(ctx context.Context, path string) error {
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("lstat %s: %w", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("%s is there and is not a socket; remove it, or choose another address: %w", path, unix.EEXIST)
	case !trusted(st.Uid):
		return fmt.Errorf("%s is a socket of user %d; remove it, or choose another address: %w", path, st.Uid, ErrUnsafe)
	}
	d := net.Dialer{Timeout: probeTimeout}
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		defer conn.Close()
		return fmt.Errorf("%s is served by %s; end it, or choose another address: %w", path, peerName(conn), ErrServed)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%s is there, and whether it is served is unknown: %w", path, err)
	}
	Logger(ctx).Info("removed a socket that nobody served", "path", path)
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("socket that nobody serves: %w", err)
	}
	return nil
}

// peerName names the process that listens at the other end.
func peerName(conn net.Conn) string {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return "another process"
	}
	cred, err := sys.PeerCred(u)
	if err != nil || cred.Pid == 0 {
		return "another process"
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cred.Pid))
	if err != nil {
		return fmt.Sprintf("process %d", cred.Pid)
	}
	return fmt.Sprintf("process %d (%s)", cred.Pid, trimLine(comm))
}

func trimLine(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return string(b)
}

// guard wraps a listener on a unix socket.
func guard(ctx context.Context, l net.Listener) (*guarded, error) {
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("%s is not a stream socket: %w", l.Addr(), ErrAddress)
	}
	return &guarded{UnixListener: u, log: Logger(ctx), euid: os.Geteuid()}, nil
}

// guarded is a listener that knows only root and the user of this process.
type guarded struct {
	*net.UnixListener
	log  *slog.Logger
	euid int
	// path is the socket to remove in the end, own what it was when it was made. path is empty if systemd made it.
	path string
	own  unix.Stat_t
}

// Accept returns the next connection of root or of this process's user. It blocks until there is one, or the listener is closed.
func (g *guarded) Accept() (net.Conn, error) {
	for {
		conn, err := g.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := sys.PeerCred(conn)
		if err == nil && (cred.Uid == 0 || int(cred.Uid) == g.euid) {
			return conn, nil
		}
		if err != nil {
			g.log.Warn("refused a connection whose user is unknown", "socket", g.Addr().String(), "error", err)
		} else {
			g.log.Warn("refused a connection of another user", "socket", g.Addr().String(), "uid", cred.Uid, "pid", cred.Pid)
		}
		_ = conn.Close()
	}
}

// Close ends the listener and removes its socket. Calls of Accept return net.ErrClosed.
func (g *guarded) Close() (err error) {
	if g.path != "" {
		unlock, lockErr := lockPath(context.Background(), g.path)
		if lockErr == nil {
			defer func() { err = errors.Join(err, unlock()) }()
		}
		var st unix.Stat_t
		if unix.Lstat(g.path, &st) == nil && st.Dev == g.own.Dev && st.Ino == g.own.Ino {
			err = os.Remove(g.path)
		}
	}
	return errors.Join(err, g.UnixListener.Close())
}
