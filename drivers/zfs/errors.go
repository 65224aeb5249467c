package zfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	zfs "github.com/mistifyio/go-zfs/v4"
	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// What the commands say and nothing else tells. The words are those of libzfs, which no distribution translates.
var (
	errNoDataset = errors.New("no such dataset")
	errBusy      = errors.New("the dataset is busy")
)

// explain adds to a failure of a command the class that its words tell. Nil stays nil.
func explain(err error) error {
	var failed *zfs.Error
	if !errors.As(err, &failed) {
		return err
	}
	said := strings.TrimSpace(failed.Stderr)
	for _, c := range []struct {
		words string
		class error
	}{
		{"does not exist", errNoDataset},
		{"could not find any snapshots", errNoDataset},
		{"dataset is busy", errBusy},
		{"already exists", drivers.ErrExists},
		{"dependent clones", drivers.ErrInUse},
		{"permission denied", drivers.ErrPrerequisites},
		{"out of space", unix.ENOSPC},
		{"quota exceeded", unix.EDQUOT},
	} {
		if strings.Contains(said, c.words) {
			return fmt.Errorf("%w: %w", err, c.class)
		}
	}
	return err
}

// checkTools returns an error that wraps ErrPrerequisites and says what is missing to use zfs at all.
func checkTools() error {
	if _, err := exec.LookPath("zfs"); err != nil {
		return fmt.Errorf("the command zfs is not installed (Debian and Ubuntu: package zfsutils-linux): %w", drivers.ErrPrerequisites)
	}
	return nil
}

// checkModule returns an error that wraps ErrPrerequisites if the kernel has no zfs, or this user may not use it.
func checkModule(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s may not be opened by this user (zfs is for root of the machine): %w", device, drivers.ErrPrerequisites)
	default:
		return fmt.Errorf("the kernel has no zfs (%w); load the module with modprobe zfs, or install it: %w", err, drivers.ErrPrerequisites)
	}
}
