package layer

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// Opener opens the layers of one mount. What is the same for all layers on one device, and for all relative paths, it asks the
// kernel once: a mount of 64 layers is ready in a third of the system calls. It is for one goroutine, and for as long as the
// opening takes: what it remembers, the working directory among it, it does not ask again. Its zero value is ready.
type Opener struct {
	// Plain has the layers opened as OpenPlain does.
	Plain bool

	dir     string // the working directory, "" before it was wanted
	devices map[uint64]device
}

// device is what the layers on one device have in common.
type device struct {
	fsType  int64
	fsID    uint64
	uuid    [16]byte
	subvol  uint64
	handles bool
}

// Open opens the directory path as a layer, as the function Open does.
func (o *Opener) Open(path string) (*Layer, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) {
		fd, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", path, err)
	}
	l := &Layer{Path: o.absolute(path), fd: fd, root: File{fd: fd, pos: -1, borrowed: true}}
	if err := o.describe(l); err != nil {
		l.Close()
		return nil, fmt.Errorf("layer %s: %w", path, err)
	}
	return l, nil
}

// absolute is filepath.Abs for a working directory that stays, and path itself where that is unknown.
func (o *Opener) absolute(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	if o.dir == "" {
		dir, err := filepath.Abs(".")
		if err != nil {
			return path
		}
		o.dir = dir
	}
	return filepath.Join(o.dir, path)
}

func (o *Opener) describe(l *Layer) error {
	var st unix.Statx_t
	if err := sys.StatPlace(l.fd, "", &st); err != nil {
		return err
	}
	l.Dev, l.Ino, l.UID, l.GID = sys.Dev(&st), st.Ino, st.Uid, st.Gid
	if st.Mask&unix.STATX_BTIME != 0 {
		l.Btime = st.Btime
	}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		l.Mount = st.Mnt_id
	}
	d, known := o.devices[l.Dev]
	if !known {
		var err error
		if d, err = askDevice(l); err != nil {
			return err
		}
		if o.devices == nil {
			o.devices = make(map[uint64]device)
		}
		o.devices[l.Dev] = d
	}
	l.FSType, l.FSID, l.UUID, l.Subvol, l.handles = d.fsType, d.fsID, d.uuid, d.subvol, d.handles
	if !o.Plain {
		l.override = overrideOf(l.fd)
	}
	return nil
}

// zfsMagic is the type of file system that zfs's statfs(2) tells (openzfs, ZFS_SUPER_MAGIC).
const zfsMagic = 0x2fc12fc1

// askDevice finds out about the device of l by asking for l's root.
func askDevice(l *Layer) (d device, err error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(l.fd, &fs); err != nil {
		return d, err
	}
	d.fsType = int64(fs.Type)
	d.fsID = uint64(uint32(fs.Fsid.Val[0])) | uint64(uint32(fs.Fsid.Val[1]))<<32
	var known bool
	if d.uuid, known = sys.FSUUID(l.fd); !known {
		switch d.fsType {
		case zfsMagic:
			d.uuid = ovl.ZFS(d.fsID)
		case unix.NFS_SUPER_MAGIC:
			d.uuid = ovl.NFS()
		}
	}
	if h, err := sys.Handle(l.fd, ""); err == nil {
		o := ovl.Origin{UUID: d.uuid, FileHandle: h}
		ino, ok := o.Inode()
		d.handles = ok && ino == l.Ino && o.Fits()
		d.subvol = o.Subvolume()
	}
	return d, nil
}

// overrideOf is the attribute in which a directory has its owner and mode, "" for none.
func overrideOf(fd int) string {
	var room [1024]byte
	n, err := sys.Listxattrat(fd, "", room[:])
	for _, name := range ovl.OverrideNames() {
		// A list that is longer, or cannot be had, says nothing.
		if err == nil && !listed(room[:n], name) {
			continue
		}
		var value [256]byte
		if n, err := sys.Getxattrat(fd, ".", name, value[:]); err == nil && n > 0 {
			return name
		}
	}
	return ""
}

// listed says whether a list of attributes, as listxattr(2) returns it, has a name.
func listed(list []byte, name string) bool {
	for len(list) > 0 {
		one, rest, _ := bytes.Cut(list, []byte{0})
		if string(one) == name {
			return true
		}
		list = rest
	}
	return false
}
