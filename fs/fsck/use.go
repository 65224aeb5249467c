package fsck

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// checkUse finds out whether a mount is alive: plyfs holds a lock in the work directory, and the kernel's overlayfs
// shows in the mount table, as far as this process sees it.
func (c *checker) checkUse() error {
	who := ""
	if name, err := c.lockedBy(); err != nil {
		return err
	} else if name != "" {
		who = fmt.Sprintf("its work directory %s holds %s locked", c.opt.Work.Path, name)
	}
	if who == "" {
		if at := c.overlayMount(); at != "" {
			who = "the kernel's overlayfs has it mounted on " + at
		}
	}
	if who == "" {
		return nil
	}
	c.live = true
	if c.opt.InUse {
		c.sum.Skipped = append(c.sum.Skipped,
			"in use by a mount: staged objects, unsynced marks, link counts; what is changed meanwhile may show as a finding")
		return nil
	}
	return fmt.Errorf("upper %s: %s: %w", c.opt.Upper.Path, who, ErrInUse)
}

// lockedBy is what a live mount holds locked in the work directory, "" if there is none: StageDir, or, if it is of an older version,
// its staging directory.
func (c *checker) lockedBy() (string, error) {
	if c.opt.Work == nil {
		return "", nil
	}
	dir, err := sys.Openat(c.opt.Work.FD(), cow.StageDir, unix.O_RDONLY|unix.O_DIRECTORY)
	if notThere(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("workdir %s: %s: %w", c.opt.Work.Path, cow.StageDir, err)
	}
	defer unix.Close(dir)
	if cow.InUse(dir) {
		return cow.StageDir, nil
	}
	locked := ""
	err = layer.List(dir, func(e layer.RawDirent) error {
		if !strings.HasPrefix(e.Name, cow.StagePrefix) {
			return nil
		}
		held, err := isLocked(dir, e.Name)
		if held {
			locked = cow.StageDir + "/" + e.Name
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("workdir %s: %w", c.opt.Work.Path, err)
	}
	return locked, err
}

// isLocked says whether somebody holds a lock on the directory name below dirfd. It takes the lock for a moment.
func isLocked(dirfd int, name string) (bool, error) {
	fd, err := sys.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if notThere(err) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// overlayMount is where the kernel's overlayfs has the upper mounted, "" if nowhere. It sees this mount namespace only.
func (c *checker) overlayMount() string {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return "" // without /proc there is nothing to be seen
	}
	for _, m := range mounts {
		for _, opt := range strings.Split(m.VFSOptions, ",") {
			key, dir, _ := strings.Cut(opt, "=")
			if (key == "upperdir" || key == "workdir") && c.isOurs(sys.UnescapeMount(dir)) {
				return m.Mountpoint
			}
		}
	}
	return ""
}

// isOurs says whether a path of the mount table is the upper or the work directory. A relative one, relative to
// whatever directory the mounting process was in, is taken to be if the ends are equal.
func (c *checker) isOurs(path string) bool {
	for _, l := range []*layer.Layer{c.opt.Upper, c.opt.Work} {
		if l == nil {
			continue
		}
		if !filepath.IsAbs(path) {
			if strings.HasSuffix(l.Path, "/"+path) {
				return true
			}
			continue
		}
		var st unix.Statx_t
		if unix.Statx(unix.AT_FDCWD, path, 0, sys.StatMask, &st) == nil && inodeOf(&st) == (inode{l.Dev, l.Ino}) {
			return true
		}
	}
	return false
}
