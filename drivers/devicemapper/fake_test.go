//go:build !vm

package devicemapper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/internal/copytree"
	"plyfs/internal/sys"
)

// errInjected is what a call returns that was told to fail.
var errInjected = errors.New("injected")

// fake is a machine with a device mapper. Thin devices are directories beside the file with the pool's metadata,
// mounts are bind mounts. It is strict: what would break a real pool fails the test.
type fake struct {
	t testing.TB

	mu      sync.Mutex
	devices map[string]*fakeDevice
	pools   map[uint64]*fakePool // by the number in their metadata
	files   map[uint64]string    // attached files by device number
	sizes   map[string]uint64    // block devices by path
	nextDev uint32
	calls   []string
	fail    int // the call that fails, counted from 1; 0 for none
	how     string
	opened  map[uint64]int // users of devices beside mounts
	quotas  bool           // the file systems have project quotas
}

type fakeDevice struct {
	dev                uint64
	live, loaded       *sys.DMTarget
	suspended, leaving bool
	mounts             []string
}

// fakePool is what the metadata of a pool hold.
type fakePool struct {
	dir         string
	transaction uint64
	thin        map[deviceID]uint64 // to the sectors that are mapped
	// status overrides what the pool says of itself.
	status string
	usedData,
	totalData uint64
}

func newFake(t testing.TB) *fake {
	return &fake{
		t: t, devices: make(map[string]*fakeDevice), pools: make(map[uint64]*fakePool), files: make(map[uint64]string),
		sizes: make(map[string]uint64), opened: make(map[uint64]int),
	}
}

// do makes one call that changes something.
func (f *fake) do(call string, fn func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	n := len(f.calls)
	if f.fail > 0 && (n == f.fail && f.how == "before" || n >= f.fail && f.how == "on") {
		return fmt.Errorf("%s: %w", call, errInjected)
	}
	if err := fn(); err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	if f.fail > 0 && n == f.fail && f.how == "after" {
		return fmt.Errorf("%s: %w", call, errInjected)
	}
	return nil
}

// failAt makes the n-th call from now fail, before or after its work, or with all later ones ("on").
func (f *fake) failAt(n int, how string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail, f.how = len(f.calls)+n, how
}

func (f *fake) heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = 0
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

// since returns the calls after the first n, with the store's token left away.
func (f *fake) since(n int, d *Driver) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]string, 0, len(f.calls)-n)
	for _, c := range f.calls[n:] {
		c = strings.ReplaceAll(c, d.devicePrefix(), "")
		out = append(out, strings.ReplaceAll(c, d.home+"/", ""))
	}
	return out
}

// reboot forgets what a machine forgets.
func (f *fake) reboot() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, d := range f.devices {
		for _, m := range d.mounts {
			_ = unix.Unmount(m, unix.MNT_DETACH)
		}
		delete(f.devices, name)
	}
	clear(f.opened)
}

// thin lists the devices that all pools have, sorted.
func (f *fake) thin() (all []deviceID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pools {
		all = append(all, slices.Collect(maps.Keys(p.thin))...)
	}
	slices.Sort(all)
	return all
}

func (f *fake) newDev(major uint32) uint64 {
	f.nextDev++
	return unix.Mkdev(major, f.nextDev)
}

func (d *fakeDevice) open() (n int) {
	d.mounts = slices.DeleteFunc(d.mounts, func(m string) bool { return !drivers.IsMountPoint(m) })
	return len(d.mounts)
}

func (f *fake) named(name string) (*fakeDevice, error) {
	d := f.devices[name]
	if d == nil {
		return nil, unix.ENXIO
	}
	return d, nil
}

func (f *fake) byDev(dev uint64) *fakeDevice {
	for _, d := range f.devices {
		if d.dev == dev {
			return d
		}
	}
	return nil
}

