package overlaystore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// busyTries is how often a busy mount is tried again, busyWait apart: programs that look at all mounts hold one for
// moments.
const (
	busyTries = 10
	busyWait  = 20 * time.Millisecond
)

// Unmount unmounts target. The error wraps drivers.ErrInUse if something in it is in use.
func Unmount(ctx context.Context, target string) error {
	for try := 1; ; try++ {
		err := unmount(target, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("unmount %s: %w", target, err)
		case try == busyTries:
			return fmt.Errorf("unmount %s: something in it is open (fuser -m %s): %w", target, target, drivers.ErrInUse)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(busyWait):
		}
	}
}

// Detach takes a mount away that may be in use.
func Detach(target string) error {
	if err := unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach %s: %w", target, err)
	}
	return nil
}

// unmount unmounts target, through fusermount3 where only that may.
func unmount(target string, flags int) error {
	err := unix.Unmount(target, flags)
	if !errors.Is(err, unix.EPERM) || os.Geteuid() == 0 {
		return err
	}
	args := []string{"-u"}
	if flags&unix.MNT_DETACH != 0 {
		args = append(args, "-z")
	}
	out, err := exec.Command("fusermount3", append(args, "--", target)...).CombinedOutput()
	switch text := strings.TrimSpace(string(out)); {
	case err == nil:
		return nil
	case strings.Contains(text, "busy"):
		return unix.EBUSY
	default:
		return fmt.Errorf("fusermount3: %s: %w", text, err)
	}
}
