package layerdb

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"plyfs/drivers"
)

// madeParts is what an Open made of a store that was not there.
type madeParts struct {
	dirs []string // from the top down
	// lock, db and ballast say that the file, or directory, was not there.
	lock, db, ballast bool
}

// maxRemakes bounds how often directories are made that another process, which had made them and failed, removes meanwhile.
const maxRemakes = 100

// makeAndLock makes the store's directories and takes its lock.
func (s *Store) makeAndLock(ctx context.Context) (l *storeLock, err error) {
	for range maxRemakes {
		for _, dir := range []string{"", layersDir, streamsDir, recordsDir, blobsDir, runDir, notesDir, tempDir} {
			var made []string
			made, err = makeDirs(s.path(dir))
			s.made.dirs = append(s.made.dirs, made...)
			if err != nil {
				break
			}
		}
		if err == nil {
			s.made.lock = s.made.lock || !exists(s.path(lockFile))
			s.made.ballast = s.made.ballast || !exists(s.path(ballastFile))
			l, err = lockStore(ctx, s.root, s.opt.Wait)
		}
		if err == nil || !errors.Is(err, errUnmade) && !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return l, err
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
// that wait for it begin anew.
func (s *Store) unmake() {
	var errs []error
	if s.db != nil {
		errs = append(errs, s.db.Close())
		s.db = nil
	}
	if s.made.db {
		errs = append(errs, os.RemoveAll(s.path(dbDir)))
	}
	for _, dir := range []string{layersDir, runDir} {
		if !slices.Contains(s.made.dirs, s.path(dir)) {
			continue
		}
		errs = append(errs, removeEmpty(s.path(dir)))
	}
	if s.made.ballast && exists(s.path(ballastFile)) {
		errs = append(errs, os.Remove(s.path(ballastFile)))
	}
	if s.made.lock {
		errs = append(errs, os.Remove(s.path(lockFile)))
	}
	for _, dir := range slices.Backward(s.made.dirs) {
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
