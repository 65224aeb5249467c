package overlay2

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/internal/overlaystore"
)

// mounter mounts by the kernel.
type mounter struct {
	opts   options
	userNS bool
	quotas *projectQuotas // nil for layers that never have one
}

func (m mounter) kernelMount(k overlaystore.Stack) overlaystore.KernelMount {
	if k.Upper == "" && len(k.Lowers) == 1 {
		// The kernel wants two lowers where there is no upper (cf. overlayfs super.c ovl_get_lowerstack).
		k.Lowers = []string{k.Lowers[0], k.Empty}
	}
	return overlaystore.KernelMount{Stack: k, Options: mountOptions(m.opts, k, m.userNS)}
}

// Plan implements overlaystore.Mounter.
func (m mounter) Plan(k overlaystore.Stack) drivers.Mount { return m.kernelMount(k).Plan() }

// Mount implements overlaystore.Mounter.
func (m mounter) Mount(ctx context.Context, k overlaystore.Stack, target string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	mount := m.kernelMount(k)
	if err := mount.Mount(target); err != nil || mount.Upper == "" || mount.ReadOnly {
		return err
	}
	readOnly, err := isReadOnly(target)
	if err != nil || !readOnly {
		return errors.Join(err, undo(target, err))
	}
	return m.mountFull(mount, target)
}

// mountFull mounts again what the kernel mounted read-only without a word, for it could not make its work directory: the upper's
// quota is used up (cf. overlayfs super.c ovl_get_workdir). Who wants to delete something needs it writable, so the quota makes
// room for as long as the mount takes. A crash meanwhile leaves it that much higher.
func (m mounter) mountFull(mount overlaystore.KernelMount, target string) error {
	if err := overlaystore.Detach(target); err != nil {
		return err
	}
	upper := filepath.Join(mount.Home, mount.Upper)
	err := m.quotas.raised(upper, func() error {
		if err := mount.Mount(target); err != nil {
			return err
		}
		readOnly, err := isReadOnly(target)
		if err == nil && readOnly {
			err = fmt.Errorf("the kernel mounts it only read-only, for it cannot make a directory in %s: %w",
				filepath.Join(mount.Home, mount.Work), unix.EROFS)
		}
		return errors.Join(err, undo(target, err))
	})
	if err != nil {
		return fmt.Errorf("mount %s: %w; the kernel's log may say more (dmesg)", target, err)
	}
	return nil
}

// undo takes a mount away again if err is not nil.
func undo(target string, err error) error {
	if err == nil {
		return nil
	}
	return overlaystore.Detach(target)
}

func isReadOnly(target string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return false, fmt.Errorf("statfs %s: %w", target, err)
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}

// Flush implements overlaystore.Mounter. A file of an overlay has its pages in the upper's file.
func (m mounter) Flush(string) error { return nil }

// Unmount implements overlaystore.Mounter. What is written to an overlay is in its upper at once.
func (m mounter) Unmount(ctx context.Context, _, target string) error {
	return overlaystore.Unmount(ctx, target)
}
