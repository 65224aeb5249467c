package fsck

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
	"plyfs/metadata"
)

// contentBuf is how much of a file is read at once, in bytes.
const contentBuf = 1 << 20

// recorded compares every entry of the directory at hand with its object.
func (v *indexVerifier) recorded() error {
	var e metadata.Entry
	for i := range v.rec.Len() {
		if err := v.rec.At(i, &e); err != nil {
			v.find(IndexWrong, -1, "", "%v", err)
			return nil
		}
		v.out.entries++
		if err := v.ctx.Err(); err != nil {
			return err
		}
		if err := v.entry(&e); err != nil {
			return err
		}
	}
	return nil
}

// entry compares one entry with its object.
func (v *indexVerifier) entry(e *metadata.Entry) error {
	in, fd := v.rec.Lowers[e.First].Layer, v.at.fds[e.First]
	var st unix.Statx_t
	err := v.ls[in].Stat(fd, e.Name, &st)
	if errors.Is(err, unix.ENOENT) {
		v.find(IndexGone, in, e.Name, "is not there any more")
		return nil
	}
	if err != nil {
		return v.unreadable(in, e.Name, err)
	}
	isDir := e.Mode&unix.S_IFMT == unix.S_IFDIR
	now, was := stampOf(&st), recordedStamp(e)
	switch {
	case sys.Dev(&st) != v.ls[in].Dev: // something is mounted there
		return nil
	case !e.Ask && uint32(st.Mode)&unix.S_IFMT != e.Mode&unix.S_IFMT:
		v.find(IndexEdited, in, e.Name, "is of another type: mode %#o, recorded was %#o", st.Mode, e.Mode)
		return nil
	case e.Ask:
		return nil
	case isDir && (now.Ino != was.Ino || now.Mtime != was.Mtime || now.Ctime != was.Ctime):
		return nil // the record of the directory tells
	case !isDir && now != was:
		v.find(IndexEdited, in, e.Name, "%s", changeOf(was, now))
		return nil
	}
	wrong, err := v.wrong(fd, e, &st)
	if err != nil {
		return v.unreadable(in, e.Name, err)
	}
	if wrong != "" {
		v.find(IndexWrong, in, e.Name, "%s", wrong)
	}
	return nil
}

func recordedStamp(e *metadata.Entry) metadata.Stamp {
	return metadata.Stamp{Ino: e.Ino, Size: e.Size, Mtime: e.Mtime, Ctime: e.Ctime}
}

// wrong says what of an entry whose object did not change does not describe it, "" if all does.
func (v *indexVerifier) wrong(fd int, e *metadata.Entry, st *unix.Statx_t) (string, error) {
	switch {
	case uint32(st.Mode) != e.Mode:
		return fmt.Sprintf("has mode %#o, recorded was %#o", st.Mode, e.Mode), nil
	case st.Uid != e.UID || st.Gid != e.GID:
		return fmt.Sprintf("belongs to %d:%d, recorded was %d:%d", st.Uid, st.Gid, e.UID, e.GID), nil
	case st.Nlink != e.Nlink:
		return fmt.Sprintf("has %d links, recorded were %d", st.Nlink, e.Nlink), nil
	case sys.Rdev(st) != e.Rdev:
		return fmt.Sprintf("is device %#x, recorded was %#x", sys.Rdev(st), e.Rdev), nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		target, err := sys.Readlinkat(fd, e.Name)
		if err != nil || target != e.Target {
			return fmt.Sprintf("leads to %q, recorded was %q", target, e.Target), err
		}
	}
	return wrongXattrs(fd, e)
}

func wrongXattrs(fd int, e *metadata.Entry) (string, error) {
	names, err := cow.ListXattrs(fd, e.Name)
	if err != nil {
		return "", err
	}
	if len(names) != len(e.Xattrs) {
		return fmt.Sprintf("has %d extended attributes, recorded were %d", len(names), len(e.Xattrs)), nil
	}
	for _, x := range e.Xattrs {
		if !slices.Contains(names, x.Name) {
			return fmt.Sprintf("has no extended attribute %q, which was recorded", x.Name), nil
		}
		if x.Value == nil {
			continue
		}
		value, err := cow.GetXattr(fd, e.Name, x.Name)
		if err != nil {
			return "", err
		}
		if !bytes.Equal(value, x.Value) {
			return fmt.Sprintf("has another value of the extended attribute %q than was recorded", x.Name), nil
		}
	}
	return "", nil
}

