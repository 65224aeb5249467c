package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fiemapExtent is struct fiemap_extent of include/uapi/linux/fiemap.h.
type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// fiemapBatch is how many extents one call asks for.
const fiemapBatch = 32

// fiemap is struct fiemap with its extents.
type fiemap struct {
	start, length           uint64
	flags, mapped, count, _ uint32
	extents                 [fiemapBatch]fiemapExtent
}

const (
	fsIocFiemap      = 0xc020660b
	fiemapExtentLast = 1
)

// Mapped returns how many of the length bytes at off of an open file have storage, or have it promised: extents that are not
// written or not placed yet count. EOPNOTSUPP where the file system does not tell (tmpfs).
func Mapped(fd int, off, length int64) (int64, error) {
	var total int64
	for end := off + length; off < end; {
		m := fiemap{start: uint64(off), length: uint64(end - off), count: fiemapBatch}
		if err := Retry(func() error { return ioctlPtr(fd, fsIocFiemap, unsafe.Pointer(&m)) }); err != nil {
			return 0, err
		}
		if m.mapped == 0 {
			break
		}
		for _, e := range m.extents[:min(m.mapped, fiemapBatch)] {
			from, to := max(int64(e.logical), off), min(int64(e.logical+e.length), end)
			if to > from {
				total += to - from
				off = to
			}
			if e.flags&fiemapExtentLast != 0 {
				return total, nil
			}
		}
		if last := m.extents[min(m.mapped, fiemapBatch)-1]; int64(last.logical+last.length) <= int64(m.start) {
			return 0, unix.EIO // it would not end
		}
	}
	return total, nil
}
