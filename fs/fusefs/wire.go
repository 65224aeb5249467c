package fusefs

import (
	"bytes"
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"

	"plyfs/fs/union"
	"plyfs/internal/sys"
)

// Sizes of the structures of linux/fuse.h.
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	entryOutSize  = 128
	attrOutSize   = 104
	openOutSize   = 16
	writeInSize   = 40
)

var order = binary.NativeEndian

// request is one message from the kernel, decoded in place: it points into the read buffer.
type request []byte

func (r request) opcode() uint32   { return order.Uint32(r[4:]) }
func (r request) unique() uint64   { return order.Uint64(r[8:]) }
func (r request) node() uint64     { return order.Uint64(r[16:]) }
func (r request) pid() uint32      { return order.Uint32(r[32:]) }
func (r request) extLen() int      { return int(order.Uint16(r[36:])) * 8 }
func (r request) u32(i int) uint32 { return order.Uint32(r[inHeaderSize+i:]) }
func (r request) u64(i int) uint64 { return order.Uint64(r[inHeaderSize+i:]) }

// caller fills c from the header, without groups and umask.
func (r request) caller(c *union.Caller) {
	*c = union.Caller{UID: order.Uint32(r[24:]), GID: order.Uint32(r[28:]), PID: r.pid()}
}

// name returns the string that follows the first skip bytes of the argument.
func (r request) name(skip int) string {
	name, _ := cutString(r[inHeaderSize+skip:])
	return string(name)
}

// names returns the two strings that follow the first skip bytes of the argument.
func (r request) names(skip int) (string, string) {
	first, rest := cutString(r[inHeaderSize+skip:])
	second, _ := cutString(rest)
	return string(first), string(second)
}

// xattrName is name(8) without an allocation for the attributes that the kernel asks for by itself.
func (r request) xattrName() string {
	name, _ := cutString(r[inHeaderSize+8:])
	switch string(name) {
	case "security.capability":
		return "security.capability"
	case aclAccess:
		return aclAccess
	case "system.posix_acl_default":
		return "system.posix_acl_default"
	case "security.selinux":
		return "security.selinux"
	case "security.ima":
		return "security.ima"
	case "security.evm":
		return "security.evm"
	}
	return string(name)
}

func cutString(b []byte) (s, rest []byte) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return b, nil
	}
	return b[:i], b[i+1:]
}

// initSize is the size of the INIT of a kernel that is old enough to lack struct fuse_init_in's flags2.
const initSize = inHeaderSize + 16

// offered returns the capabilities that the kernel offers in r, an INIT of at least initSize bytes.
func (r request) offered() uint64 {
	flags := uint64(r.u32(12))
	if len(r) >= initSize+4 {
		flags |= uint64(r.u32(16)) << 32
	}
	return flags
}

func (r request) setattr(in *setattrIn) {
	*in = setattrIn{
		valid: r.u32(0), size: r.u64(16), mode: r.u32(68), uid: r.u32(76), gid: r.u32(80),
		atime: sys.Time{Sec: int64(r.u64(32)), Nsec: r.u32(56)},
		mtime: sys.Time{Sec: int64(r.u64(40)), Nsec: r.u32(60)},
	}
}

func putAttr(b []byte, a *union.Attr) {
	_ = b[87]
	order.PutUint64(b[0:], a.Ino)
	order.PutUint64(b[8:], a.Size)
	order.PutUint64(b[16:], a.Blocks)
	order.PutUint64(b[24:], uint64(a.Atime.Sec))
	order.PutUint64(b[32:], uint64(a.Mtime.Sec))
	order.PutUint64(b[40:], uint64(a.Ctime.Sec))
	order.PutUint32(b[48:], a.Atime.Nsec)
	order.PutUint32(b[52:], a.Mtime.Nsec)
	order.PutUint32(b[56:], a.Ctime.Nsec)
	order.PutUint32(b[60:], a.Mode)
	order.PutUint32(b[64:], a.Nlink)
	order.PutUint32(b[68:], a.UID)
	order.PutUint32(b[72:], a.GID)
	order.PutUint32(b[76:], kernelDev(a.Rdev))
	order.PutUint32(b[80:], a.Blksize)
	order.PutUint32(b[84:], 0)
}

func (f *FS) putAttrOut(b []byte, a *attrs) {
	sec, nsec := f.validSec, f.validNsec
	if a.volatile {
		sec, nsec = 0, 0
	}
	order.PutUint64(b[0:], sec)
	order.PutUint32(b[8:], nsec)
	order.PutUint32(b[12:], 0)
	putAttr(b[16:], &a.Attr)
}

func (f *FS) putEntry(b []byte, e *entry) {
	clear(b[:entryOutSize])
	order.PutUint64(b[0:], e.id)
	order.PutUint64(b[8:], e.gen)
	if !e.fleeting {
		order.PutUint64(b[16:], f.validSec)
		order.PutUint32(b[32:], f.validNsec)
	}
	if e.id == 0 {
		return
	}
	if !e.volatile {
		order.PutUint64(b[24:], f.validSec)
		order.PutUint32(b[36:], f.validNsec)
	}
	putAttr(b[40:], &e.Attr)
}

func putOpen(b []byte, o *opened) {
	order.PutUint64(b[0:], 0)
	order.PutUint32(b[8:], o.flags)
	order.PutUint32(b[12:], uint32(o.backing))
}

func putHeader(b []byte, size int, code fuse.Status, unique uint64) {
	order.PutUint32(b[0:], uint32(size))
	order.PutUint32(b[4:], uint32(-int32(code)))
	order.PutUint64(b[8:], unique)
}
