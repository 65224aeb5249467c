package daemon

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrAddress is wrapped by errors over an address that Listen does not take.
var ErrAddress = errors.New("not an address to listen at")

// parseAddress returns the network and the address as package net wants them.
func parseAddress(address string) (network, where string, err error) {
	if rest, ok := strings.CutPrefix(address, "tcp://"); ok {
		where, err := loopback(rest)
		return "tcp", where, err
	}
	path := strings.TrimPrefix(address, "unix://")
	if scheme, _, ok := strings.Cut(path, "://"); ok {
		return "", "", fmt.Errorf("%s: scheme %s, only unix:///PATH and tcp://127.0.0.1:PORT are served: %w", address, scheme, ErrAddress)
	}
	if !filepath.IsAbs(path) || strings.HasSuffix(path, "/") {
		return "", "", fmt.Errorf("%q: want unix:///PATH, /PATH or tcp://127.0.0.1:PORT: %w", address, ErrAddress)
	}
	// The kernel wants room for a zero byte.
	if limit := len(unix.RawSockaddrUnix{}.Path) - 1; len(path) > limit {
		return "", "", fmt.Errorf("%s: %d bytes, a socket's path has at most %d: %w", path, len(path), limit, ErrAddress)
	}
	return "unix", filepath.Clean(path), nil
}

// loopback returns HOST:PORT if the host is this machine alone. A name is not looked up: who answers for names could send the daemon
// elsewhere.
func loopback(hostPort string) (string, error) {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return "", fmt.Errorf("tcp://%s: %v: %w", hostPort, err, ErrAddress) //nolint:errorlint // one class is enough
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return "", fmt.Errorf("tcp://%s: %s is not a loopback address; listen at 127.0.0.1 or [::1], and let a proxy that "+
			"authenticates its clients serve others: %w", hostPort, host, ErrAddress)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("tcp://%s: %q is not a port; give a number from 1 to 65535, or 0 for any that is free: %w", hostPort, port, ErrAddress)
	}
	return net.JoinHostPort(host, port), nil
}
