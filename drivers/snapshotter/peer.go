package snapshotter

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"plyfs/internal/sys"
)

// Credentials are for a gRPC server to which Register adds services. They authenticate nobody: the socket's mode does that. They find
// out, and log, for each connection whether its other end sees what this process mounts (see Options.Served).
func Credentials(log *slog.Logger) credentials.TransportCredentials {
	return peerCredentials{insecure.NewCredentials(), log}
}

type peerCredentials struct {
	credentials.TransportCredentials
	log *slog.Logger
}

// peerInfo is what is known of a connection.
type peerInfo struct {
	credentials.CommonAuthInfo
	// sees says that the other side has the mounts of this process.
	sees bool
}

// AuthType implements credentials.AuthInfo.
func (peerInfo) AuthType() string { return "unix" }

// ServerHandshake implements credentials.TransportCredentials.
func (p peerCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	i := peerInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}
	pid := 0
	if cred, err := sys.PeerCred(c); err == nil {
		pid = int(cred.Pid)
		i.sees = seesMounts(pid)
	}
	p.log.Info("a connection", "process", pid, "has these mounts", i.sees)
	return c, i, nil
}

// Clone implements credentials.TransportCredentials.
func (p peerCredentials) Clone() credentials.TransportCredentials {
	return peerCredentials{p.TransportCredentials.Clone(), p.log}
}

// seesMounts says whether a process has the root of this one, and so its mounts: a mount belongs to one namespace.
func seesMounts(pid int) bool {
	own, err := rootOf("self")
	if err != nil {
		return false
	}
	theirs, err := rootOf(strconv.Itoa(pid))
	return err == nil && theirs == own
}

// root is the mount and the inode of a root directory.
type root struct{ mount, inode uint64 }

func rootOf(process string) (root, error) {
	var st unix.Statx_t
	path := "/proc/" + process + "/root/"
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_MNT_ID, &st); err != nil {
		return root{}, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return root{}, unix.EOPNOTSUPP
	}
	return root{mount: st.Mnt_id, inode: st.Ino}, nil
}

// callerSees says whether the process that a call comes from has the mounts of this one. A call without a connection comes from this
// process.
func callerSees(ctx context.Context) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return true
	}
	i, ok := p.AuthInfo.(peerInfo)
	return ok && i.sees
}
