package graphplugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// peerKey is the key of a connection's context for the process at its other end.
type peerKey struct{}

// withPeer returns a context that knows who is at the other end of a connection, as far as that can be told.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	cred, err := sys.PeerCred(conn)
	// A process of which this PID namespace knows nothing has the number 0.
	if err != nil || cred.Pid <= 0 {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, int(cred.Pid))
}

// getVisible is get for a dockerd that has to see what is mounted: it gives the path to a runtime, which without the mount would
// start a container in an empty directory.
func (s *store) getVisible(ctx context.Context, r layerRequest) (string, error) {
	dir, err := s.get(ctx, r)
	if err != nil {
		return "", err
	}
	if err := visible(ctx, dir); err != nil {
		return "", errors.Join(err, s.put(context.WithoutCancel(ctx), r))
	}
	return dir, nil
}

// visible returns an error if the process at the other end of the connection is in another mount namespace, and sees
// something else at dir. It is nil where that can't be told: a managed plugin knows nothing of dockerd's processes.
func visible(ctx context.Context, dir string) error {
	pid, ok := ctx.Value(peerKey{}).(int)
	if !ok {
		return nil
	}
	own, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		return nil //nolint:nilerr // nothing can be told
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil || os.SameFile(own, theirs) {
		return nil //nolint:nilerr // nothing can be told
	}
	here, err := os.Stat(dir)
	if err != nil {
		return err
	}
	there, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", pid, dir))
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || err == nil && os.SameFile(here, there) {
		return nil
	}
	return fmt.Errorf("dockerd (process %d) is in another mount namespace, and does not see what is mounted on %s: "+
		"start both in one mount namespace, or let dockerd's file system be a shared mount that this plugin inherits: %w",
		pid, dir, drivers.ErrPrerequisites)
}
