package fusefs

import (
	"runtime/debug"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// opcodes of linux/fuse.h.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opReadlink    = 5
	opSymlink     = 6
	opMknod       = 8
	opMkdir       = 9
	opUnlink      = 10
	opRmdir       = 11
	opRename      = 12
	opLink        = 13
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opRelease     = 18
	opFsync       = 20
	opSetxattr    = 21
	opGetxattr    = 22
	opRemovexattr = 24
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opFsyncdir    = 30
	opAccess      = 34
	opCreate      = 35
	opInterrupt   = 36
	opBatchForget = 42
	opFallocate   = 43
	opReaddirplus = 44
	opRename2     = 45
	opCopyRange   = 47
	opTmpfile     = 51

	opLimit = 64
)

var opNames = [opLimit]string{
	1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR",
	10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS",
	18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH",
	26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 31: "GETLK", 32: "SETLK",
	33: "SETLKW", 34: "ACCESS", 35: "CREATE", 36: "INTERRUPT", 37: "BMAP", 38: "DESTROY", 39: "IOCTL", 40: "POLL",
	41: "NOTIFY_REPLY", 42: "BATCH_FORGET", 43: "FALLOCATE", 44: "READDIRPLUS", 45: "RENAME2", 46: "LSEEK",
	47: "COPY_FILE_RANGE", 48: "SETUPMAPPING", 49: "REMOVEMAPPING", 50: "SYNCFS", 51: "TMPFILE", 52: "STATX",
	53: "COPY_FILE_RANGE_64",
}

// counters are of events since the mount.
type counters struct {
	ops     [opLimit]atomic.Uint64
	panics  atomic.Uint64
	readers atomic.Uint64 // readers started because the others were busy
	stale   atomic.Uint64 // ids that went stale
	notices atomic.Uint64
	outcomes
}

func (c *counters) count(op uint32) {
	if op < opLimit {
		c.ops[op].Add(1)
	}
}

func (c *counters) snapshot() map[string]uint64 {
	m := make(map[string]uint64)
	for op := range c.ops {
		n := c.ops[op].Load()
		if n == 0 {
			continue
		}
		m[opName(uint32(op))] = n
	}
	for name, v := range map[string]*atomic.Uint64{
		"panics": &c.panics, "readers_started": &c.readers, "stale_ids": &c.stale, "notifications": &c.notices,
	} {
		if n := v.Load(); n != 0 {
			m[name] = n
		}
	}
	return m
}

// panicked turns a panic in a handler into EIO, so that a defect in one operation does not take the mount away.
func (f *FS) panicked(reason any) fuse.Status {
	f.counts.panics.Add(1)
	f.log.Error("panic in a request, answered EIO", "panic", reason, "stack", string(debug.Stack()))
	return fuse.EIO
}
