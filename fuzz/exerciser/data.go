package exerciser

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
)

// data makes an operation on the content of a file that is opened for it.
func (r *runner) data(o Op) error {
	n := r.m.find(o.A)
	if n != nil && n.kind != unix.S_IFREG {
		return nil
	}
	if o.Kind == Truncate {
		if n != nil {
			n.resize(o.Off)
		}
		return expect(n != nil, r.t.Truncate(o.A, o.Off))
	}
	flags := unix.O_RDWR | unix.O_NOFOLLOW
	if o.Kind == Append {
		flags |= unix.O_APPEND
	}
	if o.Kind == Read || o.Kind == MapRead {
		flags = unix.O_RDONLY | unix.O_NOFOLLOW
	}
	f, err := r.t.Open(o.A, flags, 0)
	if err := expect(n != nil, err); err != nil || n == nil {
		return err
	}
	return errors.Join(r.dataOn(o, f, n), f.Close())
}

func (r *runner) dataOn(o Op, f uniontest.File, n *node) error {
	switch o.Kind {
	case Write:
		return write(f, n, o.Off, o.content(o.N))
	case Append:
		b := o.content(min(o.N, 5000))
		if len(n.data)+len(b) > 2*maxFile {
			return nil
		}
		k, err := f.Write(b)
		n.write(int64(len(n.data)), b)
		return short(k, len(b), err)
	case Read:
		return read(f, n, o.Off, o.N)
	case Punch:
		err := f.Fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, o.Off, o.N)
		clear(n.slice(o.Off, o.N))
		return err
	case Allocate:
		if end := o.Off + o.N; end > int64(len(n.data)) {
			n.resize(end)
		}
		return f.Fallocate(0, o.Off, o.N)
	case CopyRange:
		return r.copyRange(o, f, n)
	case MapWrite, MapRead:
		return r.mapping(o, f, n)
	}
	return f.Sync()
}

func write(f uniontest.File, n *node, off int64, b []byte) error {
	k, err := f.WriteAt(b, off)
	n.write(off, b)
	return short(k, len(b), err)
}

func short(n, want int, err error) error {
	if err == nil && n != want {
		err = fmt.Errorf("%d bytes of %d", n, want)
	}
	return err
}

func read(f uniontest.File, n *node, off, length int64) error {
	want := n.slice(off, length)
	buf := make([]byte, length)
	got := 0
	for got < len(buf) {
		k, err := f.ReadAt(buf[got:], off+int64(got))
		if k == 0 {
			if got < len(want) {
				return fmt.Errorf("read %d bytes of %d: %w", got, len(want), err)
			}
			break
		}
		got += k
	}
	return compareData(fmt.Sprintf("from offset %d", off), want, buf[:got])
}

// copyRange copies to another file, or within the same one where ranges don't overlap.
func (r *runner) copyRange(o Op, f uniontest.File, n *node) error {
	to := r.m.find(o.B)
	if to == nil || to.kind != unix.S_IFREG || to == n {
		return nil
	}
	dst, err := r.t.Open(o.B, unix.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	src := append([]byte(nil), n.slice(o.Off, o.N)...)
	done := 0
	for done < len(src) {
		k, err := f.CopyRange(o.Off+int64(done), dst, int64(o.Seed)*100+int64(done), len(src)-done)
		if err != nil || k == 0 {
			return errors.Join(fmt.Errorf("copied %d of %d bytes: %w", done, len(src), err), dst.Close())
		}
		done += k
	}
	if len(src) > 0 {
		to.write(int64(o.Seed)*100, src)
	}
	return dst.Close()
}

// mapping reads or writes through a shared mapping.
func (r *runner) mapping(o Op, f uniontest.File, n *node) error {
	want := n.slice(o.Off, o.N)
	if !r.mount || len(want) == 0 {
		return nil
	}
	prot := unix.PROT_READ
	if o.Kind == MapWrite {
		prot |= unix.PROT_WRITE
	}
	begin := o.Off &^ 4095
	m, err := unix.Mmap(f.FD(), begin, int(o.Off-begin)+len(want), prot, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	part := m[o.Off-begin:]
	err = compareData(fmt.Sprintf("mapped from offset %d", o.Off), want, part)
	if err == nil && o.Kind == MapWrite {
		b := o.content(int64(len(part)))
		copy(part, b)
		n.write(o.Off, b)
		if o.Seed%2 == 0 {
			err = unix.Msync(m, unix.MS_SYNC)
		}
	}
	return errors.Join(err, unix.Munmap(m))
}

// handle makes an operation on a file that stays open, whatever becomes of its names.
func (r *runner) handle(o Op) error {
	h := r.h[o.Handle]
	if o.Kind == OpenHandle {
		return r.open(o)
	}
	if h == nil {
		return nil
	}
	switch o.Kind {
	case CloseHandle:
		r.h[o.Handle] = nil
		return h.f.Close()
	case HandleWrite:
		return write(h.f, h.n, o.Off, o.content(o.N))
	case HandleTruncate:
		h.n.resize(o.Off)
		return h.f.Truncate(o.Off)
	}
	if err := read(h.f, h.n, o.Off, o.N); err != nil {
		return err
	}
	st, err := h.f.Stat()
	if err != nil {
		return err
	}
	return checkStat(st, h.n)
}

func (r *runner) open(o Op) error {
	n := r.m.find(o.A)
	if r.h[o.Handle] != nil || n != nil && n.kind != unix.S_IFREG {
		return nil
	}
	f, err := r.t.Open(o.A, unix.O_RDWR|unix.O_NOFOLLOW, 0)
	if err := expect(n != nil, err); err != nil || n == nil {
		return err
	}
	r.h[o.Handle] = &handle{f, n}
	return nil
}
