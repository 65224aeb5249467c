package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// The kinds of changes.
const (
	changeLink      = "link"
	changeFile      = "file"
	changeDirectory = "directory"
)

// installChange is one change of the machine that can be taken back exactly.
type installChange struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
	// Mode is that of a directory.
	Mode fs.FileMode `json:"mode,omitempty"`
	// Target is what a link holds.
	Target string `json:"target,omitempty"`
	// Before and After are the SHA-256 of a file's content; Before is "" for a file that was not there.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	// Backup is where the former file is kept: the file itself, with its owner, times and attributes.
	Backup string `json:"backup,omitempty"`
	// Engine is whose configuration the file is.
	Engine string `json:"engine,omitempty"`

	// old and text are the content of a file before and after; they are not recorded.
	old, text []byte
}

// fileChange replaces the content of the file at path, of which old was read, nil if it does not exist.
func fileChange(engine, path string, old, text []byte) installChange {
	c := installChange{Kind: changeFile, Engine: engine, Path: path, After: sum(text), old: old, text: text}
	if old != nil {
		c.Before, c.Backup = sum(old), backupName(path)
	}
	return c
}

func sum(text []byte) string {
	s := sha256.Sum256(text)
	return hex.EncodeToString(s[:])
}

// sumOf is the SHA-256 of a file, "" if there is none. A symbolic link is not followed.
func sumOf(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := readSmall(f)
	if err != nil {
		return "", err
	}
	return sum(text), nil
}

// doAll does changes in their order; if one fails, those before it are taken back.
func doAll(changes []installChange) error {
	for i, c := range changes {
		if err := c.do(); err != nil {
			return errors.Join(err, undoAll(changes[:i]))
		}
	}
	return nil
}

// undoAll takes changes back in the reverse order. It may be called for changes that were done in part, or undone in part.
func undoAll(changes []installChange) error {
	var errs []error
	for _, c := range slices.Backward(changes) {
		errs = append(errs, c.undo())
	}
	return errors.Join(errs...)
}

// do makes the change.
func (c installChange) do() error {
	switch c.Kind {
	case changeLink:
		return os.Symlink(c.Target, c.Path)
	case changeDirectory:
		if err := os.Mkdir(c.Path, 0o700); err != nil {
			return err
		}
		return os.Chmod(c.Path, c.Mode)
	case changeFile:
		if err := c.replace(); err != nil {
			return errors.Join(fmt.Errorf("write %s: %w", c.Path, err), c.undo())
		}
		return nil
	}
	return fmt.Errorf("%s: unknown change %q", c.Path, c.Kind)
}

// replace puts the new file in the place of the old one, which becomes the backup.
func (c installChange) replace() error {
	fresh := stagedName(c.Path)
	if err := stageFile(fresh, c.text, 0o644); err != nil {
		return err
	}
	if c.Before == "" {
		// Unlike a rename, a link fails if somebody else was faster.
		return errors.Join(os.Link(fresh, c.Path), os.Remove(fresh), sys.SyncDir(filepath.Dir(c.Path)))
	}
	if err := likeOld(fresh, c.Path); err != nil {
		return err
	}
	if now, err := sumOf(c.Path); err != nil || now != c.Before {
		return errors.Join(err, errors.New("it is being changed by somebody else; try again"))
	}
	if err := os.Link(c.Path, c.Backup); err != nil {
		return err
	}
	if err := os.Rename(fresh, c.Path); err != nil {
		return err
	}
	return sys.SyncDir(filepath.Dir(c.Path))
}

// likeOld gives the file fresh the owner and the mode of the file old.
func likeOld(fresh, old string) error {
	info, err := os.Lstat(old)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := os.Lchown(fresh, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	return os.Chmod(fresh, info.Mode().Perm())
}

// intact says whether what the change made is still there and can be taken back: nil, or an error that wraps
// errInstallChanged or is of the system.
func (c installChange) intact() error {
	switch c.Kind {
	case changeLink:
		target, err := os.Readlink(c.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case errors.Is(err, syscall.EINVAL) || err == nil && target != c.Target:
			return fmt.Errorf("%s is %w", c.Path, errInstallChanged)
		}
		return err
	case changeFile:
		now, err := sumOf(c.Path)
		if another := errors.Is(err, syscall.ELOOP) || errors.Is(err, errInstallConflict); another {
			return fmt.Errorf("%s is %w%s: it is no file of its own", c.Path, errInstallChanged, c.formerly())
		}
		if err != nil || c.Before == "" && now == "" {
			return err
		}
		if now != c.After {
			return fmt.Errorf("%s is %w%s", c.Path, errInstallChanged, c.formerly())
		}
		if c.Before == "" {
			return nil
		}
		if kept, err := sumOf(c.Backup); err != nil || kept != c.Before {
			return errors.Join(err, fmt.Errorf("%s, which %s was before, is %w", c.Backup, c.Path, errInstallChanged))
		}
	}
	return nil
}

// formerly says where the file is that was replaced.
func (c installChange) formerly() string {
	if c.Backup == "" {
		return ""
	}
	return " (what it was before is " + c.Backup + ")"
}

// undo takes the change back, whether it was done, was done in part, or is undone already.
func (c installChange) undo() error {
	switch c.Kind {
	case changeDirectory:
		err := os.Remove(c.Path)
		if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
			return nil // others have put something there
		}
		return err
	case changeLink:
		target, err := os.Readlink(c.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EINVAL), err == nil && target != c.Target:
			return nil // not made, or another's
		case err != nil:
			return err
		}
		return os.Remove(c.Path)
	}
	if err := os.Remove(stagedName(c.Path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return c.restore()
}

// restore brings the former file back.
func (c installChange) restore() error {
	now, err := sumOf(c.Path)
	if err != nil {
		return err
	}
	switch {
	case now == c.After && c.Before == "":
		return os.Remove(c.Path)
	case now == c.After:
		if kept, err := sumOf(c.Backup); err != nil || kept != c.Before {
			return errors.Join(err, fmt.Errorf("%s, which %s was before, is %w", c.Backup, c.Path, errInstallChanged))
		}
		// A rename of one name of a file to another of its names would leave both.
		if err := os.Rename(c.Backup, c.Path); err != nil {
			return err
		}
		return sys.SyncDir(filepath.Dir(c.Path))
	case now == c.Before && c.Backup != "":
		return removeIfSame(c.Backup, c.Path)
	}
	return nil
}

// removeIfSame removes name if it is another name of the file path: the backup of a file that was not replaced.
func removeIfSame(name, path string) error {
	a, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	b, err2 := os.Lstat(path)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	if !os.SameFile(a, b) {
		return nil
	}
	return os.Remove(name)
}
