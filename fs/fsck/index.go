package fsck

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
)

// checkIndex looks at the entries of the hard-link index by themselves, and notes which lower inodes they stand for.
func (c *checker) checkIndex() error {
	if c.opt.Work == nil {
		return nil
	}
	if err := c.progress("index", ""); err != nil {
		return err
	}
	fd, err := cow.OpenIndex(c.opt.Work)
	if notThere(err) {
		return nil
	}
	if err != nil {
		c.unreadable(InWork, cow.IndexDir, err)
		return nil
	}
	c.index = fd
	return c.listIndex(func(name string, st *unix.Statx_t) error {
		c.sum.Objects++
		if strings.HasPrefix(name, indexTemp) {
			if !c.live {
				c.reportLeftover(c.index, name, cow.IndexDir+"/"+name)
			}
			return nil
		}
		return c.checkEntry(name, st)
	})
}

// listIndex calls f for each entry that is a copied-up file, or of no known form. The kernel's overlayfs keeps
// directories and whiteouts there for nfs_export, which are none of plyfs's business.
func (c *checker) listIndex(f func(name string, st *unix.Statx_t) error) error {
	err := layer.List(c.index, func(e layer.RawDirent) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		var st unix.Statx_t
		err := c.opt.Upper.Stat(c.index, e.Name, &st)
		if notThere(err) {
			return nil
		}
		other := layer.IsWhiteoutDevice(&st) || st.Mode&unix.S_IFMT == unix.S_IFDIR
		if err == nil && other && !strings.HasPrefix(e.Name, indexTemp) {
			return nil
		}
		if err == nil {
			err = f(e.Name, &st)
		}
		if err != nil {
			c.unreadable(InWork, cow.IndexDir+"/"+e.Name, err)
		}
		return nil
	})
	if err != nil && c.ctx.Err() == nil {
		c.unreadable(InWork, cow.IndexDir, err)
		return nil
	}
	return err
}

// keyOf is the origin that an index entry is named after.
func keyOf(name string) (ovl.Origin, []byte, error) {
	raw, err := hex.DecodeString(name)
	if err != nil {
		return ovl.Origin{}, nil, err
	}
	o, err := ovl.ParseOrigin(raw)
	return o, raw, err
}

// checkEntry looks at one entry.
func (c *checker) checkEntry(name string, st *unix.Statx_t) error {
	path := cow.IndexDir + "/" + name
	key, raw, err := keyOf(name)
	if err != nil && !errors.Is(err, ovl.ErrNoOrigin) {
		c.reportName(name, path, st)
		return nil
	}
	m, err := readMarks(c.index, name)
	if err != nil {
		return err
	}
	c.checkEntryOrigin(name, path, st, &m, raw)
	if m.unsynced != nil && st.Nlink == 1 && st.Mode&unix.S_IFMT == unix.S_IFREG {
		// With further names it is checked under those.
		if err := c.checkUnsynced(InWork, path, c.index, name, &m); err != nil {
			return err
		}
	}
	if ino, ok := key.Inode(); ok {
		c.links[linkKey{key.UUID, key.Subvolume(), ino}] = linkCount{}
	}
	return nil
}

// reportName reports an entry whose name is no file handle: no lookup finds it.
func (c *checker) reportName(name, path string, st *unix.Statx_t) {
	f := Finding{
		Severity: Error, Class: IndexNameMalformed, Layer: InWork, Path: path,
		Explanation: "has a name that is no file handle: the kernel's overlayfs refuses to mount",
	}
	if st.Nlink > 1 {
		f.Repair = "removes the entry; the file keeps its other names"
	} else {
		f.Remedy = "it is the only name of that file: move it out of the work directory if it is of use, else remove it"
	}
	c.report(f, func() error { return c.m.Unlink(c.index, name) })
}

// checkEntryOrigin compares the origin of the file with the name of its entry.
func (c *checker) checkEntryOrigin(name, path string, st *unix.Statx_t, m *marks, raw []byte) {
	f := Finding{Severity: Error, Class: IndexOriginDiffers, Layer: InWork, Path: path}
	var ns *ovl.Names
	switch {
	case m.origin == nil && st.Mode&unix.S_IFMT != unix.S_IFREG:
		return // the user namespace allows no attribute on it
	case m.origin == nil:
		f.Explanation = "has no origin"
		if ns = m.anyNamespace(); ns == nil {
			f.Explanation += ", and nothing says in which namespace it should have one"
		}
	case bytes.Equal(m.origin.value, raw):
		return
	default:
		ns = m.origin.ns
		_, err := ovl.ParseOrigin(m.origin.value)
		if err == nil {
			f.Explanation = "is a copy of another inode than its name says: other names of the file that it stands for " +
				"show the wrong content"
			f.Remedy = "compare the file with the lowers; remove the entry if it is another one"
			c.report(f, nil)
			return
		}
		f.Explanation = err.Error()
	}
	f.Explanation += ": the kernel's overlayfs drops the entry, and hard links break"
	if ns != nil {
		f.Repair = "writes the origin that the name says"
	} else {
		f.Remedy = "remove the entry if the file has other names in the upper"
	}
	c.report(f, func() error { return c.m.Setxattr(c.index, name, ns.Origin, raw, 0) })
}

// anyNamespace is the namespace of the attributes that the object has, nil if it has none.
func (m *marks) anyNamespace() *ovl.Names {
	for _, a := range []*attr{m.nlink, m.metacopy, m.redirect, m.unsynced} {
		if a != nil {
			return a.ns
		}
	}
	return nil
}
