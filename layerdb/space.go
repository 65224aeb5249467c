package layerdb

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The database writes to memory-mapped files: if the disk has no block for a page of one, the process gets SIGBUS, also when it is
// about to remove something to make room. So nothing is added to a nearly full disk, and the ballast, a file of reserved space, is
// then removed so that removals have room. Sizes are in bytes.
const (
	// ballastSize is what is kept aside: enough for the database to write out what it has in memory, and begin new logs.
	ballastSize = 16 << 20
	// tightSpace is how much must be free for the ballast to stay. It is made again when it would leave two times its size above that.
	tightSpace = 16 << 20
	// addSpace is how much must be free for something to be added to the database.
	addSpace = 32 << 20
	// unpackSpace is how much unpacking leaves free, for what others add meanwhile.
	unpackSpace = 48 << 20
	// spaceInterval is how often unpacking looks at the free space, in bytes of the stream.
	spaceInterval = 4 << 20
)

// freeBytes returns the space that this user has left in the file system of dir.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// needSpace returns an error that wraps ErrNoSpace if fewer than want bytes are free in the store's file system.
func (s *Store) needSpace(want int64) error {
	free, err := freeBytes(s.root)
	if err == nil && free < want {
		err = fmt.Errorf("store %s: %w: %d MiB are free, %d MiB must stay so", s.root, ErrNoSpace, free>>20, want>>20)
	}
	return err
}

// trimBallast gives the ballast back when the disk is nearly full, and makes it again when there is room. It does its best: a
// file system that cannot reserve space has none.
func (s *Store) trimBallast() {
	free, err := freeBytes(s.root)
	if err != nil {
		return
	}
	path := s.path(ballastFile)
	switch {
	case free < tightSpace:
		if err := os.Remove(path); err == nil {
			s.log.Warn("the disk is full; the space that was kept aside is given back for removals", "store", s.root)
		}
	case free > tightSpace+3*ballastSize && !exists(path):
		if err := reserve(path); err != nil {
			s.log.Debug("no space is kept aside", "store", s.root, "error", err)
		}
	}
}

func reserve(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, ballastSize); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
