package tarlayer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// DirOptions say how a directory is read as a Tree.
type DirOptions struct {
	// IDs map owners on disk to those that the container sees.
	IDs IDMaps
	// Names are the overlay attributes of a stacked layer. With nil the directory is a plain tree; else it is a layer
	// in an overlay's form: whiteouts do not exist for the Source (see Whiteout), escaped names and devices are shown
	// as what they stand for, and Attr.Opaque is filled. Redirects and metadata-only copies are not resolved: they need
	// the layers below.
	Names *ovl.Names
}

// DirSource is a directory on disk as a Tree and a WhiteoutSource. It never follows a symlink beneath its root, and
// takes mount points for what does not exist: what is mounted is not the tree's. It is for one goroutine at a time.
type DirSource struct {
	root     *layer.Layer
	o        DirOptions
	hostRoot uint32
	dirs     dirCache
}

// NewDirSource returns a Tree of root, which stays the caller's and must stay open until Close. Owners come from the
// layer's override attribute if it has one.
func NewDirSource(root *layer.Layer, o DirOptions) *DirSource {
	s := &DirSource{root: root, o: o, dirs: newDirCache()}
	if uid, _, err := o.IDs.ToHost(0, 0); err == nil {
		s.hostRoot = uid
	}
	return s
}

// Close releases the descriptors that the source holds; it always succeeds.
func (s *DirSource) Close() error {
	s.dirs.close()
	return nil
}

// at returns the directory that holds path, and the name in it.
func (s *DirSource) at(path string) (dirfd int, name string, err error) {
	if path == "" {
		return s.root.FD(), "", nil
	}
	parent := parentOf(path)
	d := s.dirs.get(parent)
	if d == nil {
		fd, err := s.root.OpenDir(parent)
		if err != nil {
			return -1, "", err
		}
		d = &dir{fd: fd, key: parent}
		s.dirs.add(d)
	}
	return d.fd, baseOf(path), nil
}

// Lstat implements Source.
func (s *DirSource) Lstat(path string) (Attr, error) {
	dirfd, name, err := s.at(path)
	if err != nil {
		return Attr{}, err
	}
	var st unix.Statx_t
	if err := s.root.Stat(dirfd, name, &st); err != nil {
		return Attr{}, err
	}
	if path != "" && isMountPoint(&st) {
		return Attr{}, errMounted
	}
	a := attrOf(&st)
	if s.o.Names != nil {
		deleted, err := s.decode(dirfd, name, &st, &a)
		if err != nil {
			return Attr{}, err
		}
		if deleted {
			return Attr{}, unix.ENOENT
		}
	}
	a.UID, a.GID, err = s.o.IDs.ToContainer(a.UID, a.GID)
	return a, err
}

func attrOf(st *unix.Statx_t) Attr {
	a := Attr{
		Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Mtime: sys.TimeOf(st.Mtime),
		Nlink: st.Nlink, Dev: sys.Dev(st), Ino: st.Ino,
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		a.Size = int64(st.Size)
	case unix.S_IFCHR, unix.S_IFBLK:
		a.Rdev = sys.Rdev(st)
	}
	return a
}

