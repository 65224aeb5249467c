package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// The classes of what stops plyfs install and plyfs uninstall; every error of theirs wraps one of them, or is of the system.
var (
	// errInstallConflict: something is in the way, or is set otherwise, and is not plyfs's to change.
	errInstallConflict = errors.New("left as it is")
	// errInstallChanged: what plyfs made was changed since by somebody else.
	errInstallChanged = errors.New("changed since plyfs made it")
	// errInstallLocked: another plyfs install is at work.
	errInstallLocked = errors.New("in use")
	// errInstallUntrusted: others could change what would be relied on.
	errInstallUntrusted = errors.New("not trusted")
)

// installVersion is the version of the record's form. A record of another one is refused.
const installVersion = 1

// installRecord is what plyfs install changed, in the order in which it did.
type installRecord struct {
	Version int `json:"version"`
	// Program is the plyfs that was put in place of others.
	Program string          `json:"program"`
	Done    []installChange `json:"done"`
	// Pending is noted before it is done, or before it is undone. What is found here after a crash is undone.
	Pending []installChange `json:"pending,omitempty"`
}

// owns says whether the record names path.
func (r installRecord) owns(path string) bool {
	return slices.ContainsFunc(r.Done, func(c installChange) bool { return c.Path == path })
}

// journal keeps the record in a file, and does nothing that it does not say.
type journal struct{ path string }

// load reads the record; there being none is an empty one.
func (j journal) load() (installRecord, error) {
	r := installRecord{Version: installVersion}
	text, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, fmt.Errorf("%s is no record of plyfs install: %w; move it away, and take back by hand what it names", j.path, err)
	}
	if r.Version != installVersion {
		return r, fmt.Errorf("%s has version %d, and this plyfs reads %d: use the plyfs that wrote it",
			j.path, r.Version, installVersion)
	}
	return r, nil
}

// save makes r the record, durably. An empty record is no file.
func (j journal) save(r installRecord) error {
	if len(r.Done)+len(r.Pending) == 0 {
		if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return sys.SyncDir(filepath.Dir(j.path))
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	fresh := stagedName(j.path)
	if err := stageFile(fresh, append(text, '\n'), 0o600); err != nil {
		return err
	}
	if err := os.Rename(fresh, j.path); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return sys.SyncDir(filepath.Dir(j.path))
}

// lock keeps other installations out until the process ends or release is called. It makes the record's directory where
// there is none, and returns which directories it made, the outermost first.
func (j journal) lock() (made []installChange, release func(), err error) {
	dir := filepath.Dir(j.path)
	// Root's is that of the layer store, too, which nobody else may enter.
	made = missingDirectories(dir, 0o700)
	if err := doAll(made); err != nil {
		return nil, nil, err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil, fmt.Errorf("%s is %w by another plyfs install: wait for it to end", j.path, errInstallLocked)
		}
		return nil, nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return made, func() { unix.Close(fd) }, nil
}

// recover undoes what an installation began and did not finish, and returns the record without it.
func (j journal) recover(r installRecord) (installRecord, error) {
	if len(r.Pending) == 0 {
		return r, nil
	}
	if err := undoAll(r.Pending); err != nil {
		return r, fmt.Errorf("take back what an interrupted plyfs install began: %w", err)
	}
	r.Pending = nil
	return r, j.save(r)
}

// apply does changes, all or none of them, and adds them to the record, as well as made, which were done already.
func (j journal) apply(r installRecord, made, changes []installChange) error {
	before := r
	r.Done, r.Pending = slices.Concat(made, r.Done), changes
	if err := j.save(r); err != nil {
		return err
	}
	err := doAll(changes)
	if err == nil {
		r.Done, r.Pending = slices.Concat(r.Done, changes), nil
		if err = j.save(r); err == nil {
			return nil
		}
		err = errors.Join(err, undoAll(changes))
	}
	return errors.Join(err, j.save(before))
}

// undoable returns what can be taken back. It fails if somebody changed some of it since, unless keep allows that.
func (r installRecord) undoable(keep bool) (undoable []installChange, err error) {
	var changed []error
	for _, c := range r.Done {
		switch err := c.intact(); {
		case err == nil:
			undoable = append(undoable, c)
		case !errors.Is(err, errInstallChanged):
			return nil, err
		case !keep:
			changed = append(changed, err)
		}
	}
	if len(changed) > 0 {
		return nil, fmt.Errorf("%w; nothing was undone. Take the changes back, or add --leave-changed, which leaves such files "+
			"as they are and undoes the rest", errors.Join(changed...))
	}
	return undoable, nil
}

// undo takes back all that the record names and is undoable, or nothing, and forgets it.
func (j journal) undo(r installRecord, keep bool) (undone []installChange, err error) {
	if undone, err = r.undoable(keep); err != nil {
		return nil, err
	}
	r.Done, r.Pending = nil, undone
	if err := j.save(r); err != nil {
		return nil, err
	}
	_, err = j.recover(r)
	return undone, err
}

// stagedName is the name under which a file is written before it replaces path.
func stagedName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".plyfs-new")
}

// backupName is the name under which a file is kept that plyfs replaced.
func backupName(path string) string { return path + ".plyfs-backup" }

// stageFile writes a new file durably. What an interrupted call left there is replaced.
func stageFile(path string, text []byte, mode fs.FileMode) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// missingDirectories are the directories that have to be made, with a mode, so that path is one, the outermost first.
func missingDirectories(path string, mode fs.FileMode) []installChange {
	var missing []installChange
	for p := filepath.Clean(path); ; p = filepath.Dir(p) {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) || p == filepath.Dir(p) {
			slices.Reverse(missing)
			return missing
		}
		missing = append(missing, installChange{Kind: changeDirectory, Path: p, Mode: mode})
	}
}

// lines joins the messages of errors that errors.Join put on lines of their own.
func lines(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
