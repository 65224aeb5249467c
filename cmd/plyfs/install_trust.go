package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxConfig bounds what is read of a configuration, in bytes.
const maxConfig = 4 << 20

// readSmall reads a regular file that people write.
func readSmall(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file: %w", f.Name(), errInstallConflict)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(text) > maxConfig {
		err = fmt.Errorf("%s is larger than %d bytes: %w", f.Name(), maxConfig, errInstallConflict)
	}
	return text, err
}

// readConfig returns the content of the file at path, nil if there is none.
func readConfig(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := readSmall(f)
	if text == nil {
		text = []byte{}
	}
	return text, err
}

// trustedPath resolves the symbolic links of path and returns where it leads. The end, and directories before it, need not
// exist. It fails if anything on the way could be changed by others than uid and root: what is written there as root,
// or is run by everybody, must be nobody else's.
func trustedPath(path string, uid int) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%s is not an absolute path", path)
	}
	rest := strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	at := "/"
	if err := trusted(at, uid); err != nil {
		return "", err
	}
	const maxLinks = 40
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		next := filepath.Join(at, name)
		err := trusted(next, uid)
		if errors.Is(err, fs.ErrNotExist) {
			return filepath.Join(append([]string{next}, rest...)...), nil
		}
		if err != nil {
			return "", err
		}
		target, err := os.Readlink(next)
		if errors.Is(err, unix.EINVAL) {
			at = next
			continue
		}
		if err != nil {
			return "", err
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "resolve", Path: path, Err: unix.ELOOP}
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.FieldsFunc(target, func(r rune) bool { return r == '/' }), rest...)
	}
	return at, nil
}

// trusted checks one object: it belongs to uid or root, and others may not write to it, or if it is a sticky directory not
// replace what is not theirs in it. A user's own group may write where the user may: many systems give each user one.
func trusted(path string, uid int) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Uid != 0 && int(st.Uid) != uid {
		return fmt.Errorf("%s belongs to user %d and is %w: give it to %s (chown), or use another place",
			path, st.Uid, errInstallUntrusted, userWord(uid))
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK || st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0 {
		return nil
	}
	open := st.Mode&0o002 != 0 || st.Mode&0o020 != 0 && st.Gid != 0 && (uid == 0 || int(st.Gid) != os.Getegid())
	if open {
		return fmt.Errorf("%s may be written by others (mode %04o, group %d) and is %w: chmod go-w %s",
			path, st.Mode&0o7777, st.Gid, errInstallUntrusted, path)
	}
	return nil
}

func userWord(uid int) string {
	if uid == 0 {
		return "root"
	}
	return fmt.Sprintf("user %d", uid)
}
