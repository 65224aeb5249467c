package projquota

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// fake is a file system with project quotas, in memory: what is told of directories goes by their inode.
type fake struct {
	noQuota, notEnforced, noPrivilege bool

	quotas   map[uint32]sys.ProjectQuota
	projects map[uint64]sys.FSXattr
	fail     map[string]error
	log      []string
}

func newFake() *fake {
	return &fake{
		quotas: make(map[uint32]sys.ProjectQuota), projects: make(map[uint64]sys.FSXattr),
		fail: make(map[string]error),
	}
}

func (f *fake) enforced(int) (bool, error) {
	if f.noQuota {
		return false, unix.ENOSYS
	}
	return !f.notEnforced, f.fail["enforced"]
}

func (f *fake) quota(_ int, id uint32) (sys.ProjectQuota, error) {
	if f.noPrivilege {
		return sys.ProjectQuota{}, unix.EPERM
	}
	if err := f.fail["quota"]; err != nil {
		return sys.ProjectQuota{}, err
	}
	q, ok := f.quotas[id]
	if !ok {
		return q, unix.ENOENT
	}
	return q, nil
}

func (f *fake) setQuota(_ int, id uint32, q sys.ProjectQuota) error {
	f.log = append(f.log, "limit")
	if err := f.fail["setQuota"]; err != nil {
		return err
	}
	old := f.quotas[id]
	q.Space, q.Inodes = old.Space, old.Inodes
	f.quotas[id] = q
	return nil
}

func inode(fd int) uint64 {
	var st unix.Stat_t
	_ = unix.Fstat(fd, &st)
	return st.Ino
}

func (f *fake) xattr(fd int) (sys.FSXattr, error) { return f.projects[inode(fd)], f.fail["xattr"] }

func (f *fake) setXattr(fd int, x sys.FSXattr) error {
	f.log = append(f.log, "assign")
	if err := f.fail["setXattr"]; err != nil {
		return err
	}
	f.projects[inode(fd)] = x
	return nil
}

