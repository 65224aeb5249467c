package union

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// file returns n's data, which it copies up for writing. The caller closes it.
func (u *Union) file(n *Node, want Access) (*layer.File, error) {
	if n.mode != unix.S_IFREG {
		if n.IsDir() {
			return nil, unix.EISDIR
		}
		return nil, unix.EINVAL
	}
	if want == ForWriting {
		if err := u.beginData(); err != nil {
			return nil, err
		}
	}
	if f := u.files.Get(&n.data); f != nil {
		if (f.Writable || want == ForReading) && !n.has(flagUnlinked|flagMetacopy) {
			return f, nil
		}
		f.Close()
	}
	if want == ForWriting {
		if err := u.copyUpData(n); err != nil {
			return nil, err
		}
	}
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	return u.dataFile(n, want)
}

// Read reads from n at off into p and returns how much it got: less than len(p) only at the end of the file.
func (u *Union) Read(n *Node, p []byte, off int64) (int, error) {
	f, err := u.file(n, ForReading)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if n.has(flagMetacopy) {
		// A truncation that was interrupted: the copy's size counts.
		a, err := u.GetAttr(n)
		if err != nil {
			return 0, err
		}
		p = p[:max(0, min(int64(len(p)), int64(a.Size)-off))]
	}
	got := 0
	for got < len(p) {
		k, err := unix.Pread(f.FD(), p[got:], off+int64(got))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return got, err
		}
		if k == 0 {
			break
		}
		got += k
	}
	return got, nil
}

// Write writes p to n at off, copying its data up first, and then does to its set-id bits what bits says. It returns how much
// was written.
func (u *Union) Write(n *Node, p []byte, off int64, bits SetIDBits) (int, error) {
	f, err := u.file(n, ForWriting)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if u.quota != nil {
		return u.writeCharged(n, f, p, off, bits)
	}
	return u.writeTo(f, p, off, bits)
}

// writeTo is Write to the upper file f.
func (u *Union) writeTo(f *layer.File, p []byte, off int64, bits SetIDBits) (int, error) {
	done := 0
	for done < len(p) {
		k, err := u.m.Pwrite(f.FD(), p[done:], off+int64(done))
		if err != nil {
			if done > 0 {
				break
			}
			return 0, u.sticky(err)
		}
		done += k
	}
	if bits == KillSetID {
		if err := u.killSetID(f.FD()); err != nil {
			return 0, err
		}
	}
	return done, nil
}

// Fallocate is fallocate(2) on n, with every mode that the upper's file system has.
func (u *Union) Fallocate(n *Node, mode uint32, off, length int64, bits SetIDBits) error {
	f, err := u.file(n, ForWriting)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := u.reserveFallocate(f, mode, off, length)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.onExact(n, f.FD(), ""); err != nil {
		return err
	}
	if err := u.m.Fallocate(f.FD(), mode, off, length); err != nil {
		return err
	}
	if bits == KillSetID {
		return u.killSetID(f.FD())
	}
	return nil
}

// Seek finds data or holes (SEEK_DATA, SEEK_HOLE); ENXIO beyond the end.
func (u *Union) Seek(n *Node, off int64, whence int) (int64, error) {
	f, err := u.file(n, ForReading)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return unix.Seek(f.FD(), off, whence)
}

// CopyRange copies length bytes between two files of the union, by reflink where the layers allow it. It returns how
// much was copied; 0 at the end of src.
func (u *Union) CopyRange(src *Node, soff int64, dst *Node, doff, length int64) (int, error) {
	out, err := u.file(dst, ForWriting)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	in, err := u.file(src, ForReading)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	c, length, err := u.reserveCopy(in, soff, out, doff, min(length, 1<<30))
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := c.on(dst, out.FD(), ""); err != nil {
		return 0, err
	}
	return u.m.CopyRange(in.FD(), soff, out.FD(), doff, int(length))
}

// GetFlags returns the inode flags of n (chattr(1)).
func (u *Union) GetFlags(n *Node) (uint32, error) {
	f, err := u.openForFlags(n)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return sys.GetFlags(f.FD())
}

// SetFlags sets the inode flags of n. Immutable and append-only are refused with EPERM where the backing file system
// refuses them.
func (u *Union) SetFlags(n *Node, flags uint32) error {
	return u.changeFlags(n, func(fd int) error { return u.m.SetFlags(fd, flags) })
}

// GetFSXattr returns the extended inode flags of n, which the kernel asks for before it sets any; ENOTTY where the
// layer's file system has none.
func (u *Union) GetFSXattr(n *Node) (sys.FSXattr, error) {
	f, err := u.openForFlags(n)
	if err != nil {
		return sys.FSXattr{}, err
	}
	defer f.Close()
	return sys.GetFSXattr(f.FD())
}

// SetFSXattr sets the extended inode flags of n.
func (u *Union) SetFSXattr(n *Node, x sys.FSXattr) error {
	return u.changeFlags(n, func(fd int) error { return u.m.SetFSXattr(fd, x) })
}

func (u *Union) changeFlags(n *Node, set func(fd int) error) error {
	if n.mode == unix.S_IFREG {
		if err := u.copyUpData(n); err != nil {
			return err
		}
	} else if err := u.copyUpMeta(n); err != nil {
		return err
	}
	f, err := u.openForFlags(n)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := set(f.FD()); err != nil {
		return err
	}
	if !n.has(flagUnlinked) {
		u.files.Drop(&n.data) // a descriptor from before could still write to an immutable file
	}
	return nil
}

func (u *Union) openForFlags(n *Node) (*layer.File, error) {
	if n.mode == unix.S_IFREG {
		return u.file(n, ForReading)
	}
	if !n.IsDir() || n.isOwnMount() {
		return nil, unix.ENOTTY
	}
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	l, err := u.attrLoc(n)
	if err != nil {
		return nil, err
	}
	defer l.close()
	var fd int
	if l.name == "." {
		fd, err = sys.OpenSelf(l.fd(), unix.O_RDONLY)
	} else {
		fd, err = sys.Openat(l.fd(), l.name, unix.O_RDONLY|unix.O_DIRECTORY)
	}
	if err != nil {
		return nil, err
	}
	return layer.Own(fd), nil
}

// Backing returns the descriptor that a front end may let the kernel read and write directly, and whether it is the
// upper's. For writing, the data is copied up. The caller closes it. EOPNOTSUPP with a quota, which the kernel knows nothing of.
func (u *Union) Backing(n *Node, want Access) (f *layer.File, upper bool, err error) {
	if u.quota != nil {
		return nil, false, fmt.Errorf("passthrough with a quota: %w", unix.EOPNOTSUPP)
	}
	if n.mode != unix.S_IFREG {
		return nil, false, unix.EINVAL
	}
	if want == ForWriting {
		if err := u.beginData(); err != nil {
			return nil, false, err
		}
		if err := u.copyUpData(n); err != nil {
			return nil, false, err
		}
	}
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	upper = n.has(flagUpper) && !n.has(flagMetacopy)
	f, err = u.dataFile(n, want)
	return f, upper, err
}
