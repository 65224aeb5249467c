package fusefs

import "sync/atomic"

// Opcodes of linux/fuse.h, those that are answered.
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
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opSetxattr    = 21
	opGetxattr    = 22
	opListxattr   = 23
	opRemovexattr = 24
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opFsyncdir    = 30
	opAccess      = 34
	opCreate      = 35
	opInterrupt   = 36
	opIoctl       = 39
	opBatchForget = 42
	opFallocate   = 43
	opReaddirplus = 44
	opRename2     = 45
	opLseek       = 46
	opCopyRange   = 47
	opTmpfile     = 51
	opStatx       = 52

	opLimit = 64
)

// opNames has also those that are only counted.
var opNames = [opLimit]string{
	opLookup: "LOOKUP", opForget: "FORGET", opGetattr: "GETATTR", opSetattr: "SETATTR", opReadlink: "READLINK",
	opSymlink: "SYMLINK", opMknod: "MKNOD", opMkdir: "MKDIR", opUnlink: "UNLINK", opRmdir: "RMDIR",
	opRename: "RENAME", opLink: "LINK", opOpen: "OPEN", opRead: "READ", opWrite: "WRITE", opStatfs: "STATFS",
	opRelease: "RELEASE", opFsync: "FSYNC", opSetxattr: "SETXATTR", opGetxattr: "GETXATTR",
	opListxattr: "LISTXATTR", opRemovexattr: "REMOVEXATTR", opFlush: "FLUSH", opInit: "INIT", opOpendir: "OPENDIR",
	opReaddir: "READDIR", opReleasedir: "RELEASEDIR", opFsyncdir: "FSYNCDIR", opAccess: "ACCESS",
	opCreate: "CREATE", opInterrupt: "INTERRUPT", opIoctl: "IOCTL", opBatchForget: "BATCH_FORGET",
	opFallocate: "FALLOCATE", opReaddirplus: "READDIRPLUS", opRename2: "RENAME2", opLseek: "LSEEK",
	opCopyRange: "COPY_FILE_RANGE", opTmpfile: "TMPFILE", opStatx: "STATX", 31: "GETLK", 32: "SETLK", 33: "SETLKW",
	37: "BMAP", 38: "DESTROY", 40: "POLL", 41: "NOTIFY_REPLY", 48: "SETUPMAPPING", 49: "REMOVEMAPPING",
	50: "SYNCFS", 53: "COPY_FILE_RANGE_64",
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
