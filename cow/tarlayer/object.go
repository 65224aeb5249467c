package tarlayer

import (
	"archive/tar"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// object is a file of any type that is to be made.
type object struct {
	typ, mode uint32 // type bits; permission, set-id and sticky bits
	// uid and gid are the owner on the file system, cuid and cgid the owner that the container sees.
	uid, gid, cuid, cgid uint32
	atime, mtime         unix.Timespec
	rdev                 uint64
	target               string
	size                 int64
	content              content
	// data is the whole content if the current batch holds it, else nil. It is valid as long as the batch.
	data   []byte
	xattrs []xattr
	// sum is the hash of the content, once that is written.
	sum uint64
}

func (o *object) isDevice() bool { return o.typ == unix.S_IFCHR || o.typ == unix.S_IFBLK }

// special says that the object, made as it is, would be a whiteout.
func (o *object) special() bool { return o.typ == unix.S_IFCHR && o.rdev == 0 }

// describe turns a header into an object, which is valid until the next call.
func (a *applier) describe(hdr *tar.Header) (*object, error) {
	ob := &a.ob
	*ob = object{mode: uint32(hdr.Mode) & 0o7777, xattrs: ob.xattrs[:0]}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		ob.typ, ob.size, ob.content = unix.S_IFREG, hdr.Size, a.in
		if !a.in.more {
			ob.data, ob.sum = a.in.data, a.in.sum
		}
	case tar.TypeDir:
		ob.typ = unix.S_IFDIR
	case tar.TypeSymlink:
		ob.typ, ob.mode, ob.target = unix.S_IFLNK, 0o777, hdr.Linkname
	case tar.TypeChar, tar.TypeBlock:
		ob.typ = unix.S_IFCHR
		if hdr.Typeflag == tar.TypeBlock {
			ob.typ = unix.S_IFBLK
		}
		// 12 and 20 bits are what the kernel keeps of a device number (cf. kdev_t.h new_encode_dev).
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return nil, fmt.Errorf("device number %d:%d: %w", hdr.Devmajor, hdr.Devminor, ErrInvalid)
		}
		ob.rdev = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	case tar.TypeFifo:
		ob.typ = unix.S_IFIFO
	default:
		return nil, fmt.Errorf("member type %q is unknown: %w", hdr.Typeflag, ErrInvalid)
	}
	ob.mtime = timespec(hdr.ModTime)
	ob.atime = ob.mtime
	if hdr.AccessTime.After(hdr.ModTime) {
		ob.atime = timespec(hdr.AccessTime)
	}
	// Owners are the numbers: names would be looked up by code and files that the layer may have brought along.
	var err error
	if ob.cuid, err = containerID("user", hdr.Uid); err != nil {
		return nil, err
	}
	if ob.cgid, err = containerID("group", hdr.Gid); err != nil {
		return nil, err
	}
	if err := a.mapOwner(ob); err != nil {
		return nil, err
	}
	if len(hdr.PAXRecords) > 0 {
		err = a.selectXattrs(hdr, ob)
	}
	return ob, err
}

func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// containerID refuses numbers that would be another id after conversion; -1 means none to chown(2).
func containerID(what string, id int) (uint32, error) {
	if id < 0 || int64(id) >= 1<<32-1 {
		return 0, fmt.Errorf("%s %d is no id: %w", what, id, ErrInvalid)
	}
	return uint32(id), nil
}

func (a *applier) mapOwner(ob *object) (err error) {
	ob.uid, ob.gid, err = a.o.IDs.ToHost(ob.cuid, ob.cgid)
	return err
}
