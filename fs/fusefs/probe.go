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

const (
	// probeAfter is how many files are closed before the kernel is made to learn. Nearly every user of a mount opens a file before
	// that many are made.
	probeAfter = 16
	// probeWait bounds how long a CREATE waits for the probe: the way to the mount may have changed, and lead anywhere by now.
	probeWait = 100 * time.Millisecond
)

// learnNoOpen makes the kernel learn that opening takes no request. It finds out by the first OPEN that is answered ENOSYS, and
// until then sends a RELEASE for every file that is closed, also for those that CREATE opened: a mount that an archive is unpacked
// into would never learn. Failing costs nothing but those requests.
//
// That takes opening a file of this mount, and for that moment the mount is busy. So it happens while a CREATE waits for its
// answer, r's req, whose caller keeps the mount busy itself: an unmount fails at no time at which it would not have failed anyway.
// That caller holds the lock of the directory, which therefore is not the one that the probe is looked up in.
func (t *fastTransport) learnNoOpen(r *reader, req request) {
	if t.closes.Load() < probeAfter || req.node() == rootID || t.modeNow() != modeNoOpen || t.dev.target == "" || t.probed.Swap(true) {
		return
	}
	t.relieve(r)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.probe(t.dev.target)
	}()
	select {
	case <-done:
	case <-time.After(probeWait):
	}
}

// probe opens the probe file in the mount at target.
func (f *FS) probe(target string) {
	f.probing.Store(true)
	defer f.probing.Store(false)
	fd, err := unix.Open(target+"/"+probeName, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		f.log.Debug("probe file not opened", "error", err)
		return
	}
	unix.Close(fd)
}

// fillProbe makes e the probe file: an empty one, whose name the kernel does not remember.
func fillProbe(e *entry) {
	*e = entry{id: probeID, fleeting: true, attrs: attrs{Attr: union.Attr{
		Ino: probeID, Mode: unix.S_IFREG | 0o444, Nlink: 1, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Blksize: pageSize,
	}}}
	e.Mtime.Sec = time.Now().Unix()
}
