package doctor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/fs/fusefs"
)

// private lets nothing that is mounted here be seen elsewhere, and hides the scratch directory under a tmpfs.
func private(scratch string) error {
	// In a chroot the root is no mount point, which is no obstacle in a namespace that nobody shares.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("make mounts private: %w", err)
	}
	ownProc()
	if err := unix.Mount("plyfs-doctor", scratch, "tmpfs", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	return nil
}

// ownProc mounts the /proc of a new PID namespace. In a container whose /proc has hidden parts that is not allowed to a
// new user namespace, and the old one does for most.
func ownProc() {
	_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// tryDrivers tries the graph drivers for the store in the directory of the arguments.
func tryDrivers(s *steps, _ string, args []string) {
	s.must("private", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") })
	s.must("proc", func() error {
		return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	})
	s.do("probe", func() (string, error) {
		out, err := self(append(probeCommand(), args...)...).Output()
		// The exit code says that none is usable; the output says why.
		if json.Valid(out) {
			err = nil
		}
		return string(out), err
	})
}

// tryNamespace finds out whether the namespace is good for anything: AppArmor lets one be made that has no rights.
func tryNamespace(s *steps, scratch string, _ []string) {
	s.must("tmpfs", func() error { return private(scratch) })
}

// tryKernel asks the kernel what its FUSE can do. The argument is a directory for a file that is offered for
// passthrough; that of a tmpfs is taken where none can be made.
func tryKernel(s *steps, scratch string, args []string) {
	var backing *os.File
	if len(args) > 0 {
		backing, _ = unnamed(args[0])
	}
	if !s.must("tmpfs", func() error { return private(scratch) }) {
		return
	}
	s.do("init", func() (string, error) {
		target := filepath.Join(scratch, "mnt")
		if err := os.Mkdir(target, 0o700); err != nil {
			return "", err
		}
		if backing == nil {
			var err error
			if backing, err = unnamed(scratch); err != nil {
				return "", err
			}
		}
		defer backing.Close()
		k, err := fusefs.ProbeKernel(target, int(backing.Fd()))
		if err != nil {
			return "", err
		}
		text, err := json.Marshal(k)
		return string(text), err
	})
}

// unnamed makes a file without a name.
func unnamed(dir string) (*os.File, error) {
	return os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
}

// tryMount goes the whole way of a mount in a namespace of its own.
func tryMount(s *steps, scratch string, _ []string) {
	if s.must("tmpfs", func() error { return private(scratch) }) {
		chain(s, scratch)
	}
}

// tryFusermount is tryMount for a plain user, in the namespace that the user is in.
func tryFusermount(s *steps, scratch string, _ []string) { chain(s, scratch) }

// chain mounts, changes something, unmounts, and looks at the upper.
func chain(s *steps, dir string) {
	path := func(name string) string { return filepath.Join(dir, name) }
	start := time.Now()
	s.must("layers", func() error {
		for _, d := range []string{"lower", "upper", "work", "merged"} {
			if err := os.Mkdir(path(d), 0o755); err != nil {
				return err
			}
		}
		return os.WriteFile(path("lower/file"), []byte("lower"), 0o644)
	})
	mounted := s.must("mount", func() error {
		opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off", path("lower"), path("upper"), path("work"))
		return runSelf("mount", "-o", opts, path("merged"))
	})
	if mounted {
		s.must("use", func() error { return useMount(path("merged")) })
		// Also after a failure.
		s.note("unmount", "", runSelf("umount", path("merged")))
	}
	s.do("upper", func() (string, error) {
		text, err := os.ReadFile(path("upper/file"))
		if err == nil && string(text) != changed {
			err = fmt.Errorf("the upper has %q, and not what was written: %w", text, unix.EIO)
		}
		return time.Since(start).Round(time.Millisecond).String(), err
	})
}

// changed is what is written through a mount.
const changed = "changed"

func useMount(merged string) error {
	file := filepath.Join(merged, "file")
	if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if string(text) != changed {
		return fmt.Errorf("read %s: %q is not what was written: %w", file, text, unix.EIO)
	}
	return nil
}

// runSelf runs this program; the error is what it said.
func runSelf(args ...string) error {
	cmd := self(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if text := strings.TrimSpace(stderr.String()); text != "" {
			return errors.New(strings.TrimPrefix(text, "plyfs: "))
		}
		return fmt.Errorf("plyfs %s: %w", args[0], err)
	}
	return nil
}

// tryOverlay mounts the kernel's overlayfs, in a user namespace with userxattr, and deletes something in it.
func tryOverlay(s *steps, scratch string, args []string) {
	path := func(name string) string { return filepath.Join(scratch, name) }
	s.must("tmpfs", func() error { return private(scratch) })
	s.must("layers", func() error {
		for _, d := range []string{"lower", "upper", "work", "merged"} {
			if err := os.Mkdir(path(d), 0o755); err != nil {
				return err
			}
		}
		return os.WriteFile(path("lower/file"), nil, 0o644)
	})
	s.must("mount", func() error {
		opts := append([]string{
			"lowerdir=" + path("lower"), "upperdir=" + path("upper"), "workdir=" + path("work"),
		}, args...)
		return unix.Mount("overlay", path("merged"), "overlay", 0, strings.Join(opts, ","))
	})
	s.must("delete", func() error { return os.Remove(path("merged/file")) })
	s.must("unmount", func() error { return unix.Unmount(path("merged"), unix.MNT_DETACH) })
}
