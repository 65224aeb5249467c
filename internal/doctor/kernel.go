package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"plyfs/fs/fusefs"
)

func kernelChecks() []check {
	return []check{
		{"kernel.version", groupKernel, "version", single(checkVersion)},
		{"kernel.fuse", groupKernel, "FUSE features", checkKernelFUSE},
		{"kernel.overlay", groupKernel, "the kernel's overlayfs", checkOverlay},
		{"kernel.io_uring", groupKernel, "io_uring", single(checkIOUring)},
		{"kernel.files", groupKernel, "open files", single(checkFiles)},
		{"kernel.inotify", groupKernel, "inotify", single(checkInotify)},
		{"kernel.mounts", groupKernel, "mounts of a namespace", single(checkMountMax)},
		{"kernel.memory", groupKernel, "memory", single(checkMemory)},
		{"kernel.cgroup", groupKernel, "cgroups", single(checkCgroup)},
	}
}

// atLeast compares the version of a kernel release such as 6.1.0-18-amd64; ok is false if there is none in it.
func atLeast(release string, major, minor int) (is, ok bool) {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 {
		return false, false
	}
	return a > major || a == major && b >= minor, true
}

func checkVersion(m *machine) Finding {
	release := m.text("/proc/sys/kernel/osrelease")
	if is, ok := atLeast(release, 4, 18); !ok || is {
		return found(OK, "Linux %s", release)
	}
	return found(Problem, "Linux %s has no FUSE in user namespaces, which came with 4.18", release).
		with(say("use a newer kernel"))
}

// checkKernelFUSE asks the kernel's FUSE what it offers, and tries passthrough.
func checkKernelFUSE(ctx context.Context, m *machine) []Finding {
	all, err := m.Try(ctx, Trial{Name: trialKernel, In: m.mountNamespace(), Args: []string{m.nearest(m.options.Root)}})
	r, ok := result(all, "init")
	if !ok || r.Error != "" {
		reason := r.Error
		if bad, is := failed(all); is {
			reason = bad.Error
		} else if err != nil {
			reason = err.Error()
		}
		return one(found(Note, "could not be asked: %s", reason).with(say("see to the findings about FUSE")))
	}
	var k fusefs.Kernel
	if err := json.Unmarshal([]byte(r.Value), &k); err != nil {
		return one(found(Warning, "the kernel's answer: %v", err))
	}
	yes := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	f := found(OK, "protocol %d.%d; idmapped mounts: %s; requests by io_uring (which plyfs does not use): %s",
		k.Major, k.Minor, yes(k.IDMapped), yes(k.OverIOUring))
	return []Finding{f, passthrough(m, k)}
}

// passthrough is the finding about data=passthrough.
func passthrough(m *machine, k fusefs.Kernel) Finding {
	f := Finding{ID: "kernel.passthrough", Title: "FUSE passthrough", Status: Note}
	switch {
	case !k.Passthrough:
		f.Detail = "the kernel has none; it came with Linux 6.9; data=passthrough falls back to data=noopen"
	case k.Refused == "":
		f.Status, f.Detail = OK, "a file of the store was taken; data=passthrough works"
	case m.plain() || m.nested || !m.has(capSysAdmin):
		f.Detail = fmt.Sprintf("the kernel has it, for root of the machine only (%s); data=passthrough falls back to "+
			"data=noopen", k.Refused)
	default:
		f.Detail = fmt.Sprintf("the kernel has it, but not for files on the file system of the store (%s); "+
			"data=passthrough falls back to "+
			"data=noopen", k.Refused)
		f.WayOut = []Step{say("for passthrough put the store on a file system that is not stacked on another (--root)")}
	}
	return f
}

// checkOverlay tries the kernel's overlayfs, which plyfs does not need.
func checkOverlay(ctx context.Context, m *machine) []Finding {
	t, how := Trial{Name: trialOverlay, In: NewMounts}, "mounted, and something deleted in it"
	if !m.mayMount() || m.nested {
		t.In, t.Args = m.mountNamespace(), []string{"userxattr"}
		how = "mounted with userxattr in a user namespace, and something deleted in it"
	}
	all, err := m.Try(ctx, t)
	if r, bad := failed(all); bad {
		f := found(Note, "the trial failed at the step %s: %s; the driver overlay2, and podman without a mount program, "+
			"don't work here",
			r.Step, r.Error)
		switch syscall.Errno(r.Errno) {
		case syscall.ENODEV:
			f = f.with(asRoot("modprobe overlay"))
		case syscall.EPERM, syscall.EINVAL:
			if is, ok := atLeast(m.text("/proc/sys/kernel/osrelease"), 5, 11); ok && !is && t.In == NewUser {
				f = f.with(say("use Linux 5.11 or newer for overlayfs in user namespaces, or plyfs"))
			}
		}
		return one(f)
	}
	if err != nil {
		return one(found(Note, "could not be tried: %v", err).with(say("see to the findings about user namespaces")))
	}
	return one(found(OK, "%s", how))
}

