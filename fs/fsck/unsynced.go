package fsck

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// marked is a regular file with an unsynced mark.
type marked struct {
	c     *checker
	dirfd int
	name  string
	ns    *ovl.Names
}

// checkUnsynced looks at the unsynced mark of a regular file, name below dirfd.
func (c *checker) checkUnsynced(in, path string, dirfd int, name string, m *marks) error {
	if c.live {
		return nil // it goes with the next sync of the mount
	}
	c.marks++
	file := marked{c: c, dirfd: dirfd, name: name, ns: m.unsynced.ns}
	mark, err := ovl.ParseUnsynced(m.unsynced.value)
	f := Finding{Severity: Error, Class: UnsyncedMark, Layer: in, Path: path}
	switch {
	case err != nil:
		f.Class = UnsyncedMarkMalformed
		f.Explanation = err.Error() + ": whether all data of the file is on disk is not known"
		f.Remedy = "compare the file with a backup; then remove the attribute " + file.ns.Unsynced
	case mark.Boot == c.boot:
		f.Severity = Note
		f.Explanation = "was copied up by a mount that did not end cleanly; its data is whole, but may not be on disk"
		f.Repair = "syncs it and takes the mark off"
		c.report(f, file.sync)
		return nil
	case !c.recorded:
		// A later mount may have written and synced it: its lower's content would be a step back.
		f.Explanation = "is marked as not synced before the machine went down, and the work directory has no record of " +
			"that: either a clean mount could not take the mark off, or the record is lost"
		f.Remedy = "if the content of the file is right, remove the attribute " + file.ns.Unsynced +
			"; else restore it from a backup first"
	case !c.withLowers():
		f.Explanation = "was copied up and not synced before the machine went down: data may be missing"
		f.Remedy = "give the lowers, or mount it: it gets its lower's content back"
	default:
		return file.checkLost(f, mark.Lower)
	}
	c.report(f, nil)
	return nil
}

// unmark takes the mark off.
func (f marked) unmark() error {
	err := f.c.m.Removexattr(f.dirfd, f.name, f.ns.Unsynced)
	if err == nil {
		f.c.marks--
	}
	return err
}

// sync makes the file durable and takes the mark off.
func (f marked) sync() error {
	if err := f.c.syncOnce(); err != nil {
		return err
	}
	return f.unmark()
}

// checkLost reports a file that was copied up from lower and not synced before the machine went down.
func (f marked) checkLost(found Finding, lower string) error {
	found.Explanation = fmt.Sprintf(
		"was copied up from %s and not synced before the machine went down: data may be missing", lower)
	src, err := f.c.lowers.openData(0, lower)
	if errors.Is(err, errNoData) {
		found.Explanation += ", and no lower has that file"
		found.Remedy = "restore it from a backup, then remove the attribute " + f.ns.Unsynced
		f.c.report(found, nil)
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(src)
	found.Repair = "gives it the lower's content back, as the next mount does"
	f.c.report(found, func() error {
		if err := f.restore(src); err != nil {
			return err
		}
		return f.unmark()
	})
	return nil
}

// restore gives the file the content of src, and syncs it. Its attributes were journalled and stay.
func (f marked) restore(src int) error {
	m := f.c.m
	fd, err := sys.Openat(f.dirfd, f.name, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := sys.Statx(src, "", &st); err != nil {
		return err
	}
	var copier cow.Copier
	if err := copier.Refill(m, fd, src, int64(st.Size)); err != nil {
		return err
	}
	// A copy of data that was under way is complete now.
	if err := m.Removexattr(fd, "", f.ns.Metacopy); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	return m.Fsync(fd)
}

// syncOnce syncs the upper's file system, once for all marks: nothing has written to it since.
func (c *checker) syncOnce() error {
	if c.synced {
		return nil
	}
	err := c.m.Syncfs(c.opt.Upper.FD())
	c.synced = err == nil
	return err
}

// settleRecord looks at the record of unsynced marks, when it is known whether there are any.
func (c *checker) settleRecord() error {
	if c.opt.Work == nil || c.live || !c.recorded {
		return nil
	}
	f := Finding{
		Severity: Note, Class: UnsyncedRecord, Layer: InWork, Path: cow.UnsyncedFile,
		Explanation: "a mount did not end cleanly: the next one looks at every file of the upper for unsynced copy-ups",
	}
	switch {
	case c.incomplete:
		f.Remedy = "stays, for not every file could be looked at; the next mount looks too"
	case c.marks > 0 && c.opt.Repair:
		f.Remedy = "stays, for there are marked files that were not repaired"
	case c.marks > 0:
		f.Repair = "removes it when no file is marked any more"
	default:
		f.Repair = "removes it, for no file is marked"
	}
	c.report(f, func() error {
		// What took the marks off must be on disk first.
		if err := c.m.Syncfs(c.opt.Upper.FD()); err != nil {
			return err
		}
		return c.m.Unlink(c.opt.Work.FD(), cow.UnsyncedFile)
	})
	return nil
}
