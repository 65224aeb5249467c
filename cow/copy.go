package cow

import (
	"cmp"
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// copyChunk bounds one copy_file_range call, so that a kill or an unmount is never waited for long.
const copyChunk = 64 << 20

// Copier copies data from one file system to another, and remembers whether they share extents. The zero value is ready;
// it is safe for concurrent use.
type Copier struct {
	noClone atomic.Bool
}

// CopyData makes the first size bytes of dst, an empty file, equal to those of src: by reflink where the file system
// shares extents, else range by range, so that holes stay holes (cf. overlayfs copy_up.c ovl_copy_up_file). It returns
// the number of bytes that were written or shared. It blocks for as long as the data takes and is called with no lock
// held.
func (c *Copier) CopyData(m *sys.Mutator, dst, src int, size int64) (copied int64, err error) {
	if size == 0 {
		return 0, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return 0, err
	}
	return c.CopyKnown(m, dst, src, size, Extent{Size: st.Size, Blocks: st.Blocks})
}

// Extent is what stat(2) says of a file's data: its size in bytes, and its blocks, of 512 bytes.
type Extent struct{ Size, Blocks int64 }

// CopyKnown is CopyData for a caller that knows src already.
func (c *Copier) CopyKnown(m *sys.Mutator, dst, src int, size int64, st Extent) (copied int64, err error) {
	if size == 0 {
		return 0, nil
	}
	// A reflink shares whole files; a truncated prefix is copied.
	if st.Size == size && !c.noClone.Load() {
		switch err := m.Clone(dst, src); {
		case err == nil:
			return size, nil
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOTTY):
			c.noClone.Store(true)
		}
	}
	if st.Blocks*512 >= st.Size && st.Size == size { // no holes to look for, and nothing to cut off
		copied, err = copySpan(m, dst, src, 0, size)
		if err != nil || copied == size {
			return copied, err
		}
		return copied, m.Truncate(dst, size)
	}
	off := int64(0)
	for off < size {
		start, end := nextData(src, off, size)
		if start >= size {
			break
		}
		n, err := copySpan(m, dst, src, start, end)
		copied += n
		if err != nil {
			return copied, err
		}
		off = end
	}
	return copied, m.Truncate(dst, size)
}

// xattrCaps holds file capabilities.
const xattrCaps = "security.capability"

// Refill makes the content of dst, a regular file, the first size bytes of src, and keeps what truncating and writing changes by itself:
// set-id bits, capabilities and times. After an error dst has any part of the content.
func (c *Copier) Refill(m *sys.Mutator, dst, src int, size int64) error {
	var st unix.Statx_t
	if err := sys.Statx(dst, "", &st); err != nil {
		return err
	}
	caps, err := GetXattr(dst, "", xattrCaps)
	if err != nil {
		caps = nil // there are none, as a rule
	}
	if err = m.Truncate(dst, 0); err == nil {
		_, err = c.CopyData(m, dst, src, size)
	}
	// After a failure too: whoever tries again finds no others.
	return cmp.Or(err, keepAttrs(m, dst, &st, caps))
}

// keepAttrs gives an open file that was written the attributes back that st and caps say it had.
func keepAttrs(m *sys.Mutator, fd int, st *unix.Statx_t, caps []byte) error {
	if st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		if err := m.Chmod(fd, "", uint32(st.Mode)&0o7777); err != nil {
			return err
		}
	}
	if caps != nil {
		// Without CAP_SETFCAP they are gone, as after any write.
		if err := m.Setxattr(fd, "", xattrCaps, caps, 0); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return m.Utimes(fd, "", sys.TimeOf(st.Atime).Timespec(), sys.TimeOf(st.Mtime).Timespec())
}

// nextData is the next span of data in [off, size); start is size when only a hole is left. A file system without
// SEEK_DATA is all data.
func nextData(fd int, off, size int64) (start, end int64) {
	start, err := unix.Seek(fd, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size
	}
	if err != nil {
		return off, size
	}
	end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
	if err != nil || end > size {
		end = size
	}
	return start, end
}

func copySpan(m *sys.Mutator, dst, src int, off, end int64) (copied int64, err error) {
	for off < end {
		n, err := m.CopyRange(src, off, dst, off, int(min(end-off, copyChunk)))
		if n > 0 {
			off += int64(n)
			copied += int64(n)
			continue
		}
		if err == nil { // the file is shorter than it was
			return copied, nil
		}
		if !copyRangeUnsupported(err) {
			return copied, err
		}
		n64, err := copyBuffered(m, dst, src, off, end)
		return copied + n64, err
	}
	return copied, nil
}

func copyRangeUnsupported(err error) bool {
	for _, e := range []unix.Errno{unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EBADF, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func copyBuffered(m *sys.Mutator, dst, src int, off, end int64) (copied int64, err error) {
	buf := make([]byte, min(end-off, 1<<20))
	for off < end {
		n, err := unix.Pread(src, buf[:min(end-off, int64(len(buf)))], off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return copied, err
		}
		for w := 0; w < n; {
			k, err := m.Pwrite(dst, buf[w:n], off+int64(w))
			if err != nil {
				return copied, err
			}
			w += k
		}
		off += int64(n)
		copied += int64(n)
	}
	return copied, nil
}
