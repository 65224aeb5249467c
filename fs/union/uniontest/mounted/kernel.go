package mounted

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
	"plyfs/internal/testenv"
)

// Kernel is the kernel's overlayfs with all of its features on: the oracle.
type Kernel struct{}

// Name returns "kernel".
func (Kernel) Name() string { return "kernel" }

// Traits returns those of a mount by the machine's root, or in a user namespace what is left of them.
func (Kernel) Traits() uniontest.Traits {
	return uniontest.Kernel | rootTraits()
}

func rootTraits() uniontest.Traits {
	t := uniontest.Mounted | uniontest.SharedUpper
	if !testenv.InUserNamespace() {
		t |= uniontest.Devices | uniontest.Trusted | uniontest.InitialRoot
	}
	return t
}

// Open mounts.
func (Kernel) Open(t testing.TB, s uniontest.Spec) (uniontest.Tree, error) {
	t.Helper()
	return openTree(t, s, startKernel)
}

type kernelMount struct{ mnt string }

func startKernel(s uniontest.Spec, mnt string) (session, error) {
	o := testenv.Overlay{Lowers: s.Lowers, Upper: s.Upper, Work: s.Work, ReadOnly: has(s.Options, "ro")}
	o.Options = kernelOptions(s)
	if err := testenv.MountOverlay(o, mnt); err != nil {
		return nil, err
	}
	return kernelMount{mnt}, nil
}

// kernelOptions adds to the options of the spec those that are on by default in plyfs.
func kernelOptions(s uniontest.Spec) []string {
	var opts []string
	given := make(map[string]bool)
	for _, o := range s.Options {
		if v, ok := strings.CutPrefix(o, "hardlink_index="); ok {
			o = "index=" + v
		}
		k, _, _ := strings.Cut(o, "=")
		switch k {
		case "metacopy", "redirect_dir", "index", "volatile", "xino":
			given[k] = true
			opts = append(opts, o)
		}
	}
	defaults := map[string]string{"redirect_dir": "on", "metacopy": "on", "xino": "auto"}
	if testenv.InUserNamespace() {
		// userxattr excludes redirects and metacopy, cf. overlayfs params.c ovl_fs_params_verify.
		opts = append(opts, "userxattr")
		defaults = nil
	}
	if given["redirect_dir"] {
		// Metacopy wants redirects, cf. ovl_fs_params_verify.
		delete(defaults, "metacopy")
	}
	if s.Upper != "" && !given["index"] {
		opts = append(opts, "index=on")
	}
	for k, v := range defaults {
		if !given[k] {
			opts = append(opts, k+"="+v)
		}
	}
	return opts
}

func (k kernelMount) end() error { return unmount(k.mnt) }

// unmount waits out the moments in which something still uses a mount.
func unmount(mnt string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := unix.Unmount(mnt, unix.UMOUNT_NOFOLLOW)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			_ = unix.Unmount(mnt, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
			return fmt.Errorf("unmount %s: %w", mnt, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
