package devicemapper

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// layerProject is the project that all of a layer belongs to: it is inherited from the root of the base, so nothing
// needs to be assigned when a layer gets a limit. The number is only to be nobody else's within a container.
const layerProject = 0x706c79

// errNoQuota says that a file system does not enforce project quotas.
var errNoQuota = errors.New("project quotas are not enforced")

func (realHost) adopt(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	enforced, err := sys.ProjectQuotasEnforced(fd)
	if err == nil && !enforced {
		err = errNoQuota
	}
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	x, err := sys.GetFSXattr(fd)
	if err != nil {
		return fmt.Errorf("project of %s: %w", dir, err)
	}
	var m *sys.Mutator
	if err := m.SetFSXattr(fd, x.WithProject(layerProject)); err != nil {
		return fmt.Errorf("project of %s: %w", dir, err)
	}
	// Whether it is counted.
	_, err = projectQuota(f)
	return err
}

// projectQuota reads what is kept for layerProject in the file system that f lies on.
func projectQuota(f *os.File) (q sys.ProjectQuota, err error) {
	q, err = sys.GetProjectQuota(int(f.Fd()), layerProject)
	// Of a project that has nothing, some file systems know nothing.
	if err = ignore(ignore(err, unix.ENOENT), unix.ESRCH); err != nil {
		err = fmt.Errorf("quota at %s: %w", f.Name(), err)
	}
	return q, err
}

func (realHost) used(dir string) (u drivers.Usage, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return u, err
	}
	defer f.Close()
	bytes, inodes, err := sys.ProjectUsage(int(f.Fd()), layerProject)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		// A read-only ext4 counts no projects. All that is in it belongs to this one.
		var st unix.Statfs_t
		err = sys.Retry(func() error { return unix.Fstatfs(int(f.Fd()), &st) })
		return drivers.Usage{Bytes: int64(st.Blocks-st.Bfree) * st.Bsize, Inodes: int64(st.Files - st.Ffree)}, err
	}
	if err != nil {
		return u, fmt.Errorf("quota at %s: %w", dir, err)
	}
	return drivers.Usage{Bytes: int64(bytes), Inodes: int64(inodes)}, nil
}

func (realHost) limit(dir string, q drivers.Quota) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	used, err := projectQuota(f)
	if err != nil {
		return err
	}
	var limits sys.ProjectQuota
	if q.Bytes > 0 {
		// Rounded down, but never to none.
		limits.HardKiB = max((used.Space+uint64(q.Bytes))>>10, 1)
	}
	if q.Inodes > 0 {
		limits.HardInodes = used.Inodes + uint64(q.Inodes)
	}
	if err := sys.SetProjectQuota(int(f.Fd()), layerProject, limits); err != nil {
		return fmt.Errorf("set the quota at %s: %w", dir, err)
	}
	return nil
}
