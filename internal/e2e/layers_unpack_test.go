package e2e

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// unpack writes layer i into dir as containers/storage does for a mount program: whiteouts stay the files that they are
// in the tar file.
func (im *image) unpack(i int, dir string) error {
	content := make(map[string][]byte)
	for _, c := range im.layers[i] {
		if c.obj != nil {
			content[c.path] = c.obj.Data
		}
	}
	headers := im.members(i)
	for _, h := range headers {
		if err := unpackOne(h, dir, content[h.Name]); err != nil {
			return fmt.Errorf("layer %d, %s: %w", i, h.Name, err)
		}
	}
	for _, h := range headers {
		if h.Typeflag == tar.TypeLink {
			continue
		}
		if err := setTime(filepath.Join(dir, h.Name), h); err != nil {
			return err
		}
	}
	return nil
}

func unpackOne(h *tar.Header, dir string, data []byte) error {
	p := filepath.Join(dir, h.Name)
	var err error
	switch h.Typeflag {
	case tar.TypeReg:
		err = os.WriteFile(p, data, 0o600)
	case tar.TypeDir:
		err = os.Mkdir(p, 0o700)
	case tar.TypeSymlink:
		if err := os.Symlink(h.Linkname, p); err != nil {
			return err
		}
		return os.Lchown(p, h.Uid, h.Gid)
	case tar.TypeFifo:
		err = unix.Mkfifo(p, 0o600)
	case tar.TypeLink:
		return os.Link(filepath.Join(dir, h.Linkname), p)
	}
	if err != nil {
		return err
	}
	if err := os.Chown(p, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Chmod(p, uint32(h.Mode)); err != nil {
		return err
	}
	for name, value := range h.PAXRecords {
		if err := unix.Lsetxattr(p, strings.TrimPrefix(name, "SCHILY.xattr."), []byte(value), 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func setTime(p string, h *tar.Header) error {
	ts := []unix.Timespec{{Sec: h.ModTime.Unix()}, {Sec: h.ModTime.Unix()}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// store is the home directory of containers/storage's overlay driver.
type store struct {
	home string
	ids  []string // of the layers, lowest first
}

// newStore lays out an image as the driver would have after pulling it. The parents of home are made too.
func newStore(home string, im *image) (*store, error) {
	s := &store{home: home}
	if err := os.MkdirAll(filepath.Join(home, "l"), 0o755); err != nil {
		return nil, err
	}
	for i := range im.layers {
		id, err := s.create(fmt.Sprintf("layer %d", i))
		if err != nil {
			return nil, err
		}
		s.ids = append(s.ids, id)
		if err := im.unpack(i, s.path(id, "diff")); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// create makes the directories of a layer or container whose id derives from seed.
func (s *store) create(seed string) (string, error) {
	sum := sha256.Sum256([]byte(seed))
	id := hex.EncodeToString(sum[:])
	for _, d := range []string{"diff", "work", "merged", "empty"} {
		if err := os.MkdirAll(s.path(id, d), 0o755); err != nil {
			return "", err
		}
	}
	return id, os.Symlink("../"+id+"/diff", filepath.Join(s.home, "l", link(id)))
}

// link is the short name of a layer: 26 characters, as base 32 has them.
func link(id string) string { return strings.ToUpper(id[:26]) }

func (s *store) path(id, name string) string { return filepath.Join(s.home, id, name) }

// lowers returns the lowerdir option for the topmost n layers and those below, topmost first: paths of the short links,
// absolute as the driver gives them.
func (s *store) lowers(n int) string {
	var l []string
	for i := n - 1; i >= 0; i-- {
		l = append(l, filepath.Join(s.home, "l", link(s.ids[i])))
	}
	return strings.Join(l, ":")
}
