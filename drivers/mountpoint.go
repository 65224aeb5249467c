package drivers

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// IsMountPoint says whether something is mounted at path. A FUSE mount whose server is dead does not count as mounted; one whose
// server hangs does. It waits up to two seconds for the server.
func IsMountPoint(path string) bool {
	if !isMountRoot(path) {
		return false
	}
	err := askServer(path)
	return err == nil || errors.Is(err, ErrHangs)
}

// IsDead says whether a FUSE mount whose server is dead is at path. It waits up to two seconds for the server.
func IsDead(path string) bool {
	if !isMountRoot(path) {
		return false
	}
	err := askServer(path)
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
}

const (
	// answerWithin bounds how long the server of a mount is waited for.
	answerWithin = 2 * time.Second
	// askAtOnce is how many servers are asked at a time: each question takes a thread.
	askAtOnce = 64
)

// questions are the *question that have no answer yet, by path. A statx(2) that hangs takes a thread for as long as it does, so all
// who want to know the same share one.
var questions sync.Map

// question is one statx of a mount; err is set when done is closed.
type question struct {
	asked time.Time
	done  chan struct{}
	err   error
}

// askServer has the server of the mount at path answer for the root's attributes: without AT_STATX_FORCE_SYNC the kernel would answer
// from its cache, also for a dead server. The error is that of statx(2), or wraps ErrHangs if there is no answer within answerWithin;
// at once if an earlier question has waited that long already.
func askServer(path string) error {
	late := time.NewTimer(answerWithin)
	defer late.Stop()
	for {
		q := &question{asked: time.Now(), done: make(chan struct{})}
		earlier, waiting := questions.LoadOrStore(path, q)
		if waiting {
			q = earlier.(*question)
			if time.Since(q.asked) > answerWithin {
				return fmt.Errorf("the mount on %s is %w", path, ErrHangs)
			}
		} else {
			go func() {
				var st unix.Statx_t
				const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_FORCE_SYNC
				q.err = unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_BASIC_STATS, &st)
				questions.Delete(path)
				close(q.done)
			}()
		}
		select {
		case <-q.done:
			if !waiting {
				return q.err
			}
			// The answer may be from before this call: ask again.
		case <-late.C:
			return fmt.Errorf("the mount on %s is %w", path, ErrHangs)
		}
	}
}

// isMountRoot says whether path is the root of a mount, without asking the mount's server.
func isMountRoot(path string) bool {
	var st unix.Statx_t
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	if err := unix.Statx(unix.AT_FDCWD, path, flags, unix.STATX_BASIC_STATS, &st); err != nil {
		return false
	}
	return st.Attributes_mask&st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
