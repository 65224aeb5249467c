package devicemapper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// mapper is the device mapper; tests have one that they can look into. Names are those of devices. The errors are the
// kernel's, with the name of the device: ENXIO if there is none, EBUSY if it is in use, or in the way.
type mapper interface {
	// create makes a device without a table.
	create(name string) error
	// load gives a device a table of one target, which counts from the next resume.
	load(name string, t sys.DMTarget) error
	// suspend holds back all I/O, after what is under way is done; resume lets it pass.
	suspend(name string) error
	resume(name string) error
	// remove removes a device; removeLater does so with its last user.
	remove(name string) error
	removeLater(name string) error
	message(name, text string) error
	// stat describes a device, status returns what its target says of its state.
	stat(name string) (sys.DMInfo, error)
	status(name string) (sys.DMTarget, error)
	// list returns the names of all devices.
	list() ([]string, error)
	close() error
}

const (
	mapperDir   = "/dev/mapper"
	controlPath = mapperDir + "/control"
	// The device of the control node: major of misc devices, MAPPER_CTRL_MINOR.
	miscMajor    = 10
	controlMinor = 236
	// The first interface with all that is used here.
	oldestMinor = 27
)

// kernelMapper is the machine's device mapper.
type kernelMapper struct{ ctl *os.File }

// openMapper opens the machine's device mapper. Where that can't be used, the error wraps ErrPrerequisites or
// ErrNotSupported and says what to do.
func openMapper() (kernelMapper, error) {
	f, err := openControl()
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return kernelMapper{}, fmt.Errorf("the device mapper is for root of the machine: %w: %w", err,
			drivers.ErrNotSupported)
	case err != nil:
		return kernelMapper{}, fmt.Errorf("the kernel has no device mapper, or its module is not loaded "+
			"(modprobe dm_mod): %w: %w", err, drivers.ErrPrerequisites)
	}
	m := kernelMapper{ctl: f}
	if err := m.check(); err != nil {
		return kernelMapper{}, errors.Join(err, m.close())
	}
	return m, nil
}

// openControl opens the device mapper's control device, also where nobody made a node for it.
func openControl() (*os.File, error) {
	f, err := os.OpenFile(controlPath, os.O_RDWR, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	// Beneath another name, to leave the directory that udev makes alone.
	node := fmt.Sprintf("/dev/.plyfs-dm-%d", os.Getpid())
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(miscMajor, controlMinor))); err != nil &&
		!errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make a node for the device mapper: %w", err)
	}
	f, err = os.OpenFile(node, os.O_RDWR, 0)
	return f, errors.Join(err, unix.Unlink(node))
}

func (m kernelMapper) check() error {
	version, err := sys.DMVersion(m.fd())
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("the device mapper is for root of the machine: %w: %w", err, drivers.ErrNotSupported)
	}
	if err != nil {
		return fmt.Errorf("version of the device mapper: %w: %w", err, drivers.ErrPrerequisites)
	}
	if version[0] != 4 || version[1] < oldestMinor {
		return fmt.Errorf("the device mapper's interface is %d.%d, and has to be 4.%d or newer (Linux 3.13): %w",
			version[0], version[1],
			oldestMinor, drivers.ErrPrerequisites)
	}
	for _, target := range []string{"thin-pool", "thin"} {
		// ENOTTY: a kernel too old to be asked. It loads the module when it is used.
		if _, err := sys.DMTargetVersion(m.fd(), target); err != nil && !errors.Is(err, unix.ENOTTY) {
			return fmt.Errorf("the device mapper has no target %s: its module is not loaded "+
				"(modprobe dm_thin_pool), or the kernel lacks it: %w: %w", target, err, drivers.ErrPrerequisites)
		}
	}
	return nil
}

func (m kernelMapper) fd() int { return int(m.ctl.Fd()) }

// named says which device an error is about.
func named(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s device %s: %w", what, name, err)
}

func (m kernelMapper) create(name string) error {
	_, err := sys.DMCreate(m.fd(), name, name)
	return named("create", name, err)
}

func (m kernelMapper) load(name string, t sys.DMTarget) error {
	return named("load the table of", name, sys.DMLoad(m.fd(), name, []sys.DMTarget{t}))
}

func (m kernelMapper) suspend(name string) error {
	return named("suspend", name, sys.DMSuspend(m.fd(), name))
}

func (m kernelMapper) resume(name string) error {
	return named("resume", name, sys.DMResume(m.fd(), name))
}

func (m kernelMapper) remove(name string) error {
	return named("remove", name, sys.DMRemove(m.fd(), name))
}

func (m kernelMapper) removeLater(name string) error {
	return named("remove", name, sys.DMRemoveLater(m.fd(), name))
}

func (m kernelMapper) message(name, text string) error {
	_, err := sys.DMMessage(m.fd(), name, 0, text)
	return named("message "+strconv.Quote(text)+" to", name, err)
}

func (m kernelMapper) stat(name string) (sys.DMInfo, error) {
	info, err := sys.DMStat(m.fd(), name)
	return info, named("look at", name, err)
}

func (m kernelMapper) status(name string) (sys.DMTarget, error) {
	all, err := sys.DMStatus(m.fd(), name)
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("its table has %d lines, not 1: %w", len(all), drivers.ErrInvalid)
	}
	if err != nil {
		return sys.DMTarget{}, named("state of", name, err)
	}
	return all[0], nil
}

func (m kernelMapper) list() ([]string, error) {
	names, err := sys.DMList(m.fd())
	if err != nil {
		return nil, fmt.Errorf("list the devices of the device mapper: %w", err)
	}
	return names, nil
}

func (m kernelMapper) close() error { return m.ctl.Close() }

// node returns the path of a block device's node, which it makes where the kernel has not.
func node(dev uint64) (string, error) {
	path := filepath.Join("/dev", blockName(dev))
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev {
		return path, nil
	}
	if err == nil {
		// Of a device that had another number in its time.
		if err := unix.Unlink(path); err != nil {
			return "", fmt.Errorf("node %s is not of device %s: %w", path, devNumber(dev), err)
		}
	}
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(dev)); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", fmt.Errorf("make node %s: %w", path, err)
	}
	return path, nil
}

// blockName is the name that the kernel has for a block device.
func blockName(dev uint64) string {
	target, err := os.Readlink("/sys/dev/block/" + devNumber(dev))
	if err != nil {
		return "plyfs-" + strings.ReplaceAll(devNumber(dev), ":", "-")
	}
	return filepath.Base(target)
}
