package fusefs

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/fs/union"
)

// probeID is the node id of the probe file, which no table hands out.
const probeID = 1 << 62

// probeName is a name that no application looks up. It is no secret: it means something for a moment only, and then
// nothing but an empty file.
const probeName = ".plyfs-probe"

// learnNoOpen makes the kernel learn at once that opening takes no request. It finds out by the first OPEN that is
// answered ENOSYS, and until then sends a RELEASE for every file that is closed, also for those that CREATE opened: a
// mount that an archive is unpacked into would never learn. Failing costs nothing but those requests.
func (f *FS) learnNoOpen(dev *Device) {
	if f.modeNow() != modeNoOpen || dev.target == "" {
		return
	}
	f.probing.Store(true)
	defer f.probing.Store(false)
	fd, err := unix.Open(dev.target+"/"+probeName, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		f.log.Debug("probe file not opened", "error", err)
		return
	}
	unix.Close(fd)
}

// lookupProbe answers the LOOKUP of the probe file with an empty file that the kernel forgets at once.
func (f *FS) lookupProbe(e *entry) {
	*e = entry{id: probeID, fleeting: true, attrs: attrs{Attr: union.Attr{
		Ino: probeID, Mode: unix.S_IFREG | 0o444, Nlink: 1, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Blksize: pageSize,
	}}}
	e.Mtime.Sec = time.Now().Unix()
}
