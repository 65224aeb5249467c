package devicemapper

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

const (
	loopControl  = "/dev/loop-control"
	loopMinor    = 237 // of loop-control, a misc device
	loopCtlFree  = unix.LOOP_CTL_GET_FREE
	loopAttempts = 64
)

// attach implements host. The device goes by itself when nobody has it open any more, so nothing stays behind after a
// kill.
func (realHost) attach(file string) (dev uint64, release func() error, err error) {
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return 0, nil, err
	}
	defer backing.Close()
	ctl, err := openLoopControl()
	if err != nil {
		return 0, nil, fmt.Errorf("loop devices (modprobe loop): %w: %w", err, drivers.ErrPrerequisites)
	}
	defer ctl.Close()
	for range loopAttempts {
		f, err := configureLoop(ctl, backing)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENXIO) {
			// Another process took it, or let it go, meanwhile.
			continue
		}
		if err != nil {
			return 0, nil, fmt.Errorf("loop device of %s: %w", file, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return 0, nil, errors.Join(err, f.Close())
		}
		return st.Rdev, f.Close, nil
	}
	return 0, nil, fmt.Errorf("loop device of %s: others were faster %d times: %w", file, loopAttempts,
		drivers.ErrInUse)
}

func openLoopControl() (*os.File, error) {
	f, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	tmp := fmt.Sprintf("/dev/.plyfs-loop-%d", os.Getpid())
	if err := unix.Mknod(tmp, unix.S_IFCHR|0o600, int(unix.Mkdev(miscMajor, loopMinor))); err != nil && !errors.Is(err,
		unix.EEXIST) {
		return nil, err
	}
	f, err = os.OpenFile(tmp, os.O_RDWR, 0)
	return f, errors.Join(err, unix.Unlink(tmp))
}

// configureLoop attaches a file to a free device, which it returns open.
func configureLoop(ctl, backing *os.File) (*os.File, error) {
	number, err := unix.IoctlRetInt(int(ctl.Fd()), loopCtlFree)
	if err != nil {
		return nil, err
	}
	path, err := loopNode(number)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	config := unix.LoopConfig{Fd: uint32(backing.Fd())}
	// Without direct I/O all is cached twice; where the file system has none, the kernel does without.
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:len(config.Info.File_name)-1], backing.Name())
	if err := sys.Retry(func() error { return unix.IoctlLoopConfigure(int(f.Fd()), &config) }); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// loopNode returns the node of the numbered loop device. One that nobody made is made: devices can have partitions,
// so the minor number is the kernel's to say.
func loopNode(number int) (string, error) {
	name := fmt.Sprintf("loop%d", number)
	text, err := os.ReadFile("/sys/block/" + name + "/dev")
	if errors.Is(err, os.ErrNotExist) {
		return "/dev/" + name, nil
	}
	if err != nil {
		return "", err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err != nil {
		return "", fmt.Errorf("/sys/block/%s/dev: %w", name, err)
	}
	return node(unix.Mkdev(major, minor))
}
