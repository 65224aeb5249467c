package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// firstActivated is the descriptor at which those passed by systemd begin (SD_LISTEN_FDS_START).
const firstActivated = 3

// activated returns the listener at the address that systemd passed, or nil. The descriptors themselves stay open and are not handed
// out, so that each Listen of the process finds those that are meant for it.
func activated(ctx context.Context, network, where string) (net.Listener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > 1<<16 {
		return nil, fmt.Errorf("LISTEN_FDS is %q, want the number of descriptors", os.Getenv("LISTEN_FDS"))
	}
	var others []string
	for fd := firstActivated; fd < firstActivated+n; fd++ {
		unix.CloseOnExec(fd)
		bound, err := boundTo(fd)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", fd, err)
		}
		if !sameAddress(network, where, bound) {
			others = append(others, bound)
			continue
		}
		return listenerOf(fd, bound)
	}
	if n > 0 {
		Logger(ctx).Debug("systemd passed no socket of this address", "address", where, "passed", others)
	}
	return nil, nil
}

// boundTo returns the address of the socket fd, as parseAddress returns addresses.
func boundTo(fd int) (string, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", fmt.Errorf("getsockname: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrUnix:
		return sa.Name, nil
	case *unix.SockaddrInet4:
		return net.JoinHostPort(net.IP(sa.Addr[:]).String(), strconv.Itoa(sa.Port)), nil
	case *unix.SockaddrInet6:
		return net.JoinHostPort(net.IP(sa.Addr[:]).String(), strconv.Itoa(sa.Port)), nil
	default:
		return "", errors.New("neither a unix socket nor a TCP port")
	}
}

// sameAddress compares paths by the directory that they lead to: /var/run is mostly /run.
func sameAddress(network, where, bound string) bool {
	if network != "unix" {
		return where == bound
	}
	return resolved(where) == resolved(bound)
}

func resolved(path string) string {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, filepath.Base(path))
}

// listenerOf returns a listener over a duplicate of fd.
func listenerOf(fd int, name string) (net.Listener, error) {
	accepts, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, fmt.Errorf("getsockopt %s: %w", name, err)
	}
	if accepts == 0 {
		return nil, fmt.Errorf("%s does not listen; set Accept=no in the socket unit", name)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstActivated)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", name, err)
	}
	f := os.NewFile(uintptr(dup), name)
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return l, nil
}