// isMountPoint says whether something is mounted on an entry of a tree: a volume, a bind mount.
func isMountPoint(st *unix.Statx_t) bool {
	return st.Attributes_mask&st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// decode reads what the overlay's marks say of an entry of a stacked layer.
func (s *DirSource) decode(dirfd int, name string, st *unix.Statx_t, a *Attr) (deleted bool, err error) {
	if layer.IsWhiteoutDevice(st) || ovl.IsAUFSName(name) {
		return true, nil
	}
	directory := a.Mode&unix.S_IFMT == unix.S_IFDIR
	if !directory && (a.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != 0) {
		return false, nil
	}
	names, err := cow.ListXattrs(dirfd, name)
	if err != nil {
		return false, err
	}
	for _, n := range names {
		switch n {
		case s.o.Names.Whiteout:
			return !directory, nil
		case s.o.Names.Special:
			if !directory {
				a.Mode, a.Rdev = unix.S_IFCHR|a.Mode&0o7777, 0
			}
		case s.o.Names.Opaque, ovl.FuseOverlayfsOpaque:
			v, err := cow.GetXattr(dirfd, name, n)
			if err != nil {
				return false, err
			}
			a.Opaque = a.Opaque || directory && ovl.IsOpaque(v)
		}
	}
	if directory && !a.Opaque {
		a.Opaque, err = hasSentinel(dirfd, name)
	}
	return false, err
}

func hasSentinel(dirfd int, name string) (bool, error) {
	path := ovl.AUFSOpaque
	if name != "" {
		path = name + "/" + path
	}
	var st unix.Statx_t
	err := unix.Statx(dirfd, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// Whiteout implements WhiteoutSource: in a plain tree there is none.
func (s *DirSource) Whiteout(path string) (bool, error) {
	if s.o.Names == nil || path == "" {
		return false, nil
	}
	dirfd, name, err := s.at(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var st unix.Statx_t
	err = sys.Statx(dirfd, name, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		err = sys.Statx(dirfd, ovl.AUFSWhiteout(name), &st)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return err == nil, err
	case err != nil:
		return false, err
	}
	a := attrOf(&st)
	return s.decode(dirfd, name, &st, &a)
}

// Open implements Source. The file is open for reading without a change of its access time where that is allowed.
func (s *DirSource) Open(path string) (io.ReadCloser, error) {
	dirfd, name, err := s.at(path)
	if err != nil {
		return nil, err
	}
	fd, err := openFile(dirfd, name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openFile opens a regular file: what else it is by now must not block, and is refused.
func openFile(dirfd int, name string) (int, error) {
	flags := unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := sys.Openat(dirfd, name, flags|unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) {
		fd, err = sys.Openat(dirfd, name, flags)
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return -1, errors.Join(err, fmt.Errorf("no regular file: %w", ErrChanged))
	}
	return fd, nil
}

// Readlink implements Source.
func (s *DirSource) Readlink(path string) (string, error) {
	dirfd, name, err := s.at(path)
	if err != nil {
		return "", err
	}
	return sys.Readlinkat(dirfd, name)
}

// Xattrs implements Source. Ids in ACLs are the container's.
func (s *DirSource) Xattrs(path string) (map[string]string, error) {
	dirfd, name, err := s.at(path)
	if err != nil {
		return nil, err
	}
	return readXattrs(dirfd, name, s.o, s.root.Override() != "", s.hostRoot)
}

func readXattrs(dirfd int, name string, o DirOptions, override bool, hostRoot uint32) (map[string]string, error) {
	names, err := cow.ListXattrs(dirfd, name)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	all := make(map[string]string, len(names))
	for _, disk := range names {
		seen, visible := disk, true
		if override || o.Names != nil {
			var kept bool
			if seen, kept = ovl.FromOverrideXattr(disk); !kept || !override {
				seen, visible = ovl.UnescapeXattr(disk)
			}
		}
		if !visible {
			continue
		}
		v, err := cow.GetXattr(dirfd, name, disk)
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile, or a security label made up by the kernel
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", disk, err)
		}
		value := string(v)
		switch seen {
		case xattrCaps:
			value = plainCaps(value, hostRoot)
		case xattrACLAccess, xattrACLDefault:
			if value, err = mapACL(value, o.IDs, toContainer); err != nil {
				return nil, err
			}
		}
		all[seen] = value
	}
	return all, nil
}

// ReadDir implements Tree. Names of the AUFS form in a stacked layer are left out; whiteout devices are not, but do not
// exist for Lstat.
func (s *DirSource) ReadDir(path string) ([]string, error) {
	fd := s.root.FD()
	if path != "" {
		var err error
		if fd, err = s.root.OpenDir(path); err != nil {
			return nil, err
		}
		defer unix.Close(fd)
	}
	var names []string
	err := layer.List(fd, func(e layer.RawDirent) error {
		if s.o.Names == nil || !strings.HasPrefix(e.Name, aufsMark) {
			names = append(names, e.Name)
		}
		return nil
	})
	return names, err
}