// thinOf takes apart the table of a thin device.
func (f *fake) thinOf(t *sys.DMTarget) (p *fakePool, id deviceID, pool *fakeDevice, err error) {
	var major, minor uint32
	if _, err := fmt.Sscanf(t.Params, "%d:%d %d", &major, &minor, &id); err != nil {
		return nil, 0, nil, unix.EINVAL
	}
	pool = f.byDev(unix.Mkdev(major, minor))
	if pool == nil || pool.live == nil {
		return nil, 0, nil, unix.EINVAL
	}
	p, err = f.poolOf(pool.live)
	return p, id, pool, err
}

// poolOf returns the pool of a thin-pool table. Blank metadata become those of a new one.
func (f *fake) poolOf(t *sys.DMTarget) (*fakePool, error) {
	var major, minor, dmajor, dminor uint32
	var block, low uint64
	if _, err := fmt.Sscanf(t.Params, "%d:%d %d:%d %d %d", &major, &minor, &dmajor, &dminor, &block, &low); err != nil {
		return nil, unix.EINVAL
	}
	file, ok := f.files[unix.Mkdev(major, minor)]
	if _, ok2 := f.files[unix.Mkdev(dmajor, dminor)]; !ok || !ok2 || t.Length%block != 0 {
		return nil, unix.EINVAL
	}
	mark := make([]byte, 8)
	m, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if _, err := m.ReadAt(mark, 0); err != nil {
		return nil, err
	}
	number := binary.LittleEndian.Uint64(mark)
	if number == 0 {
		number = uint64(len(f.pools) + 1)
		binary.LittleEndian.PutUint64(mark, number)
		if _, err := m.WriteAt(mark, 0); err != nil {
			return nil, err
		}
		dir := filepath.Join(filepath.Dir(file), "content")
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
			return nil, err
		}
		f.pools[number] = &fakePool{dir: dir, thin: make(map[deviceID]uint64), totalData: t.Length / block}
	}
	return f.pools[number], nil
}

func (p *fakePool) path(id deviceID) string { return filepath.Join(p.dir, fmt.Sprint(id)) }

func (f *fake) create(name string) error {
	return f.do("create "+name, func() error {
		if f.devices[name] != nil {
			return unix.EBUSY
		}
		f.devices[name] = &fakeDevice{dev: f.newDev(252)}
		return nil
	})
}

func (f *fake) load(name string, t sys.DMTarget) error {
	return f.do(fmt.Sprintf("load %s: 0 %d %s %s", name, t.Length, t.Type, t.Params), func() error {
		d, err := f.named(name)
		if err != nil {
			return err
		}
		switch t.Type {
		case "thin-pool":
			_, err = f.poolOf(&t)
		case "thin":
			var p *fakePool
			var id deviceID
			if p, id, _, err = f.thinOf(&t); err == nil {
				if _, ok := p.thin[id]; !ok {
					err = unix.ENODATA
				}
			}
		default:
			err = unix.EINVAL
		}
		if err == nil {
			d.loaded = &t
		}
		return err
	})
}

func (f *fake) suspend(name string) error {
	return f.do("suspend "+name, func() error {
		d, err := f.named(name)
		if err == nil {
			d.suspended = true
		}
		return err
	})
}

func (f *fake) resume(name string) error {
	return f.do("resume "+name, func() error {
		d, err := f.named(name)
		if err != nil {
			return err
		}
		if d.loaded != nil {
			d.live, d.loaded = d.loaded, nil
		}
		d.suspended = false
		return nil
	})
}

// users says whether a device is in use.
func (f *fake) users(d *fakeDevice) bool {
	if d.open() > 0 || f.opened[d.dev] > 0 {
		return true
	}
	for _, other := range f.devices {
		if other.live != nil && other.live.Type == "thin" && strings.HasPrefix(other.live.Params,
			devNumber(d.dev)+" ") {
			return true
		}
	}
	return false
}

func (f *fake) remove(name string) error {
	return f.do("remove "+name, func() error {
		d, err := f.named(name)
		if err != nil {
			return err
		}
		if f.users(d) {
			return unix.EBUSY
		}
		delete(f.devices, name)
		return nil
	})
}

