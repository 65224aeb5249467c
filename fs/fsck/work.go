package fsck

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// indexTemp begins the names of what the kernel's overlayfs stages in the index directory (cf. overlayfs dir.c ovl_lookup_temp,
// readdir.c ovl_indexdir_cleanup).
const indexTemp = "#"

// checkLowers looks whether the upper was used over another topmost lower. The kernel's overlayfs notes it at the
// upper's root (cf. super.c ovl_get_indexdir, ovl_verify_origin).
func (c *checker) checkLowers() error {
	if len(c.lowers) == 0 {
		return nil
	}
	m, err := readMarks(c.opt.Upper.FD(), ".")
	if err != nil || m.origin == nil {
		return err
	}
	want, err := ovl.ParseOrigin(m.origin.value)
	if err != nil {
		return nil //nolint:nilerr // reported with the upper's root
	}
	top := c.lowers[0]
	h, err := sys.Handle(top.FD(), "")
	if err != nil {
		return nil //nolint:nilerr // a file system without handles can't be compared
	}
	if h.Type == want.Type && string(h.Bytes) == string(want.Bytes) {
		return nil
	}
	c.foreign = true
	c.sum.Skipped = append(c.sum.Skipped,
		"with other lowers than the upper was used over: all that depends on what they hold")
	c.report(Finding{
		Severity: Error, Class: LowersDiffer, Layer: InUpper, Path: ".",
		Explanation: fmt.Sprintf("was used over another topmost lower than %s", top.Path),
		Remedy: fmt.Sprintf("give the lowers of its mounts, topmost first; or, if the layers were copied since, remove the "+
			"attribute %s of the upper's root", m.origin.ns.Origin),
	}, nil)
	return nil
}

// checkWork looks at the work directory but for the index.
func (c *checker) checkWork() error {
	if c.opt.Work == nil {
		return nil
	}
	if err := c.progress("workdir", ""); err != nil {
		return err
	}
	var st unix.Statx_t
	c.recorded = sys.Statx(c.opt.Work.FD(), cow.UnsyncedFile, &st) == nil
	dir, err := sys.Openat(c.opt.Work.FD(), cow.StageDir, unix.O_RDONLY|unix.O_DIRECTORY)
	if notThere(err) {
		return nil
	}
	if err != nil {
		c.unreadable(InWork, cow.StageDir, err)
		return nil
	}
	defer unix.Close(dir)
	err = layer.List(dir, func(e layer.RawDirent) error {
		c.sum.Objects++
		if e.Name == cow.IncompatDir {
			return c.checkIncompat(dir)
		}
		return c.checkStaged(dir, e.Name)
	})
	if err != nil {
		c.unreadable(InWork, cow.StageDir, err)
	}
	return nil
}

// checkIncompat looks at the marks of features.
func (c *checker) checkIncompat(dir int) error {
	fd, err := sys.Openat(dir, cow.IncompatDir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return layer.List(fd, func(e layer.RawDirent) error {
		f := Finding{
			Severity: Error, Class: IncompatMarker, Layer: InWork, Path: cow.StageDir + "/" + cow.IncompatDir + "/" + e.Name,
			Explanation: "is the mark of a feature that a mount used: mounts that do not know it refuse the upper",
			Remedy:      "mount it as it was, or remove the mark if you know that it does not matter",
		}
		if e.Name == cow.VolatileMark {
			f.Class = VolatileMarker
			f.Explanation = "a volatile mount used the upper, which may be incomplete if the system crashed since: " +
				"mounts refuse it"
			f.Remedy = "start with an empty upper, or, if the system did not crash since, remove the mark"
			if c.live {
				f.Severity = Note
				f.Explanation = "a volatile mount uses the upper"
			}
		}
		c.report(f, nil)
		return nil
	})
}

// checkStaged looks whether what is staged belongs to a live mount.
func (c *checker) checkStaged(dir int, name string) error {
	if c.live && !strings.HasPrefix(name, cow.StagePrefix) {
		return nil // of a mount of the kernel's overlayfs
	}
	held, err := isLocked(dir, name)
	if err != nil || held {
		return err
	}
	c.reportLeftover(dir, name, cow.StageDir+"/"+name)
	return nil
}

func (c *checker) reportLeftover(dir int, name, path string) {
	c.report(Finding{
		Severity: Note, Class: StagedLeftover, Layer: InWork, Path: path,
		Explanation: "was staged by a mount that is gone", Repair: "removes it, as the next mount does",
	}, func() error { return c.removeTree(dir, name) })
}

// removeTree removes name below dirfd with all that it holds. It keeps no descriptor for each level, however deep.
func (c *checker) removeTree(dirfd int, name string) error {
	err := c.m.Unlink(dirfd, name)
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	for path := name; ; {
		up, base := splitPath(path)
		full, err := c.emptyDir(dirfd, path)
		switch {
		case err != nil:
			return err
		case full != "":
			path = joined(path, full)
			continue
		case up == "":
			return c.m.Rmdir(dirfd, name)
		}
		if err := c.rmdirIn(dirfd, up, base); err != nil {
			return err
		}
		path = up
	}
}

func (c *checker) rmdirIn(dirfd int, dir, name string) error {
	fd, err := layer.OpenDirAt(dirfd, dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return c.m.Rmdir(fd, name)
}

// emptyDir removes what the directory at path holds, and returns the name of a subdirectory that is not empty, "" if
// nothing is left.
func (c *checker) emptyDir(dirfd int, path string) (full string, err error) {
	fd, err := layer.OpenDirAt(dirfd, path)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	err = layer.List(fd, func(e layer.RawDirent) error {
		err := c.m.Unlink(fd, e.Name)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			err = c.m.Rmdir(fd, e.Name)
		}
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
			full = e.Name
			return errStop
		}
		return err
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return full, err
}

// errStop ends a listing early.
var errStop = errors.New("stop")
