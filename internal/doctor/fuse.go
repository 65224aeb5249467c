package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// fuseDevice is the device of FUSE: misc device 229 (Documentation/admin-guide/devices.txt).
const (
	fuseDevice = "/dev/fuse"
	fuseMajor  = 10
	fuseMinor  = 229
)

func fuseChecks() []check {
	return []check{
		{"fuse.device", groupFUSE, fuseDevice, single(checkDevice)},
		{"fuse.mount", groupFUSE, "mounting with plyfs", single(checkMount)},
		{"fuse.fusermount", groupFUSE, "fusermount3", checkFusermount},
		{"fuse.allow_other", groupFUSE, "user_allow_other", several(checkAllowOther)},
	}
}

func checkDevice(m *machine) Finding {
	st, err := m.Stat(fuseDevice)
	if err != nil {
		return noDevice(m, err)
	}
	if st.Mode&fs.ModeCharDevice == 0 || st.Major != fuseMajor || st.Minor != fuseMinor {
		return found(Problem, "%s is not the device %d:%d (it is %s %d:%d)", fuseDevice, fuseMajor, fuseMinor, st.Mode,
			st.Major, st.Minor).
			with(asRoot("rm -f %s && mknod -m 0666 %s c %d %d", fuseDevice, fuseDevice, fuseMajor, fuseMinor))
	}
	err = m.OpenDevice(fuseDevice)
	switch {
	case err == nil:
		return found(OK, "%s can be opened (mode %04o)", fuseDevice, st.Mode.Perm())
	case errors.Is(err, syscall.EACCES):
		return found(Problem, "%s has mode %04o and belongs to uid %d: %v", fuseDevice, st.Mode.Perm(), st.UID, err).with(
			asRoot("chmod 0666 %s", fuseDevice).because("until the next boot"),
			asRoot(`echo 'KERNEL=="fuse", MODE="0666"' >/etc/udev/rules.d/99-fuse.rules`).because("for good, where udev runs"))
	case errors.Is(err, syscall.EPERM):
		return found(Problem, "%s is there, and the cgroup of this process does not allow it: %v", fuseDevice, err).
			with(passDevice(m)...).
			with(say("in a systemd unit: DeviceAllow=%s rw", fuseDevice))
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return found(Problem, "%s is there, and the kernel has no FUSE: %v", fuseDevice, err).with(asRoot("modprobe fuse"))
	}
	return found(Problem, "%v", err)
}

// noDevice is the finding for a device that can't be looked at.
func noDevice(m *machine, err error) Finding {
	if !errors.Is(err, fs.ErrNotExist) {
		return found(Problem, "%v", err)
	}
	filesystems, ferr := m.ReadFile("/proc/filesystems")
	known := ferr != nil || strings.Contains(string(filesystems), "\tfuse\n")
	switch {
	case m.container.is() || m.nested:
		f := found(Problem, "there is no %s in this container", fuseDevice).with(passDevice(m)...)
		if !known {
			f = f.with(asRoot("modprobe fuse").because("on the machine, whose kernel has not loaded FUSE"))
		}
		return f
	case !known:
		return found(Problem, "there is no %s, and FUSE is not in the kernel", fuseDevice).with(asRoot("modprobe fuse"),
			asRoot("echo fuse >/etc/modules-load.d/fuse.conf").because("for the next boot"))
	}
	return found(Problem, "there is no %s, though the kernel has FUSE", fuseDevice).
		with(asRoot("mknod -m 0666 %s c %d %d", fuseDevice, fuseMajor, fuseMinor))
}

// passDevice is how a container gets the device.
func passDevice(m *machine) []Step {
	switch m.container.runtime {
	case "kubernetes", "kubepods":
		return []Step{say("give the pod the device %s, by a device plugin or by a hostPath volume in a privileged container",
			fuseDevice)}
	case "lxc":
		return []Step{say("add to the container's configuration: lxc.mount.entry = %s dev/fuse none bind,create=file",
			fuseDevice)}
	}
	return []Step{say("start the container with the device: %s run --device %s ...", m.containerEngine(), fuseDevice)}
}

// checkMount reports the trial of a whole mount.
func checkMount(m *machine) Finding {
	all, err := m.fuse()
	where := "by root of this mount namespace"
	switch {
	case m.mountNamespace() == NewUser:
		where = "by root of a new user namespace"
	case m.nested:
		where = "by root of this user namespace"
	}
	if errors.Is(err, ErrNamespace) {
		return found(Problem, "no mount can be tried: %v", err).with(namespaceWays(m, err)...)
	}
	r, bad := failed(all)
	if !bad && err == nil {
		took, _ := result(all, "upper")
		return found(OK, "mounted, written, read and unmounted %s in %s", where, took.Value)
	}
	if !bad {
		return found(Problem, "the trial of a mount %s did not come to its end: %v", where, err).
			with(asUser("plyfs mount -d -o lowerdir=LOWER,upperdir=UPPER,workdir=WORK MOUNTPOINT").because("see where it stops"))
	}
	f := found(Problem, "a mount %s failed at the step %s: %s", where, r.Step, r.Error)
	return f.with(mountWays(m, r)...)
}

