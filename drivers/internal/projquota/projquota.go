// Package projquota bounds directory trees by the project quotas of the file system that they lie on: ext4 and xfs
// mounted with prjquota, f2fs.
//
// A directory with a quota has a project of its own, which everything made beneath it inherits. The number is chosen at
// random from a range that this package uses alone, and only if the file system knows nothing of it: other users of
// project quotas (dockerd, containers/storage, which count up from small numbers; /etc/projid) are never met, and
// nothing but the directory itself needs to remember it, so it survives every restart. What a project may use is kept
// by the file system.
//
// The package has no locks: two processes would have to draw the same number of 2^30 at the same moment to share it.
package projquota

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// The numbers that are drawn from: [firstID, firstID+countID).
const (
	firstID = 1 << 30
	countID = 1 << 30
)

// kernel is what a file system is asked; tests replace it.
type kernel interface {
	enforced(fd int) (bool, error)
	quota(fd int, id uint32) (sys.ProjectQuota, error)
	setQuota(fd int, id uint32, q sys.ProjectQuota) error
	xattr(fd int) (sys.FSXattr, error)
	setXattr(fd int, x sys.FSXattr) error
}

type realKernel struct{}

func (realKernel) enforced(fd int) (bool, error) { return sys.ProjectQuotasEnforced(fd) }
func (realKernel) quota(fd int, id uint32) (sys.ProjectQuota, error) {
	return sys.GetProjectQuota(fd, id)
}

func (realKernel) setQuota(fd int, id uint32, q sys.ProjectQuota) error {
	return sys.SetProjectQuota(fd, id, q)
}
func (realKernel) xattr(fd int) (sys.FSXattr, error) { return sys.GetFSXattr(fd) }
func (realKernel) setXattr(fd int, x sys.FSXattr) error {
	var m *sys.Mutator
	return m.SetFSXattr(fd, x)
}

// Control sets quotas on one file system. It is safe for concurrent use, by different directories.
type Control struct {
	home string
	fd   int
	k    kernel
	draw func() uint32
}

// Open finds out whether trees beneath the directory home can be bounded. Where they can't, the error wraps
// drivers.ErrNotSupported and says why and what to do. The caller closes the Control.
func Open(home string) (*Control, error) { return open(home, realKernel{}) }

func open(home string, k kernel) (*Control, error) {
	fd, err := openDir(home)
	if err != nil {
		return nil, err
	}
	c := &Control{home: home, fd: fd, k: k, draw: func() uint32 { return firstID + rand.Uint32N(countID) }}
	if err := c.check(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("project quotas at %s: %w: %w", home, err, drivers.ErrNotSupported)
	}
	return c, nil
}

func openDir(path string) (int, error) {
	var fd int
	err := sys.Retry(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open directory %s: %w", path, err)
	}
	return fd, nil
}

func (c *Control) check() error {
	enforced, err := c.k.enforced(c.fd)
	switch {
	case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL):
		return fmt.Errorf("this file system or kernel has none (use ext4 or xfs, and Linux 5.14 or newer, "+
			"or the driver plyfs, which enforces quotas itself): %w", err)
	case err != nil:
		return err
	case !enforced:
		return errors.New("they are not enabled (mount the file system with the option prjquota; " +
			"ext4 also wants tune2fs -O project,quota; or use the driver plyfs, which enforces quotas itself)")
	}
	if _, err := c.k.quota(c.fd, firstID); err != nil && !unused(err) {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("only root of the machine may set them "+
				"(the driver plyfs enforces quotas without privilege): %w", err)
		}
		return err
	}
	if _, err := c.k.xattr(c.fd); err != nil {
		return fmt.Errorf("this file system keeps no project of a directory: %w", err)
	}
	return nil
}

// unused says that err is that of a project which the file system does not know.
func unused(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }

// Close ends the use of the Control; quotas stay.
func (c *Control) Close() error { return unix.Close(c.fd) }

// Set bounds everything that will be made beneath the given directories, taken together, by one quota. Directories that
// have no project of this package yet get one; what they contain already does not count. Directories that have one must
// share it. A zero quota takes the limits away. On error the directories may have a project, but no limits that are not
// those of q.
func (c *Control) Set(q drivers.Quota, dirs ...string) error {
	if q.Bytes < 0 || q.Inodes < 0 {
		return fmt.Errorf("quota of %d bytes, %d inodes: %w", q.Bytes, q.Inodes, drivers.ErrInvalid)
	}
	id, err := c.shared(dirs)
	if err != nil {
		return err
	}
	if id == 0 {
		if id, err = c.allocate(); err != nil {
			return err
		}
	}
	// The limits come first: there is no moment at which the tree has a project without them.
	if err := c.limit(id, q); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := c.assign(dir, id); err != nil {
			return err
		}
	}
	return nil
}