func (f *fake) removeLater(name string) error {
	return f.do("remove later "+name, func() error {
		d, err := f.named(name)
		if err != nil {
			return err
		}
		d.leaving = true
		f.sweep()
		return nil
	})
}

// sweep removes devices that were to be removed with their last user.
func (f *fake) sweep() {
	maps.DeleteFunc(f.devices, func(_ string, d *fakeDevice) bool { return d.leaving && !f.users(d) })
}

func (f *fake) message(name, text string) error {
	return f.do(fmt.Sprintf("message %s: %s", name, text), func() error {
		d, err := f.named(name)
		if err != nil {
			return err
		}
		if text == msgCancelRemove {
			d.leaving = false
			return nil
		}
		if d.live == nil || d.live.Type != "thin-pool" {
			return unix.EINVAL
		}
		p, err := f.poolOf(d.live)
		if err != nil {
			return err
		}
		return f.poolMessage(d, p, text)
	})
}

func (f *fake) poolMessage(pool *fakeDevice, p *fakePool, text string) error {
	var a, b uint64
	word, _, _ := strings.Cut(text, " ")
	if n, _ := fmt.Sscanf(text, word+" %d %d", &a, &b); n == 0 {
		return unix.EINVAL
	}
	id, origin := deviceID(a), deviceID(b)
	_, exists := p.thin[id]
	switch {
	case strings.HasPrefix(word, "create_") && exists:
		return unix.EEXIST
	case word == "create_thin":
		p.thin[id] = 0
		return os.Mkdir(p.path(id), 0o700)
	case word == "create_snap":
		if _, ok := p.thin[origin]; !ok {
			return unix.ENODATA
		}
		if d := f.thinDevice(pool, origin); d != nil && !d.suspended {
			f.t.Errorf("%s: the origin is active and not suspended", text)
		}
		p.thin[id] = p.thin[origin]
		return copyDir(p.path(id), p.path(origin))
	case word == "delete" && !exists:
		return unix.ENODATA
	case word == "delete":
		if f.thinDevice(pool, id) != nil {
			return unix.EBUSY
		}
		delete(p.thin, id)
		return os.RemoveAll(p.path(id))
	case word == "set_transaction_id":
		if p.transaction != a {
			return unix.EINVAL
		}
		p.transaction = b
		return nil
	}
	return unix.EINVAL
}

// thinDevice returns the device of the kernel for a thin device, nil if it is not active.
func (f *fake) thinDevice(pool *fakeDevice, id deviceID) *fakeDevice {
	for _, d := range f.devices {
		if d.live != nil && d.live.Params == thinTable(pool.dev, id) {
			return d
		}
	}
	return nil
}

func copyDir(to, from string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	var fds [2]int
	for i, dir := range []string{to, from} {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	return copytree.Copy(context.Background(), fds[0], fds[1], copytree.Options{})
}

func (f *fake) stat(name string) (sys.DMInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sweep()
	d, err := f.named(name)
	if err != nil {
		return sys.DMInfo{}, fmt.Errorf("stat %s: %w", name, err)
	}
	return sys.DMInfo{
		Name: name, UUID: name, Dev: d.dev, Open: d.open(), Live: d.live != nil, Suspended: d.suspended,
		Leaving: d.leaving,
	}, nil
}

func (f *fake) status(name string) (sys.DMTarget, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.named(name)
	if err != nil || d.live == nil {
		return sys.DMTarget{}, fmt.Errorf("status %s: %w", name, errors.Join(err, unix.ENXIO))
	}
	t := *d.live
	if t.Type == "thin-pool" {
		p, err := f.poolOf(d.live)
		if err != nil {
			return t, err
		}
		if t.Params = p.status; t.Params == "" {
			t.Params = fmt.Sprintf("%d 10/4096 %d/%d - rw discard_passdown error_if_no_space - 1024", p.transaction,
				p.usedData, p.totalData)
		}
		return t, nil
	}
	p, id, _, err := f.thinOf(d.live)
	if err != nil {
		return t, err
	}
	t.Params = fmt.Sprintf("%d -", f.mapped(p.path(id)))
	return t, nil
}

// mapped is how many sectors the files in a directory take up.
func (f *fake) mapped(dir string) (sectors int64) {
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, _ error) error {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			sectors += st.Blocks
		}
		return nil
	})
	return sectors
}