// mountWays is what to do about a failed step of a mount.
func mountWays(m *machine, r Result) []Step {
	errno := syscall.Errno(r.Errno)
	denied := errno == unix.EPERM || errno == unix.EACCES || strings.Contains(r.Error, "not permitted") ||
		strings.Contains(r.Error, "denied")
	switch {
	case r.Step == "mount" && checkDevice(m).Status == Problem:
		return []Step{say("first see to %s", fuseDevice)}
	case denied:
		return confinedWays(m)
	}
	return []Step{asUser("plyfs mount -d -o lowerdir=LOWER,upperdir=UPPER,workdir=WORK MOUNTPOINT").because("it tells more")}
}

func checkFusermount(ctx context.Context, m *machine) []Finding {
	path, err := m.LookPath("fusermount3", "")
	// Root mounts by itself; it is podman and containerd who unmount by this program.
	status, need := Note, "engines call it to unmount"
	if m.plain() {
		status, need = Warning, "a user's mounts outside of user namespaces need it, and engines call it to unmount"
	}
	if err != nil {
		return one(found(status, "it is not on PATH (%s); %s", m.Getenv("PATH"), need).
			with(asRoot("apt-get install fuse3").because("Fedora: dnf install fuse3")))
	}
	version, err := m.Output(ctx, path, "--version")
	if err != nil {
		return one(found(Warning, "%s does not run: %v", path, err).with(asRoot("apt-get install --reinstall fuse3")))
	}
	version = lastWord(version)
	if !m.plain() {
		return one(found(OK, "%s, version %s", path, version))
	}
	if f, ok := privileged(m, path, "cap_sys_admin+ep"); !ok {
		return one(f)
	}
	return one(m.tryFusermount(ctx, path, version))
}

// tryFusermount reports the trial of a mount that a plain user makes where the user is.
func (m *machine) tryFusermount(ctx context.Context, path, version string) Finding {
	all, err := m.Try(ctx, Trial{Name: trialFusermount, In: Here})
	if r, bad := failed(all); bad {
		return found(Warning, "%s is version %s, and a mount by it failed at the step %s: %s", path, version, r.Step, r.Error).
			with(say("mount in a user namespace instead (plyfs unshare, podman unshare)"))
	}
	if err != nil {
		return found(Warning, "%s is version %s, and a mount by it could not be tried: %v", path, version, err).
			with(say("mount in a user namespace instead (plyfs unshare, podman unshare)"))
	}
	took, _ := result(all, "upper")
	return found(OK, "%s, version %s: mounted, written, read and unmounted in %s", path, version, took.Value)
}

// lastWord is the last word of the first line.
func lastWord(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line[strings.LastIndex(line, " ")+1:]
}

// privileged says whether a program that users run gets its privileges: by the set-user-id bit or by file capabilities,
// on a file system that honours them. If not, the finding says so.
func privileged(m *machine, path, capability string) (Finding, bool) {
	path = m.nearest(path)
	st, err := m.Stat(path)
	if err != nil {
		return found(Warning, "%v", err), false
	}
	_, cerr := m.Getxattr(path, "security.capability")
	if mnt := m.mountOf(path); mnt.has("nosuid") {
		return found(Warning, "%s is on %s, which is mounted nosuid, and gets no privileges", path, mnt.target).
			with(asRoot("mount -o remount,suid %s", mnt.target)), false
	}
	if cerr == nil || st.Mode&fs.ModeSetuid != 0 && st.UID == 0 {
		return Finding{}, true
	}
	if m.nested {
		return found(Note, "%s is neither set-user-id root nor has it file capabilities, in this user namespace", path), false
	}
	return found(Warning,
		"%s has mode %s and belongs to uid %d: it is neither set-user-id root nor has it file capabilities", path,
		fmt.Sprintf("%04o", st.Mode.Perm()), st.UID).
		with(asRoot("chown root %s && chmod u+s %s", path, path), asRoot("setcap %s %s", capability, path).because("or")), false
}

func checkAllowOther(m *machine) []Finding {
	if !m.plain() {
		return nil
	}
	const conf = "/etc/fuse.conf"
	text, err := m.ReadFile(conf)
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if strings.TrimSpace(line) == "user_allow_other" {
			return one(found(OK, "set in %s", conf))
		}
	}
	detail := "not set in " + conf
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		detail = err.Error()
	}
	return one(found(Note,
		"%s: what this user mounts by fusermount3 nobody else can look into, not even root; mounts in user "+
			"namespaces don't need it", detail).with(asRoot("echo user_allow_other >>%s", conf)))
}