// listed looks for names that the layers show and the index does not have, or has from another layer.
func (v *indexVerifier) listed() error {
	var e metadata.Entry
	for k, fd := range v.at.fds {
		in := v.rec.Lowers[k].Layer
		err := layer.List(fd, func(d layer.RawDirent) error {
			found, err := v.rec.Find(d.Name, &e)
			if err != nil || found && int(e.First) <= k {
				return nil //nolint:nilerr // recorded reports it
			}
			o, err := v.at.find(d.Name)
			if err != nil {
				return v.unreadable(in, d.Name, err)
			}
			if o.ok && o.in == k {
				v.find(IndexUnrecorded, in, d.Name, "shows in a mount, and is not what was recorded")
			}
			return v.ctx.Err()
		})
		if err != nil {
			return v.unreadable(in, "", err)
		}
	}
	return nil
}

// contents compares the content of the regular files with their digests.
func (v *indexVerifier) contents() error {
	sums, err := v.opt.Index.Digests(v.view)
	if err != nil {
		v.find(IndexDamaged, -1, "", "%v", err)
		return nil
	}
	var e metadata.Entry
	for _, d := range sums {
		if ok, err := v.rec.Find(d.Name, &e); err != nil || !ok {
			v.find(IndexWrong, -1, d.Name, "has a digest and no entry")
			continue
		}
		if err := v.content(&e, d); err != nil {
			if err := v.unreadable(v.rec.Lowers[e.First].Layer, e.Name, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// content compares the content of one file. An entry that does not describe its file was reported already.
func (v *indexVerifier) content(e *metadata.Entry, d metadata.Digest) error {
	if !v.unchanged(e) {
		return nil
	}
	borrowed := e.Ask || isMetacopy(e)
	fd, err := v.openContent(e, borrowed)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// What is in memory says nothing of the disk.
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	size, sum, err := v.digest(fd)
	if err != nil {
		return err
	}
	v.out.files++
	v.out.bytes += size
	if size == d.Size && sum == d.Sum {
		return nil
	}
	in := v.rec.Lowers[e.First].Layer
	switch {
	case !v.unchanged(e):
		v.find(IndexEdited, in, e.Name, "was changed while it was read")
	case borrowed:
		v.find(IndexEdited, in, e.Name,
			"has another content than was recorded (digest %016x of %d bytes, recorded was %016x of %d), "+
				"and its times are not known",
			sum, size, d.Sum, d.Size)
	default:
		v.find(IndexBitRot, in, e.Name,
			"has another content than was recorded (digest %016x of %d bytes, recorded was %016x of %d), and nothing changed it",
			sum, size, d.Sum, d.Size)
	}
	return nil
}

// unchanged says whether the object of e has the stamp that was recorded.
func (v *indexVerifier) unchanged(e *metadata.Entry) bool {
	var st unix.Statx_t
	if sys.Statx(v.at.fds[e.First], e.Name, &st) != nil {
		return false
	}
	return e.Ask || stampOf(&st) == recordedStamp(e)
}

// isMetacopy says whether a file's data may be that of another file.
func isMetacopy(e *metadata.Entry) bool {
	return slices.ContainsFunc(e.Xattrs, func(x metadata.Xattr) bool {
		return x.Name == ovl.Trusted().Metacopy || x.Name == ovl.User().Metacopy
	})
}

// openContent opens the data of a file; borrowed says that it may be in a deeper layer.
func (v *indexVerifier) openContent(e *metadata.Entry, borrowed bool) (int, error) {
	if borrowed && v.at.dirs[e.First].layer < len(v.ls)-1 {
		return v.ls.openFile(v.at.dirs[e.First], e.Name)
	}
	fd, err := sys.Openat(v.at.fds[e.First], e.Name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) {
		fd, err = sys.Openat(v.at.fds[e.First], e.Name, unix.O_RDONLY|unix.O_NONBLOCK)
	}
	return fd, err
}

func (v *indexVerifier) digest(fd int) (size, sum uint64, err error) {
	if v.buf == nil {
		v.buf = make([]byte, contentBuf)
	}
	v.sum.Reset()
	for {
		if err := v.ctx.Err(); err != nil {
			return 0, 0, err
		}
		n, err := unix.Read(fd, v.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, 0, err
		case n == 0:
			return size, v.sum.Sum64(), nil
		}
		size += uint64(n)
		_, _ = v.sum.Write(v.buf[:n])
	}
}
