package layerdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// defaultWait is how long Open waits for another process: commands are short.
	defaultWait = 10 * time.Second
	lockPoll    = 50 * time.Millisecond
)

// NoWait as Options.Wait is for not waiting at all.
const NoWait time.Duration = -1

// storeLock makes this process the only one that has the store open. The kernel gives the lock back however the process
// ends. The file stays, since removing it would let two processes lock two files; where it is removed with a store that could not be
// begun, those who waited for it notice.
type storeLock struct {
	f *os.File
	// before is what the process that had the store before left in the file: its id if it died, see settled.
	before string
}

// lockStore takes the lock of the store at root, for which it waits so long. The error wraps ErrLocked and names the process
// that has the store.
func lockStore(ctx context.Context, root string, wait time.Duration) (*storeLock, error) {
	path := filepath.Join(root, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the store: %w", err)
	}
	for deadline := time.Now().Add(wait); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			if !isNamed(f, path) {
				f.Close()
				return nil, fmt.Errorf("lock %s: %w", path, errUnmade)
			}
			before := readLock(f)
			if err := writeLock(f, strconv.Itoa(os.Getpid())); err != nil {
				f.Close()
				return nil, fmt.Errorf("lock %s: %w", path, err)
			}
			return &storeLock{f, before}, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case !time.Now().Before(deadline):
			err := fmt.Errorf("store %s: %w: %s", root, ErrLocked, readHolder(f))
			if wait > 0 {
				err = fmt.Errorf("%w; waited %v", err, wait)
			}
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("store %s: %w: %w", root, ErrLocked, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// errUnmade says that the process that had the lock removed the store, which it had made itself.
var errUnmade = errors.New("the store was removed meanwhile")

// isNamed says whether the file is the one at path.
func isNamed(f *os.File, path string) bool {
	has, err := f.Stat()
	if err != nil {
		return false
	}
	at, err := os.Lstat(path)
	return err == nil && os.SameFile(has, at)
}

// writeLock leaves for others who has the store, or had it.
func writeLock(f *os.File, word string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(word+"\n"), 0)
	return err
}

// readLock returns what writeLock left; "" if that cannot be read.
func readLock(f *os.File) string {
	b := make([]byte, 64)
	n, _ := f.ReadAt(b, 0) // a short file is read whole, whatever the error
	return strings.TrimSpace(string(b[:n]))
}

// readHolder says who has the store, as far as the file tells.
func readHolder(f *os.File) string {
	pid, err := strconv.Atoi(readLock(f))
	if err != nil {
		return "by a process that did not leave its id"
	}
	comm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return fmt.Sprintf("by process %d, or one that it started", pid)
	}
	return fmt.Sprintf("by process %d (%s)", pid, strings.TrimSpace(string(comm)))
}

func (l *storeLock) release() error { return l.f.Close() }

// settled is what a process that closes the store leaves in the file if nothing is to be compared by the next one. It is never synced,
// and so says of which boot it is: behind a power cut the file may hold what is older than the rest of the store.
func settled(boot string) string { return "settled " + boot }