// shared is the project that dirs have in common, 0 if none has one.
func (c *Control) shared(dirs []string) (id uint32, err error) {
	for _, dir := range dirs {
		p, err := c.project(dir)
		switch {
		case err != nil:
			return 0, err
		case p == 0 || p == id:
		case id != 0:
			return 0, fmt.Errorf("project quota of %s: belongs to project %d, another directory to %d: %w", dir, p, id,
				drivers.ErrInvalid)
		default:
			id = p
		}
	}
	return id, nil
}

// allocate draws a number that the file system knows nothing of.
func (c *Control) allocate() (uint32, error) {
	const tries = 64
	for range tries {
		id := c.draw()
		q, err := c.k.quota(c.fd, id)
		if unused(err) || err == nil && q.HardKiB|q.SoftKiB|q.Space|q.HardInodes|q.SoftInodes|q.Inodes == 0 {
			return id, nil
		}
		if err != nil {
			return 0, fmt.Errorf("project %d at %s: %w", id, c.home, err)
		}
	}
	return 0, fmt.Errorf("%d project numbers at %s, drawn at random from %d, are all in use: %w", tries, c.home, countID,
		drivers.ErrInUse)
}

func (c *Control) limit(id uint32, q drivers.Quota) error {
	// Rounded down: what is promised is never exceeded. Below one unit there is no limit that could be told.
	kib := uint64(q.Bytes) / 1024
	if q.Bytes > 0 && kib == 0 {
		return fmt.Errorf("quota of %d bytes: less than 1024: %w", q.Bytes, drivers.ErrInvalid)
	}
	lim := sys.ProjectQuota{HardKiB: kib, SoftKiB: kib, HardInodes: uint64(q.Inodes), SoftInodes: uint64(q.Inodes)}
	if err := c.k.setQuota(c.fd, id, lim); err != nil {
		return fmt.Errorf("limit project %d at %s: %w", id, c.home, err)
	}
	return nil
}

func (c *Control) assign(dir string, id uint32) error {
	fd, err := openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	x, err := c.k.xattr(fd)
	if err != nil {
		return fmt.Errorf("project of %s: %w", dir, err)
	}
	if err := c.k.setXattr(fd, x.WithProject(id)); err != nil {
		return fmt.Errorf("make %s part of project %d: %w", dir, id, err)
	}
	return nil
}

// project is the project of dir if this package gave it, else 0.
func (c *Control) project(dir string) (uint32, error) {
	fd, err := openDir(dir)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	x, err := c.k.xattr(fd)
	if err != nil {
		return 0, fmt.Errorf("project of %s: %w", dir, err)
	}
	if id := x.Project(); id >= firstID && id-firstID < countID {
		return id, nil
	}
	return 0, nil
}

// Quota returns the limits of dir, zero if it has none.
func (c *Control) Quota(dir string) (drivers.Quota, error) {
	q, err := c.read(dir)
	return drivers.Quota{Bytes: int64(q.HardKiB) * 1024, Inodes: int64(q.HardInodes)}, err
}

// Usage returns what the trees that share dir's quota take up, at once and exactly. The error wraps drivers.ErrNotFound
// if dir has no project of this package.
func (c *Control) Usage(dir string) (drivers.Usage, error) {
	q, err := c.read(dir)
	return drivers.Usage{Bytes: int64(q.Space), Inodes: int64(q.Inodes)}, err
}

func (c *Control) read(dir string) (q sys.ProjectQuota, err error) {
	id, err := c.project(dir)
	if err != nil {
		return q, err
	}
	if id == 0 {
		return q, fmt.Errorf("project quota of %s: %w", dir, drivers.ErrNotFound)
	}
	if q, err = c.k.quota(c.fd, id); err != nil && !unused(err) {
		return q, fmt.Errorf("project %d at %s: %w", id, c.home, err)
	}
	return q, nil
}

// Release takes the limits of dir away, so that nothing is left of its project once the tree is deleted. It is called
// before the deletion, while dir still tells which project it was. A directory without a project of this package is no
// error.
func (c *Control) Release(dir string) error {
	id, err := c.project(dir)
	if err != nil || id == 0 {
		return err
	}
	return c.limit(id, drivers.Quota{})
}
