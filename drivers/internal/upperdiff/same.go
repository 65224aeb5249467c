package upperdiff

import (
	"bytes"
	"maps"

	"golang.org/x/sys/unix"

	"plyfs/fs/union"
	"plyfs/internal/sys"
)

// compareBuffer is how much of two files is compared at a time.
const compareBuffer = 128 << 10

// same says whether two objects are equal: cf. tarlayer.Compare. Of directories, only what they are counts, not what is
// in them nor when that changed.
func (c *comparer) same(newer, older side) (bool, error) {
	a, b := &newer.attr, &older.attr
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID {
		return false, nil
	}
	typ := a.Mode & unix.S_IFMT
	if (typ == unix.S_IFCHR || typ == unix.S_IFBLK) && a.Rdev != b.Rdev {
		return false, nil
	}
	if typ != unix.S_IFDIR && !sameTime(a.Mtime, b.Mtime) {
		return false, nil
	}
	if typ == unix.S_IFREG && a.Size != b.Size {
		return false, nil
	}
	x, err := c.newer.xattrs(newer.node)
	if err != nil {
		return false, err
	}
	y, err := c.older.xattrs(older.node)
	if err != nil || !maps.Equal(x, y) {
		return false, err
	}
	switch typ {
	case unix.S_IFLNK:
		return c.sameTarget(newer, older)
	case unix.S_IFREG:
		return c.sameContent(newer, older)
	}
	return true, nil
}

// sameTime is tarlayer.Compare's: layers carry whole seconds.
func sameTime(a, b sys.Time) bool {
	return a.Sec == b.Sec && (a.Nsec == b.Nsec || a.Nsec == 0 || b.Nsec == 0)
}

func (c *comparer) sameTarget(newer, older side) (bool, error) {
	x, err := c.newer.u.Readlink(newer.node)
	if err != nil {
		return false, err
	}
	y, err := c.older.u.Readlink(older.node)
	return x == y, err
}

// sameContent compares files that are equal in all else, if the data of the newer is its own: what it shows of a lower
// is what the older shows.
func (c *comparer) sameContent(newer, older side) (bool, error) {
	f, own, err := c.newer.u.Backing(newer.node, union.ForReading)
	if err != nil {
		return false, err
	}
	f.Close()
	if !own {
		return true, nil
	}
	x, y := make([]byte, compareBuffer), make([]byte, compareBuffer)
	for off := int64(0); ; {
		if err := c.ctx.Err(); err != nil {
			return false, err
		}
		n, err := c.newer.u.Read(newer.node, x, off)
		if err != nil {
			return false, err
		}
		m, err := c.older.u.Read(older.node, y, off)
		if err != nil {
			return false, err
		}
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if n == 0 {
			return true, nil
		}
		off += int64(n)
	}
}
