package fusefs

import (
	"fmt"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// Kernel is what the kernel's FUSE can do for this process.
type Kernel struct {
	// Major and Minor are the version of the protocol, such as 7.45.
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	// Passthrough says that the kernel offers to read and write backing files itself.
	Passthrough bool `json:"passthrough"`
	// Refused is why it did not take a backing file though it offers to, empty if it did. It is EPERM outside of the
	// initial user namespace, ELOOP for a file on a stacked file system.
	Refused string `json:"refused,omitempty"`
	// IDMapped says that mounts can be id-mapped, OverIOUring that requests can come through io_uring.
	IDMapped    bool `json:"idmapped"`
	OverIOUring bool `json:"over_io_uring"`
}

// ProbeKernel mounts on target, which must be a directory, answers the kernel's first request and unmounts. backing is
// a regular file that is offered for passthrough. It is for a process that may mount directly, and wants a mount
// namespace of its own, so that nothing stays if the process is killed. The error is that of Mount, or of the exchange.
func ProbeKernel(target string, backing int) (k Kernel, err error) {
	d, err := Mount(MountConfig{Target: target, FSName: "plyfs", Subtype: "plyfs"})
	if err != nil {
		return Kernel{}, err
	}
	defer func() {
		uerr := d.unmountNow(d.target, unix.MNT_DETACH)
		_ = d.Close()
		if err == nil && uerr != nil {
			err = fmt.Errorf("unmount %s: %w", target, uerr)
		}
	}()
	offered, err := k.readInit(d.Fd())
	if err != nil {
		return Kernel{}, err
	}
	k.Passthrough = offered&fuse.CAP_PASSTHROUGH != 0
	k.IDMapped = offered&fuse.CAP_ALLOW_IDMAP != 0
	k.OverIOUring = offered&fuse.CAP_OVER_IO_URING != 0
	if !k.Passthrough {
		return k, nil
	}
	id, err := sys.BackingOpen(d.Fd(), backing)
	if err != nil {
		k.Refused = err.Error()
		return k, nil
	}
	return k, sys.BackingClose(d.Fd(), id)
}

// readInit reads INIT, answers it, accepting passthrough alone, and returns what the kernel offers.
func (k *Kernel) readInit(fd int) (offered uint64, err error) {
	buf := make([]byte, bufferSize)
	var n int
	for {
		if n, err = unix.Read(fd, buf); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return 0, fmt.Errorf("fusefs: read INIT: %w", err)
	}
	req := request(buf[:n])
	if n < initSize || req.opcode() != opInit {
		return 0, fmt.Errorf("fusefs: the first request, of %d bytes, is not INIT: %w", n, unix.EPROTO)
	}
	k.Major, k.Minor = req.u32(0), req.u32(4)
	offered = req.offered()
	if _, err := unix.Write(fd, initReply(req, offered&(fuse.CAP_PASSTHROUGH|fuse.CAP_INIT_EXT))); err != nil {
		return 0, fmt.Errorf("fusefs: answer to INIT: %w", err)
	}
	return offered, nil
}

// initReply is the answer to INIT: struct fuse_init_out of linux/fuse.h behind the header.
func initReply(req request, caps uint64) []byte {
	const size = outHeaderSize + 64
	var b []byte
	for _, v := range []uint32{size, 0} {
		b = order.AppendUint32(b, v)
	}
	b = order.AppendUint64(b, req.unique())
	b = order.AppendUint32(b, req.u32(0))
	b = order.AppendUint32(b, min(req.u32(4), fuseMinor))
	b = order.AppendUint32(b, 0)
	b = order.AppendUint32(b, uint32(caps))
	b = order.AppendUint32(b, 0)        // max_background, congestion_threshold
	b = order.AppendUint32(b, pageSize) // max_write
	b = order.AppendUint32(b, 1)        // time_gran
	b = order.AppendUint32(b, 0)        // max_pages, map_alignment
	b = order.AppendUint32(b, uint32(caps>>32))
	b = order.AppendUint32(b, 1) // max_stack_depth
	return append(b, slices.Repeat([]byte{0}, size-len(b))...)
}

// fuseMinor is the version whose structures initReply writes, the first with passthrough.
const fuseMinor = 40
