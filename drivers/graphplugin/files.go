package graphplugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// tmpPrefix begins the name of a file that is being written; no id does so.
const tmpPrefix = ".tmp-"

// writeFile gives a file a new content, durably: after a crash it is the old one or the new one.
func writeFile(path string, content []byte) (err error) {
	tmp := filepath.Join(filepath.Dir(path), tmpPrefix+filepath.Base(path))
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, errors.Join(err, removeFile(tmp)))
		}
	}()
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// writeJSON is writeFile for a value.
func writeJSON(path string, value any) error {
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return writeFile(path, append(b, '\n'))
}

// readJSON reads what writeJSON wrote. The error wraps fs.ErrNotExist for no file, drivers.ErrDamaged for another content.
func readJSON(path string, value any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, value); err != nil {
		return fmt.Errorf("%s: %w: %w", path, err, drivers.ErrDamaged)
	}
	return nil
}

// removeFile removes a file that may not be there.
func removeFile(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockWait is how long a plugin that is ending gets to let go of its files, and lockTry how often that is tried.
const (
	lockWait = time.Second
	lockTry  = 50 * time.Millisecond
)

// lockDir makes a directory this process's, until the file is closed. The error wraps drivers.ErrInUse if it is that of another.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockWait); ; time.Sleep(lockTry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = fmt.Errorf("another plyfs graphplugin works there; end it, or give this one a name of its own: %w", drivers.ErrInUse)
			}
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
	}
}
