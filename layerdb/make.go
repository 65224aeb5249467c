package layerdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// madeParts is what an Open made of a store that was not there.
type madeParts struct {
	// above are the store's directory and those that it is in, dirs those in it: as far as they were made, from the top down.
	above, dirs []string
	// store says that there was no database when the lock was taken, ballast that there was no such file.
	store, ballast bool
}

// maxRemakes bounds how often directories are made that another process, which had made them and failed, removes meanwhile.
const maxRemakes = 100

// makeAndLock makes the store's directory, takes its lock, and makes what is in it. What a store has is looked at with the lock only:
// another process may begin the store while this one waits, or take back what it made.
func (s *Store) makeAndLock(ctx context.Context) (l *storeLock, err error) {
	var above []string
	for range maxRemakes {
		var made []string
		made, err = makeDirs(s.root)
		above = append(above, made...)
		if err == nil {
			l, err = lockStore(ctx, s.root, s.opt.Wait)
		}
		if err == nil || !errors.Is(err, errUnmade) && !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	if err != nil {
		for _, dir := range slices.Backward(above) {
			_ = os.Remove(dir) // what others use by now is not empty
		}
		return nil, rootError(s.root, err)
	}
	if !exists(s.path(dbDir)) {
		s.made.store, s.made.above = true, above
		s.made.ballast = !exists(s.path(ballastFile))
	}
	for _, dir := range []string{layersDir, streamsDir, recordsDir, blobsDir, runDir, notesDir, tempDir} {
		made, err := makeDirs(s.path(dir))
		if err != nil {
			return nil, errors.Join(err, l.release())
		}
		s.made.dirs = append(s.made.dirs, made...)
	}
	return l, nil
}

// rootError names the way out where a store can't be at its place.
func rootError(root string, err error) error {
	for _, e := range []error{unix.ENOTDIR, unix.ENOENT, unix.EACCES, unix.EPERM, unix.EROFS, unix.ENAMETOOLONG, unix.ELOOP} {
		if errors.Is(err, e) {
			return fmt.Errorf("%s can't be a store: %w; --root or PLYFS_ROOT names another directory", root, err)
		}
	}
	return err
}

// makeDirs is os.MkdirAll, and returns the directories that it made.
func makeDirs(path string) (made []string, err error) {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil, nil
	}
	if above := filepath.Dir(path); above != path {
		if made, err = makeDirs(above); err != nil {
			return made, err
		}
	}
	switch err := os.Mkdir(path, 0o700); {
	case err == nil:
		return append(made, path), nil
	case errors.Is(err, os.ErrExist):
		// Another process made it; what else is there, os.MkdirAll refuses.
		return made, os.MkdirAll(path, 0o700)
	default:
		return made, err
	}
}

// unmake removes what this Open made of a store that could not be begun, so that a name mistyped leaves nothing; nothing that was there
// before. Files that a driver left in its directories stay: it knows best what they stand for. The store's lock is held, and others
// that wait for it begin anew: it goes after all that is in the directory, and before the directory.
func (s *Store) unmake() {
	if !s.made.store {
		return
	}
	var errs []error
	if s.db != nil {
		errs = append(errs, s.db.Close())
		s.db = nil
	}
	errs = append(errs, os.RemoveAll(s.path(dbDir)))
	for _, dir := range []string{layersDir, runDir} {
		if !slices.Contains(s.made.dirs, s.path(dir)) {
			continue
		}
		errs = append(errs, removeEmpty(s.path(dir)))
	}
	if s.made.ballast && exists(s.path(ballastFile)) {
		errs = append(errs, os.Remove(s.path(ballastFile)))
	}
	for _, dir := range slices.Backward(s.made.dirs) {
		errs = append(errs, os.Remove(dir))
	}
	errs = append(errs, os.Remove(s.path(lockFile)))
	for _, dir := range slices.Backward(s.made.above) {
		errs = append(errs, os.Remove(dir))
	}
	if err := errors.Join(errs...); err != nil {
		s.log.Debug("something of a store that could not be begun stays", "error", err)
	}
}

// removeEmpty removes the directories beneath dir that hold nothing but such directories. It does not look into what is mounted
// there.
func removeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() && !drivers.IsMountPoint(path) {
			errs = append(errs, removeEmpty(path), os.Remove(path))
		}
	}
	return errors.Join(errs...)
}
