package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

const (
	loopFile = "/loop.img"
	loopDir  = "/loop"
	loopSize = 16 << 30 // sparse

	loFlagsAutoclear = 4  // LO_FLAGS_AUTOCLEAR
	loFlagsDirectIO  = 16 // LO_FLAGS_DIRECT_IO
	loopTries        = 16
)

// openLoop makes an ext4 in a sparse file below base and mounts it at base/loop: a file system whose layout does not
// depend on what the disk went through, and of which nothing stays in memory when the caches are dropped. The file is
// read without the cache of the file system that holds it, where that can be.
func openLoop(base string) (Medium, error) {
	if err := checkMedium(base, loopMedium); err != nil {
		return Medium{}, err
	}
	img, dir := base+loopFile, base+loopDir
	f, err := os.OpenFile(img, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Medium{}, err
	}
	defer f.Close()
	if err := f.Truncate(loopSize); err != nil {
		return Medium{}, err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", img).CombinedOutput(); err != nil {
		return Medium{}, fmt.Errorf("mkfs.ext4 (leave loop out of --layers-on to do without): %w: %s", err, out)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return Medium{}, err
	}
	dev, err := attachLoop(f)
	if err != nil {
		return Medium{}, fmt.Errorf("loop device (leave loop out of --layers-on to do without): %w", err)
	}
	// From here on the mount alone holds the device.
	defer dev.Close()
	// Without noinit_itable the kernel would write inode tables in the background of the measurements.
	if err := unix.Mount(dev.Name(), dir, "ext4", unix.MS_NOATIME, "noinit_itable"); err != nil {
		return Medium{}, fmt.Errorf("mount %s: %w", dev.Name(), err)
	}
	return Medium{Name: loopMedium, Dir: dir}, nil
}

// attachLoop binds a free loop device to f. It is free again when the last who has it open or mounted is gone.
func attachLoop(f *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free one: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd())}
		config.Info.Flags = loFlagsAutoclear | loFlagsDirectIO
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		// Someone else may have taken it in between.
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configure %s: %w", dev.Name(), err)
		}
	}
	return nil, fmt.Errorf("none stayed free in %d attempts: %w", loopTries, unix.EBUSY)
}