func (f *fake) list() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.devices)), nil
}

func (f *fake) close() error { return nil }

func (f *fake) attach(file string) (dev uint64, release func() error, err error) {
	err = f.do("attach "+file, func() error {
		dev = f.newDev(7)
		f.files[dev] = file
		return nil
	})
	return dev, func() error { return nil }, err
}

func (f *fake) device(path string) (blockDevice, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, err := os.Stat(path)
	if err != nil {
		return blockDevice{}, err
	}
	dev := f.newDev(8)
	f.files[dev] = path
	head := make([]byte, 8)
	b, err := os.Open(path)
	if err != nil {
		return blockDevice{}, err
	}
	defer b.Close()
	_, err = b.ReadAt(head, 0)
	return blockDevice{dev: dev, size: uint64(st.Size()), blank: binary.LittleEndian.Uint64(head) == 0}, err
}

// content is the directory of an active thin device.
func (f *fake) content(dev uint64) (string, *fakeDevice, error) {
	d := f.byDev(dev)
	// One that is suspended is waited for, which here it need not be.
	if d == nil || d.live == nil {
		return "", nil, unix.ENXIO
	}
	p, id, _, err := f.thinOf(d.live)
	if err != nil {
		return "", nil, err
	}
	return p.path(id), d, nil
}

func (f *fake) mkfs(dev uint64, fstype, features string, args []string) error {
	return f.do(fmt.Sprintf("mkfs %s %q %q", fstype, features, args), func() error {
		dir, _, err := f.content(dev)
		if err != nil {
			return err
		}
		return errors.Join(os.Chmod(dir, 0o755), os.MkdirAll(filepath.Join(dir, "lost+found"), 0o700))
	})
}

func (f *fake) mount(dev uint64, target, fstype, options string, flags uintptr) error {
	return f.do(fmt.Sprintf("mount %s %s %d at %s", fstype, options, flags, target), func() error {
		dir, d, err := f.content(dev)
		if err != nil {
			return err
		}
		if strings.Contains(options, "prjquota") && !f.quotas {
			return unix.EINVAL
		}
		if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		d.mounts = append(d.mounts, target)
		if flags&unix.MS_RDONLY == 0 {
			return nil
		}
		return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	})
}

func (f *fake) unmount(target string) error {
	return f.do("unmount "+target, func() error { return unix.Unmount(target, unix.UMOUNT_NOFOLLOW) })
}

func (f *fake) flush(dev uint64) error {
	return f.do("flush", func() error {
		if f.byDev(dev) == nil {
			return unix.ENXIO
		}
		return nil
	})
}

func (f *fake) discard(dev uint64) error {
	return f.do("discard", func() error {
		dir, _, err := f.content(dev)
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
		return err
	})
}

func (f *fake) adopt(dir string) error { return f.do("adopt "+dir, func() error { return nil }) }

func (f *fake) used(dir string) (u drivers.Usage, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return drivers.Usage{Bytes: f.mapped(dir) * sector, Inodes: 1}, nil
}

func (f *fake) limit(dir string, q drivers.Quota) error {
	return f.do(fmt.Sprintf("limit %s: %d bytes, %d inodes", dir, q.Bytes, q.Inodes), func() error { return nil })
}

func (f *fake) grow(dir, fstype string, size uint64) error {
	return f.do(fmt.Sprintf("grow %s at %s to %d", fstype, dir, size), func() error {
		if !drivers.IsMountPoint(dir) {
			return unix.EINVAL
		}
		return nil
	})
}