func checkIOUring(m *machine) Finding {
	setting := m.text("/proc/sys/kernel/io_uring_disabled")
	err := m.IOUring()
	fuse := ""
	if v := m.text("/sys/module/fuse/parameters/enable_uring"); v != "" {
		fuse = "; FUSE over io_uring (fuse.enable_uring): " + v
	}
	switch {
	case err == nil:
		return found(OK, "allowed%s", fuse)
	case setting == "1" || setting == "2":
		return found(OK, "switched off (kernel.io_uring_disabled=%s), which plyfs does not mind%s", setting, fuse)
	case errors.Is(err, syscall.ENOSYS):
		return found(OK, "not in this kernel, which plyfs does not mind%s", fuse)
	}
	return found(OK, "forbidden here (%v), which plyfs does not mind%s", err, fuse)
}

// fewFiles is below what a mount of tall images, and most databases in containers, need.
const fewFiles = 4096

func checkFiles(m *machine) Finding {
	_, hard := m.OpenFiles()
	if hard >= fewFiles {
		return found(OK, "at most %d", hard)
	}
	return found(Warning,
		"at most %d: mounts keep fewer layers' files open, and are slower; containers may run out of them", hard).with(
		asRoot("echo '%s hard nofile 1048576' >/etc/security/limits.d/90-plyfs.conf", m.name()).because("for logins"),
		say("for services: LimitNOFILE=1048576 in the unit"))
}

func checkInotify(m *machine) Finding {
	watches, ok1 := m.number("/proc/sys/fs/inotify/max_user_watches")
	instances, ok2 := m.number("/proc/sys/fs/inotify/max_user_instances")
	if !ok1 || !ok2 {
		return found(OK, "no limits are known")
	}
	if watches >= 8192 && instances >= 128 {
		return found(OK, "%d watches and %d instances for a user", watches, instances)
	}
	return found(Note, "%d watches and %d instances for a user: few for many containers", watches, instances).
		with(setSysctl("fs.inotify.max_user_instances", "1024")[0], setSysctl("fs.inotify.max_user_watches", "524288")[0])
}

func checkMountMax(m *machine) Finding {
	limit, ok := m.number("/proc/sys/fs/mount-max")
	have := len(m.mounts())
	if !ok || int64(have) < limit/10*9 {
		return found(OK, "%d of at most %d", have, limit)
	}
	return found(Warning, "%d of at most %d: soon nothing more can be mounted", have, limit).
		with(setSysctl("fs.mount-max", fmt.Sprint(2*limit))...)
}

// littleMemory is below what a container and the server of its mount want, in KiB.
const littleMemory = 256 << 10

// checkMemory looks whether memory is short: what the kernel can give (proc(5), meminfo), and how long tasks waited for
// it (Documentation/accounting/psi.rst).
func checkMemory(m *machine) Finding {
	free := say("end something, or add memory or swap; plyfs needs about 20 MiB for each mount")
	var available int64 = -1
	for line := range strings.Lines(m.text("/proc/meminfo")) {
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &available); err == nil {
			break
		}
	}
	var waited float64
	if _, err := fmt.Sscanf(m.text("/proc/pressure/memory"), "some avg10=%f", &waited); err != nil {
		waited = 0
	}
	switch {
	case waited >= 10:
		return found(Warning, "tasks waited for memory %.0f%% of the last 10 seconds", waited).with(free)
	case available >= 0 && available < littleMemory:
		return found(Warning, "%d MiB are available", available>>10).with(free)
	case available < 0:
		return found(OK, "no pressure is known")
	}
	return found(OK, "%d MiB are available", available>>10)
}

// checkCgroup says which version there is and, for a user, what is delegated.
func checkCgroup(m *machine) Finding {
	if m.mountOf("/sys/fs/cgroup").fstype != "cgroup2" {
		if m.mountOf("/sys/fs/cgroup/unified").fstype == "cgroup2" {
			return found(Note, "hybrid (version 1, and a part of version 2): some runtimes refuse it, and users can't limit "+
				"containers").
				with(say("boot with systemd.unified_cgroup_hierarchy=1"),
					say(`without that, for podman with crun, in containers.conf: [containers] cgroups = "disabled"`))
		}
		if m.mountOf("/sys/fs/cgroup").target == "/sys/fs/cgroup" {
			return found(Note, "version 1: users can't limit their containers").
				with(say("boot with systemd.unified_cgroup_hierarchy=1"))
		}
		return found(Note, "none is mounted on /sys/fs/cgroup: containers run without limits").
			with(say(`for podman, in containers.conf: [containers] cgroups = "disabled"`))
	}
	if !m.plain() {
		return found(OK, "version 2")
	}
	dir := fmt.Sprintf("/sys/fs/cgroup/user.slice/user-%d.slice/user@%d.service", m.user.UID, m.user.UID)
	controllers := strings.Fields(m.text(dir + "/cgroup.controllers"))
	if len(controllers) == 0 {
		return found(Note, "version 2, and nothing is delegated to this user, who can't limit containers").
			with(asRoot("loginctl enable-linger %s", m.name()).because("where systemd runs"))
	}
	for _, want := range []string{"memory", "pids"} {
		if !strings.Contains(" "+strings.Join(controllers, " ")+" ", " "+want+" ") {
			return found(Note, "version 2; the controller %s is not delegated to this user (there are %s)", want,
				strings.Join(controllers, ", ")).
				with(asRoot("mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\n" +
					"Delegate=cpu cpuset io memory pids\\n' >/etc/systemd/system/user@.service.d/delegate.conf && systemctl daemon-reload"))
		}
	}
	return found(OK, "version 2; delegated to this user: %s", strings.Join(controllers, ", "))
}
