package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// MountConfig describes the mount that a Device is for.
type MountConfig struct {
	// Target is the directory to mount on, or "/dev/fd/N" for a /dev/fuse descriptor on which somebody else has
	// mounted already; then all other fields are without effect.
	Target string
	// FSName is the source and Subtype the type behind "fuse." that mount(8) and df(1) show.
	FSName, Subtype string
	// Flags are MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME and the like.
	Flags uintptr
	// Options are passed to the kernel as they are, such as `context="system_u:object_r:container_file_t:s0"`.
	Options []string
	// AllowOther lets other users in. It implies DefaultPermissions: without the kernel's checks a path that is
	// cached would be open to everybody.
	AllowOther bool
	// DefaultPermissions lets the kernel check modes and ACLs.
	DefaultPermissions bool
	// MaxRead bounds READ requests, in bytes; 0 for no bound.
	MaxRead int
}

// Device is an open /dev/fuse descriptor and the mount that it serves.
type Device struct {
	fd     int
	target string // empty when somebody else mounted
	helper bool   // mounted by fusermount3, which then has to unmount
	mount  mountIdentity

	closeOnce sync.Once
	closeErr  error
}

// mountIdentity tells a mount from whatever may be mounted at the same place later.
type mountIdentity struct {
	id           uint64
	major, minor uint32
}

