package guest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// tmpDir is on tmpfs: the root is an overlay, on which no other overlay's upper may lie.
const tmpDir = "/run/tmp"

// mount is one call of mount(2).
type mount struct {
	fstype, source, target, data string
	flags                        uintptr
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

func mountAll(mounts ...mount) error {
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// assemble makes the program's root: the host's tree under the machine's own, under a tmpfs that takes the changes.
func (j *Job) assemble() error {
	unix.Umask(0o022)
	err := mountAll(
		mount{fstype: "proc", source: "proc", target: "/proc"},
		mount{fstype: "sysfs", source: "sysfs", target: "/sys"},
	)
	if err != nil {
		return err
	}
	// The kernel may have mounted it already.
	if err := unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount devtmpfs on /dev: %w", err)
	}
	if err := load(); err != nil {
		return err
	}
	err = mountAll(
		mount{fstype: j.Root.Type, source: j.Root.Source, target: hostDir, data: j.Root.Options, flags: unix.MS_RDONLY},
		mount{fstype: j.Tools.Type, source: j.Tools.Source, target: toolsDir, data: j.Tools.Options, flags: unix.MS_RDONLY},
		mount{fstype: "tmpfs", source: "changes", target: changesDir, data: "mode=755"},
	)
	if err != nil {
		return err
	}
	upper, work := filepath.Join(changesDir, "upper"), filepath.Join(changesDir, "work")
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	err = mount{
		fstype: "overlay", source: "root", target: newRoot,
		data: fmt.Sprintf("lowerdir=%s:%s,upperdir=%s,workdir=%s", toolsDir, hostDir, upper, work),
	}.do()
	if err != nil {
		return err
	}
	if err := enter(newRoot); err != nil {
		return err
	}
	return furnish()
}

// enter makes dir the root of this process and all that it starts. What is mounted on the old root's /dev, /proc and /sys
// goes along. The initial file system can't be left by pivot_root; cf. switch_root(8).
func enter(dir string) error {
	for _, d := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(d, dir+d, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", d, err)
		}
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return os.Chdir("/")
}

// furnish mounts and makes what programs expect of a running system.
func furnish() error {
	err := mountAll(
		mount{fstype: "tmpfs", source: "run", target: "/run", data: "mode=755"},
		mount{fstype: "tmpfs", source: "tmp", target: tmpDir, data: "mode=1777"},
		mount{fstype: "tmpfs", source: "shm", target: "/dev/shm", data: "mode=1777"},
		mount{fstype: "devpts", source: "devpts", target: "/dev/pts", data: "gid=5,mode=620,ptmxmode=666"},
		mount{fstype: "cgroup2", source: "cgroup2", target: "/sys/fs/cgroup"},
	)
	if err != nil {
		return err
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, "/dev/"+name); err != nil && !os.IsExist(err) {
			return err
		}
	}
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return err
	}
	return moduleNodes()
}

// moduleNodes makes the device nodes whose opening loads a module, which udev would make: /dev/fuse, /dev/loop-control,
// /dev/mapper/control, /dev/zfs. cf. kmod static-nodes.
func moduleNodes() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:]), "modules.devname"))
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var module, name string
		var kind rune
		var major, minor uint32
		if n, _ := fmt.Sscanf(lines.Text(), "%s %s %c%d:%d", &module, &name, &kind, &major, &minor); n != 5 || kind != 'c' {
			continue // the first line is a comment
		}
		node := filepath.Join("/dev", name)
		if err := os.MkdirAll(filepath.Dir(node), 0o755); err != nil {
			return err
		}
		mode := uint32(unix.S_IFCHR | 0o600)
		if strings.HasSuffix(name, "fuse") {
			mode |= 0o666
		}
		if err := unix.Mknod(node, mode, int(unix.Mkdev(major, minor))); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("mknod %s: %w", node, err)
		}
	}
	return lines.Err()
}
