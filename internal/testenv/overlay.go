package testenv

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Overlay describes a mount of the kernel's overlayfs.
type Overlay struct {
	Lowers      []string // topmost first
	Upper, Work string   // empty for a read-only mount
	Options     []string // further options, "key=value" or "key"
	ReadOnly    bool
}

// MountOverlay mounts the kernel's overlayfs at target. It uses the new mount interface, so that the number of lowers is
// not bounded by a page of options. The error carries the kernel's own message if there is one.
//
// An upper that a namespace which a test running beside copied still holds mounted is busy for as long as that lives: it
// is waited for.
func MountOverlay(o Overlay, target string) error {
	deadline := time.Now().Add(busyWait)
	for {
		err := mountOverlay(o, target)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(busyPoll)
	}
}

const (
	busyWait = 30 * time.Second
	busyPoll = 20 * time.Millisecond
)

func mountOverlay(o Overlay, target string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	for _, kv := range o.params() {
		if kv[1] == "" {
			err = unix.FsconfigSetFlag(fs, kv[0])
		} else {
			err = unix.FsconfigSetString(fs, kv[0], kv[1])
		}
		if err != nil {
			return fmt.Errorf("overlay option %s=%s: %w%s", kv[0], kv[1], err, kernelMessage(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("mount overlay: %w%s", err, kernelMessage(fs))
	}
	attrs := 0
	if o.ReadOnly {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return fmt.Errorf("fsmount overlay: %w", err)
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount %s: %w", target, err)
	}
	return nil
}

func (o Overlay) params() [][2]string {
	var kv [][2]string
	key := "lowerdir+"
	if len(o.Lowers) == 1 && !strings.ContainsAny(o.Lowers[0], `:\,`) {
		key = "lowerdir" // which kernels before 6.8 know, too
	}
	for _, l := range o.Lowers {
		kv = append(kv, [2]string{key, l})
	}
	if o.Upper != "" {
		kv = append(kv, [2]string{"upperdir", o.Upper}, [2]string{"workdir", o.Work})
	}
	for _, opt := range o.Options {
		k, v, _ := strings.Cut(opt, "=")
		kv = append(kv, [2]string{k, v})
	}
	return kv
}

// kernelMessage reads what the kernel logged to the configuration descriptor.
func kernelMessage(fs int) string {
	var all strings.Builder
	buf := make([]byte, 512)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		all.WriteString("; " + strings.TrimSpace(string(buf[:n])))
	}
	return all.String()
}