// Mount opens /dev/fuse and mounts it. Nobody serves the mount yet: every access to it blocks until FS.Serve runs.
// It calls mount(2) itself where it may (root, and root of a user namespace), else fusermount3.
func Mount(cfg MountConfig) (*Device, error) {
	if fd, ok := PassedFD(cfg.Target); ok {
		return adopt(fd)
	}
	if cfg.AllowOther {
		cfg.DefaultPermissions = true
	}
	target, err := filepath.Abs(cfg.Target)
	if err != nil {
		return nil, fmt.Errorf("fuse mount: %w", err)
	}
	// mount(2) follows a symlink; the mount is then found by its own path alone.
	if real, err := filepath.EvalSymlinks(target); err == nil {
		target = real
	}
	before, _ := identify(target)
	d := &Device{target: target}
	if os.Geteuid() == 0 {
		d.fd, err = mountDirect(target, cfg)
	} else {
		d.helper = true
		d.fd, err = mountHelper(target, cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("fuse mount on %s: %w", target, err)
	}
	d.mount, err = identify(target)
	switch {
	case err == nil && d.mount == before:
		_ = d.Close()
		return nil, fmt.Errorf("fuse mount on %s: the path led elsewhere meanwhile", target)
	case err != nil:
		// Without its identity the mount can only be taken away at once, while it is surely on top.
		_ = d.unmountNow(target, unix.MNT_DETACH)
		_ = d.Close()
		return nil, fmt.Errorf("fuse mount on %s: %w", target, err)
	}
	return d, nil
}

// Target returns the absolute path of the directory that was mounted on; "" if somebody else mounted.
func (d *Device) Target() string { return d.target }

// Identity tells the mount from others: by a number that no other one has had since boot (where the kernel has no such number, that of
// mountinfo, which is used again), and by the device number of its files in the form of mountinfo, such as 0:57. It returns zero
// values if somebody else mounted.
func (d *Device) Identity() (id uint64, device string) {
	if d.mount == (mountIdentity{}) {
		return 0, ""
	}
	return d.mount.id, fmt.Sprintf("%d:%d", d.mount.major, d.mount.minor)
}

// Number returns the device number of the mount's files, as statx(2) has it; 0 if somebody else mounted.
func (d *Device) Number() uint64 { return unix.Mkdev(d.mount.major, d.mount.minor) }

// Fd returns the /dev/fuse descriptor, which the Device keeps owning.
func (d *Device) Fd() int { return d.fd }

// Close closes the descriptor, which ends the connection: whoever still uses the mount gets ENOTCONN. It must not run
// before FS.Serve has returned.
func (d *Device) Close() error {
	d.closeOnce.Do(func() { d.closeErr = unix.Close(d.fd) })
	return d.closeErr
}

// ErrNotThere is returned by Unmount when there is nothing that it may take away.
var ErrNotThere = errors.New("no mount of this server is on top anywhere")

// Unmount takes the mount away, wherever it was moved to, detaching it when it is in use. It does nothing, and returns ErrNotThere,
// when the mount is gone already, when another one lies on top of it, or when somebody else made it. It is safe while FS.Serve runs
// and makes it return as soon as the last file of the mount is closed.
func (d *Device) Unmount() error {
	at, ok := d.place()
	if !ok {
		return ErrNotThere
	}
	err := d.unmountNow(at, 0)
	if errors.Is(err, unix.EBUSY) {
		err = d.unmountNow(at, unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) {
		return ErrNotThere // it went just now
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", at, err)
	}
	return nil
}

// place is where the mount is now and nothing covers it.
func (d *Device) place() (target string, ok bool) {
	if d.target == "" {
		return "", false
	}
	if now, err := identify(d.target); err == nil && now == d.mount {
		return d.target, true
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Major != int(d.mount.major) || m.Minor != int(d.mount.minor), false
	})
	if err != nil {
		return "", false
	}
	for _, m := range mounts {
		if now, err := identify(m.Mountpoint); err == nil && now == d.mount {
			return m.Mountpoint, true
		}
	}
	return "", false
}

func (d *Device) unmountNow(target string, flags int) error {
	if !d.helper {
		return unix.Unmount(target, flags|unix.UMOUNT_NOFOLLOW)
	}
	args := []string{"-u", "-q"}
	if flags&unix.MNT_DETACH != 0 {
		args = append(args, "-z")
	}
	bin, err := HelperPath()
	if err != nil {
		return err
	}
	if out, err := exec.Command(bin, append(args, "--", target)...).CombinedOutput(); err != nil {
		if flags&unix.MNT_DETACH == 0 {
			return unix.EBUSY
		}
		return helperError(bin, out, err)
	}
	return nil
}

// SetReadAhead sets how far the kernel reads ahead, in KiB. That takes the right to write to sysfs: callers treat an
// error as unimportant.
func (d *Device) SetReadAhead(kib int) error {
	if d.mount.minor == 0 {
		return unix.ENOTSUP
	}
	name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", d.mount.major, d.mount.minor)
	return os.WriteFile(name, []byte(strconv.Itoa(kib)), 0)
}

// MountID returns the number that Device.Identity has for what is mounted on target.
func MountID(target string) (uint64, error) {
	m, err := identify(target)
	return m.id, err
}

// identify returns what is mounted at target. It never waits for a server: no attribute is asked for, and cached ones
// would do (cf. fs/fuse/dir.c fuse_update_get_attr).
func identify(target string) (mountIdentity, error) {
	const statxMntIDUnique = 0x4000
	var st unix.Statx_t
	flags := unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC | unix.AT_SYMLINK_NOFOLLOW
	if err := unix.Statx(unix.AT_FDCWD, target, flags, statxMntIDUnique, &st); err != nil {
		return mountIdentity{}, err
	}
	if st.Mask&statxMntIDUnique == 0 {
		if err := unix.Statx(unix.AT_FDCWD, target, flags, unix.STATX_MNT_ID, &st); err != nil {
			return mountIdentity{}, err
		}
	}
	return mountIdentity{id: st.Mnt_id, major: st.Dev_major, minor: st.Dev_minor}, nil
}

// passedPrefix is what the Target of a passed descriptor begins with.
const passedPrefix = "/dev/fd/"

// PassedTarget is the Target of a mount whose /dev/fuse descriptor was passed.
func PassedTarget(fd int) string { return passedPrefix + strconv.Itoa(fd) }

// PassedFD returns the descriptor that target names, if it is a PassedTarget.
func PassedFD(target string) (fd int, ok bool) {
	num, ok := strings.CutPrefix(target, passedPrefix)
	if !ok {
		return 0, false
	}
	fd, err := strconv.Atoi(num)
	return fd, err == nil && fd >= 0
}

func adopt(fd int) (*Device, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("fuse mount on /dev/fd/%d: %w", fd, err)
	}
	// Documentation/admin-guide/devices.txt: 10 is misc, 229 fuse.
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(10, 229) {
		return nil, fmt.Errorf("fuse mount on /dev/fd/%d: not a /dev/fuse descriptor", fd)
	}
	unix.CloseOnExec(fd)
	return &Device{fd: fd}, nil
}