func fixture(t *testing.T) (f *fake, c *Control, dirs []string) {
	t.Helper()
	f = newFake()
	home := t.TempDir()
	c, err := open(home, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for _, n := range []string{"a", "b", "c"} {
		dirs = append(dirs, filepath.Join(home, n))
		if err := os.Mkdir(dirs[len(dirs)-1], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return f, c, dirs
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		fake fake
		want string
	}{
		"none":         {fake{noQuota: true}, "ext4 or xfs"},
		"not enabled":  {fake{notEnforced: true}, "prjquota"},
		"no privilege": {fake{noPrivilege: true}, "root of the machine"},
		"no projects":  {fake{fail: map[string]error{"xattr": unix.ENOTTY}}, "keeps no project"},
	} {
		_, err := open(t.TempDir(), &c.fake)
		if !errors.Is(err, drivers.ErrNotSupported) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestSet(t *testing.T) {
	f, c, dirs := fixture(t)
	want := drivers.Quota{Bytes: 1 << 20, Inodes: 10}
	if err := c.Set(want, dirs[0], dirs[1]); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(f.log, []string{"limit", "assign", "assign"}) {
		t.Errorf("calls: %v", f.log)
	}
	for _, d := range dirs[:2] {
		if q, err := c.Quota(d); err != nil || q != want {
			t.Errorf("%s: %+v %v", d, q, err)
		}
	}
	if _, err := c.Usage(dirs[2]); !errors.Is(err, drivers.ErrNotFound) {
		t.Error(err)
	}
	// Another quota of the same directories keeps their project.
	one, _ := c.project(dirs[0])
	if err := c.Set(drivers.Quota{Bytes: 2048}, dirs[0]); err != nil {
		t.Fatal(err)
	}
	if two, _ := c.project(dirs[1]); two != one || one < firstID {
		t.Errorf("projects %d, %d", one, two)
	}
	if q, _ := c.Quota(dirs[1]); q != (drivers.Quota{Bytes: 2048}) {
		t.Errorf("%+v", q)
	}
	q := f.quotas[one]
	q.Space, q.Inodes = 5000, 3
	f.quotas[one] = q
	if u, err := c.Usage(dirs[0]); err != nil || u != (drivers.Usage{Bytes: 5000, Inodes: 3}) {
		t.Error(u, err)
	}
	if err := c.Set(drivers.Quota{Bytes: 2048}, dirs[2]); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(want, dirs[0], dirs[2]); !errors.Is(err, drivers.ErrInvalid) {
		t.Errorf("directories of two projects: %v", err)
	}
}

func TestSetRefuses(t *testing.T) {
	_, c, dirs := fixture(t)
	for _, q := range []drivers.Quota{{Bytes: -1}, {Inodes: -1}, {Bytes: 1023}} {
		if err := c.Set(q, dirs[0]); !errors.Is(err, drivers.ErrInvalid) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	if err := c.Set(drivers.Quota{Bytes: 1024}, dirs[0]+"/none"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Numbers that someone uses are passed over: those with limits, and those with files.
func TestAllocate(t *testing.T) {
	f, c, dirs := fixture(t)
	next := uint32(firstID)
	c.draw = func() uint32 { next++; return next }
	f.quotas[firstID+1] = sys.ProjectQuota{HardKiB: 1}
	f.quotas[firstID+2] = sys.ProjectQuota{Inodes: 1}
	f.quotas[firstID+3] = sys.ProjectQuota{}
	if err := c.Set(drivers.Quota{Bytes: 1024}, dirs[0]); err != nil {
		t.Fatal(err)
	}
	if id, _ := c.project(dirs[0]); id != firstID+3 {
		t.Errorf("project %d", id)
	}
	c.draw = func() uint32 { return firstID + 1 }
	if err := c.Set(drivers.Quota{Bytes: 1024}, dirs[1]); !errors.Is(err, drivers.ErrInUse) {
		t.Error(err)
	}
}

// A project that someone else gave is not ours to limit or to release.
func TestForeignProject(t *testing.T) {
	f, c, dirs := fixture(t)
	fd, err := openDir(dirs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f.projects[inode(fd)] = sys.FSXattr{}.WithProject(7)
	f.quotas[7] = sys.ProjectQuota{HardKiB: 9}
	if err := c.Release(dirs[0]); err != nil || f.quotas[7].HardKiB != 9 {
		t.Error(err, f.quotas[7])
	}
	if _, err := c.Quota(dirs[0]); !errors.Is(err, drivers.ErrNotFound) {
		t.Error(err)
	}
}

func TestRelease(t *testing.T) {
	f, c, dirs := fixture(t)
	if err := c.Set(drivers.Quota{Bytes: 1 << 20, Inodes: 10}, dirs[0]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Release(dirs[0]), c.Release(dirs[0]), c.Release(dirs[1])); err != nil {
		t.Fatal(err)
	}
	for id, q := range f.quotas {
		if q.HardKiB|q.SoftKiB|q.HardInodes|q.SoftInodes != 0 {
			t.Errorf("project %d keeps limits: %+v", id, q)
		}
	}
}

// What the kernel refuses is said, and a directory is never left in a project without its limits.
func TestSetFails(t *testing.T) {
	failure := errors.New("failure")
	for call, assigned := range map[string]bool{"quota": false, "setQuota": false, "xattr": false, "setXattr": true} {
		f, c, dirs := fixture(t)
		f.fail[call] = failure
		if err := c.Set(drivers.Quota{Bytes: 4096}, dirs[0]); !errors.Is(err, failure) {
			t.Errorf("%s: %v", call, err)
		}
		if len(f.projects) > 0 {
			t.Errorf("%s: the directory has a project", call)
		}
		if tried := strings.Contains(strings.Join(f.log, " "), "assign"); tried != assigned {
			t.Errorf("%s: calls %v", call, f.log)
		}
	}
}
