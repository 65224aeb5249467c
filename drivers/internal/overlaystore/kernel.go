package overlaystore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// KernelMount is a mount of the kernel's overlayfs.
type KernelMount struct {
	Stack
	// Options are further options, "key=value" or "key".
	Options []string
}

// Mount mounts on target. It uses the mount interface of Linux 6.7 and later, in which layers are given one by one, and
// on older kernels mount(2), whose options must fit a page. The error carries the kernel's own message where there is
// one.
func (m KernelMount) Mount(target string) error {
	err := m.mountByFSConfig(target)
	if errors.Is(err, errOldKernel) {
		return m.mountByPage(target)
	}
	return err
}

// errOldKernel says that the kernel does not take layers one by one.
var errOldKernel = errors.New("the kernel is too old")

// maxParameter is the longest value that fsconfig(2) takes.
const maxParameter = 255

func (m KernelMount) mountByFSConfig(target string) error {
	home, err := unix.Open(m.Home, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", m.Home, err)
	}
	defer unix.Close(home)
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENODEV) {
		return errOldKernel // or no overlayfs at all, of which mount(2) will tell
	}
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	for _, p := range m.parameters(home) {
		if err := configure(fs, p[0], p[1]); err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		if errors.Is(err, unix.EINVAL) && takesAnything() {
			return errOldKernel
		}
		return fmt.Errorf("mount overlay: %w%s", err, kernelMessage(fs))
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount overlay: %w%s", err, kernelMessage(fs))
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount to %s: %w", target, err)
	}
	return nil
}

// takesAnything says whether the kernel collects the options of an overlay without looking at them, and so finds out only in the
// end that it knows nothing of layers given one by one (Linux before 6.5; cf. fs_context.c legacy_parse_param).
func takesAnything() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	return unix.FsconfigSetFlag(fs, "plyfs_no_such_option") == nil
}

func configure(fs int, key, value string) (err error) {
	if value == "" {
		err = unix.FsconfigSetFlag(fs, key)
	} else {
		err = unix.FsconfigSetString(fs, key, value)
	}
	if err == nil {
		return nil
	}
	message := kernelMessage(fs)
	unknown := key == "lowerdir+" && strings.Contains(message, "Unknown parameter")
	// Who collects options takes no more than a page of them.
	if errors.Is(err, unix.EINVAL) && (unknown || takesAnything()) {
		return errOldKernel
	}
	return fmt.Errorf("overlay option %s=%s: %w%s", key, value, err, message)
}

// parameters are what describes the mount, in order. home is a descriptor of Home, for paths that are too long
// otherwise, or hold what the kernel takes for an escape in some of them and not in others.
func (m KernelMount) parameters(home int) [][2]string {
	short := func(p string) string {
		if abs := m.Path(p); filepath.IsAbs(p) || len(abs) <= maxParameter && !strings.Contains(abs, `\`) {
			return abs
		}
		return fmt.Sprintf("/proc/self/fd/%d/%s", home, p)
	}
	list := [][2]string{{"source", "overlay"}}
	for _, l := range m.Lowers {
		list = append(list, [2]string{"lowerdir+", short(l)})
	}
	if m.Upper != "" {
		list = append(list, [2]string{"upperdir", short(m.Upper)}, [2]string{"workdir", short(m.Work)})
	}
	if m.ReadOnly || m.Upper == "" {
		list = append(list, [2]string{"ro", ""})
	}
	if m.Label != "" {
		list = append(list, [2]string{"context", m.Label})
	}
	for _, o := range m.Options {
		key, value, _ := strings.Cut(o, "=")
		list = append(list, [2]string{key, value})
	}
	return list
}

// kernelMessage reads what the kernel logged to the descriptor of a mount that is being made.
func kernelMessage(fs int) string {
	var all strings.Builder
	buf := make([]byte, 512)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			return all.String()
		}
		all.WriteString("; " + strings.TrimSpace(string(buf[:n])))
	}
}

// mountByPage mounts through mount(2), with paths relative to Home so that many fit.
func (m KernelMount) mountByPage(target string) error {
	data := m.data()
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("%d layers do not fit the mount options of this kernel; Linux 6.7 takes %d: %w",
			len(m.Lowers), maxLowers, drivers.ErrNotSupported)
	}
	var flags uintptr
	if m.ReadOnly || m.Upper == "" {
		flags = unix.MS_RDONLY
	}
	done := make(chan error, 1)
	go func() {
		// The thread gets a working directory of its own, and so ends with this goroutine: it is never unlocked.
		runtime.LockOSThread()
		done <- mountIn(m.Home, target, flags, data)
	}()
	return <-done
}

func mountIn(dir, target string, flags uintptr, data string) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("chdir %s: %w", dir, err)
	}
	// The process's first thread does not end with its goroutine, and would keep the store's file system busy.
	defer func() { _ = unix.Chdir("/") }()
	if err := unix.Mount("overlay", target, "overlay", flags, data); err != nil {
		return fmt.Errorf("mount overlay (dmesg may say more): %w", err)
	}
	return nil
}

// data are the options as mount(2) takes them.
func (m KernelMount) data() string {
	return strings.Join(m.options(func(p string) string { return p }), ",")
}

// options are the options as mount(8) takes them, with each path as of says.
func (m KernelMount) options(of func(path string) string) []string {
	lowers := make([]string, len(m.Lowers))
	for i, l := range m.Lowers {
		lowers[i] = escapeLower(of(l))
	}
	list := []string{"lowerdir=" + strings.Join(lowers, ":")}
	if m.Upper != "" {
		list = append(list, "upperdir="+escapeComma(of(m.Upper)), "workdir="+escapeComma(of(m.Work)))
	}
	if m.Label != "" {
		list = append(list, fmt.Sprintf("context=%q", m.Label))
	}
	return append(list, m.Options...)
}

// Plan is the mount as mount(8) takes it, with absolute paths.
func (m KernelMount) Plan() drivers.Mount {
	list := m.options(m.Path)
	if m.ReadOnly || m.Upper == "" {
		list = append(list, "ro")
	}
	return drivers.Mount{Type: "overlay", Source: "overlay", Options: list}
}

// escapeLower and escapeComma take the meaning from what separates layers and options (cf. overlayfs params.c
// ovl_next_opt and ovl_unescape).
func escapeLower(path string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`).Replace(path)
}

func escapeComma(path string) string { return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(path) }