func mountDirect(target string, cfg MountConfig) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil {
		return -1, err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, deviceError(err)
	}
	opts := []string{
		fmt.Sprintf("fd=%d", fd),
		fmt.Sprintf("rootmode=%o", st.Mode&unix.S_IFMT),
		fmt.Sprintf("user_id=%d", os.Geteuid()),
		fmt.Sprintf("group_id=%d", os.Getegid()),
	}
	opts = append(opts, kernelOptions(cfg)...)
	fstype, source := "fuse", cfg.FSName
	if cfg.Subtype != "" {
		fstype += "." + cfg.Subtype
	}
	if source == "" {
		source = fstype
	}
	if err := unix.Mount(source, target, fstype, cfg.Flags, strings.Join(opts, ",")); err != nil {
		_ = unix.Close(fd)
		return -1, mountError(err)
	}
	return fd, nil
}

func kernelOptions(cfg MountConfig) []string {
	opts := slices.Clone(cfg.Options)
	if cfg.AllowOther {
		opts = append(opts, "allow_other")
	}
	if cfg.DefaultPermissions {
		opts = append(opts, "default_permissions")
	}
	if cfg.MaxRead > 0 {
		opts = append(opts, fmt.Sprintf("max_read=%d", cfg.MaxRead))
	}
	return opts
}

func deviceError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("no /dev/fuse here (in a container, pass the device in): %w", err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("the kernel has no FUSE (modprobe fuse): %w", err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("/dev/fuse may not be opened: %w", err)
	}
	return fmt.Errorf("open /dev/fuse: %w", err)
}

func mountError(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("mounting is not allowed (no CAP_SYS_ADMIN in this user namespace): %w", err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("the kernel has no FUSE (modprobe fuse): %w", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the kernel knows one of the mount options not: %w", err)
	}
	return err
}

// HelperPath finds fusermount3, which plain users mount and unmount through, even with an empty PATH.
func HelperPath() (string, error) {
	for _, name := range []string{"fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3"} {
		if bin, err := exec.LookPath(name); err == nil {
			return bin, nil
		}
	}
	return "", errors.New("fusermount3 not found, without which only root can mount")
}

func helperError(bin string, out []byte, err error) error {
	if msg := strings.TrimSpace(string(out)); msg != "" {
		return errors.New(msg)
	}
	return fmt.Errorf("%s: %w", bin, err)
}

// mountHelper lets the setuid fusermount3 mount and takes the descriptor from it.
func mountHelper(target string, cfg MountConfig) (int, error) {
	bin, err := HelperPath()
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "commfd"), os.NewFile(uintptr(pair[1]), "commfd")
	defer ours.Close()
	defer theirs.Close()

	cmd := exec.Command(bin, "-o", strings.Join(helperOptions(cfg), ","), "--", target)
	cmd.ExtraFiles = []*os.File{theirs} // becomes 3
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return -1, helperError(bin, out.Bytes(), err)
	}
	fd, err := receiveFD(int(ours.Fd()))
	if err != nil {
		return -1, fmt.Errorf("%s passed no descriptor: %w", bin, err)
	}
	return fd, nil
}

// helperOptions spells flags as options, with commas and backslashes of names escaped as fusermount3 expects.
func helperOptions(cfg MountConfig) []string {
	opts := kernelOptions(cfg)
	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	if cfg.FSName != "" {
		opts = append(opts, "fsname="+escape.Replace(cfg.FSName))
	}
	if cfg.Subtype != "" {
		opts = append(opts, "subtype="+escape.Replace(cfg.Subtype))
	}
	for _, f := range []struct {
		flag uintptr
		name string
	}{
		{unix.MS_RDONLY, "ro"},
		{unix.MS_NOSUID, "nosuid"},
		{unix.MS_NODEV, "nodev"},
		{unix.MS_NOEXEC, "noexec"},
		{unix.MS_SYNCHRONOUS, "sync"},
		{unix.MS_DIRSYNC, "dirsync"},
		{unix.MS_NOATIME, "noatime"},
		{unix.MS_NODIRATIME, "nodiratime"},
	} {
		if cfg.Flags&f.flag != 0 {
			opts = append(opts, f.name)
		}
	}
	return opts
}

func receiveFD(sock int) (int, error) {
	data, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, data, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("no descriptor in the message")
}
