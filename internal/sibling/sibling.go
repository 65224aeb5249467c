// Package sibling finds the other programs of this project.
package sibling

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNotFound says that a program is not installed.
var ErrNotFound = errors.New("not found")

// Find looks for a program where this one lies, in the directories bin and sbin beside that, then on PATH. The error, which may
// wrap ErrNotFound, says what to do.
func Find(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program's file: %w", err)
	}
	if self, err = filepath.EvalSymlinks(self); err == nil {
		dir := filepath.Dir(self)
		for _, d := range []string{dir, filepath.Join(dir, "../bin"), filepath.Join(dir, "../sbin")} {
			path := filepath.Join(d, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				return path, nil
			}
		}
	}
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is neither beside %s nor on PATH: install it too (make install does): %w", name, self, ErrNotFound)
	}
	return path, err
}
