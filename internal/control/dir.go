package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// EnvRuntimeDir names the runtime directory where it is set.
const EnvRuntimeDir = "PLYFS_RUNTIME_DIR"

// ErrNoRuntimeDir says that this user has no place for sockets.
var ErrNoRuntimeDir = errors.New("no runtime directory: set XDG_RUNTIME_DIR, or PLYFS_RUNTIME_DIR, to a directory of your own")

const (
	systemDir = "/run/plyfs"
	usersDir  = "/run/user"
	baseName  = "plyfs"
	mountsDir = "mounts"
)

// RuntimeDir is where the daemons and mounts of this user have their sockets: $PLYFS_RUNTIME_DIR, else /run/plyfs for root, else
// $XDG_RUNTIME_DIR/plyfs. Root of a user namespace shares that of the user who it is outside, if there is one in this mount
// namespace; so podman's mounts and their user's shell agree. The directory need not exist. The error wraps ErrNoRuntimeDir.
func RuntimeDir() (string, error) {
	if dir := os.Getenv(EnvRuntimeDir); dir != "" {
		if !filepath.IsAbs(dir) {
			return "", fmt.Errorf("%s=%s is not an absolute path: %w", EnvRuntimeDir, dir, ErrNoRuntimeDir)
		}
		return dir, nil
	}
	uid := os.Geteuid()
	outer, initial := outerID(uid)
	if uid == 0 && initial {
		return systemDir, nil
	}
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), filepath.Join(usersDir, strconv.Itoa(outer))} {
		if filepath.IsAbs(dir) && ownDir(dir) {
			return filepath.Join(dir, baseName), nil
		}
	}
	if uid == 0 {
		return systemDir, nil // root of a container
	}
	return "", ErrNoRuntimeDir
}

// Dir is where the mounts of this user have their sockets.
func Dir() (string, error) {
	base, err := RuntimeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(base, mountsDir), nil
}

// Scope says whose mounts are meant.
type Scope int

const (
	// Own are those of this user, and of its user namespaces.
	Own Scope = iota
	// All are those of all users whose directories this one may read.
	All
)

// dirs are the directories that may hold sockets.
func dirs(s Scope) ([]string, error) {
	own, err := Dir()
	if err != nil && s == Own {
		return nil, err
	}
	var list []string
	if own != "" {
		list = append(list, own)
	}
	if s == Own {
		return list, nil
	}
	if system := filepath.Join(systemDir, mountsDir); system != own {
		list = append(list, system)
	}
	others, err := filepath.Glob(filepath.Join(usersDir, "*", baseName, mountsDir))
	if err != nil {
		return nil, err
	}
	for _, dir := range others {
		if dir != own {
			list = append(list, dir)
		}
	}
	return list, nil
}

// outerID is what a user id is in the parent of this user namespace, and whether this is the initial one.
func outerID(uid int) (outer int, initial bool) {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return uid, true
	}
	outer = uid
	for line := range strings.Lines(string(b)) {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			continue
		}
		if inside == 0 && outside == 0 && int64(count) == 1<<32-1 {
			return uid, true
		}
		if uid >= inside && uid-inside < count {
			outer = outside + uid - inside
		}
	}
	return outer, false
}

// ownDir reports whether dir is a directory of this user.
func ownDir(dir string) bool {
	var st unix.Stat_t
	return unix.Stat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == os.Geteuid()
}

// makeDir opens a directory for sockets, after making it and what is missing above it, mode 0700. It refuses one of another
// user, or that others may enter. The caller closes the descriptor, which is good for *at calls only.
func makeDir(dir string) (int, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return -1, err
	}
	fd, st, err := openDir(dir)
	if err != nil {
		return -1, err
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s belongs to user %d with mode %o, it has to be this user's with mode 700: %w",
			dir, st.Uid, st.Mode&0o7777, unix.EACCES)
	}
	return fd, nil
}

func openDir(dir string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, st, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, st, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return fd, st, nil
}
