package doctor

import (
	"strings"
	"syscall"
)

func brokenKernel() []broken {
	cgroups := func(lines string) func(*fake) {
		return func(f *fake) {
			f.files["/proc/self/mountinfo"] = strings.Replace(healthyInfo, "24 22 0:22 / /sys/fs/cgroup rw - cgroup2 none rw\n",
				lines, 1)
		}
	}
	const v1 = "24 22 0:22 / /sys/fs/cgroup rw - tmpfs none rw\n"
	return []broken{
		{
			"old kernel", false, func(f *fake) { f.files["/proc/sys/kernel/osrelease"] = "4.15.0\n" },
			"kernel.version", Problem, "4.15", "newer",
		},
		{
			"no passthrough", true, func(f *fake) {
				f.trials[trialKernel] = ok("tmpfs", `init={"major":7,"minor":38}`)
			},
			"kernel.passthrough", Note, "6.9", "",
		},
		{
			"passthrough on a stack", true, func(f *fake) {
				f.trials[trialKernel] = ok("tmpfs", `init={"major":7,"minor":45,"passthrough":true,"refused":"too many levels"}`)
			},
			"kernel.passthrough", Note, "file system of the store", "not stacked",
		},
		{
			"passthrough for a user", false, func(f *fake) {
				f.trials[trialKernel] = ok("tmpfs",
					`init={"major":7,"minor":45,"passthrough":true,"refused":"operation not permitted"}`)
			},
			"kernel.passthrough", Note, "root of the machine only", "",
		},
		{
			"FUSE can't be asked", true, func(f *fake) {
				f.trials[trialKernel] = fails(syscall.ENOENT, "tmpfs", "init")
			},
			"kernel.fuse", Note, "could not be asked", "FUSE",
		},
		{
			"no overlayfs", true, func(f *fake) {
				f.trials[trialOverlay] = fails(syscall.ENODEV, "tmpfs", "layers", "mount")
			},
			"kernel.overlay", Note, "overlay2", "modprobe overlay",
		},
		{
			"no userxattr", false, func(f *fake) {
				f.trials[trialOverlay] = fails(syscall.EINVAL, "tmpfs", "layers", "mount")
				f.files["/proc/sys/kernel/osrelease"] = "5.10.0-amd64\n"
			},
			"kernel.overlay", Note, "step mount", "5.11",
		},
		{
			"io_uring switched off", false, func(f *fake) {
				f.uring = syscall.EPERM
				f.files["/proc/sys/kernel/io_uring_disabled"] = "2\n"
			},
			"kernel.io_uring", OK, "io_uring_disabled=2", "",
		},
		{
			"io_uring filtered", false, func(f *fake) { f.uring = syscall.ENOSYS },
			"kernel.io_uring", OK, "does not mind", "",
		},
		{"few files", false, func(f *fake) { f.limit = 1024 }, "kernel.files", Warning, "1024", "LimitNOFILE"},
		{
			"few watches", false, func(f *fake) { f.files["/proc/sys/fs/inotify/max_user_watches"] = "100\n" },
			"kernel.inotify", Note, "100 watches", "fs.inotify",
		},
		{
			"little memory", false, func(f *fake) { f.files["/proc/meminfo"] = "MemTotal: 900000 kB\nMemAvailable: 102400 kB\n" },
			"kernel.memory", Warning, "100 MiB", "swap",
		},
		{
			"memory pressure", false, func(f *fake) {
				f.files["/proc/pressure/memory"] = "some avg10=42.50 avg60=1 avg300=0 " +
					"total=1\n"
			},
			"kernel.memory", Warning, "42%", "swap",
		},
		{
			"many mounts", false, func(f *fake) { f.files["/proc/sys/fs/mount-max"] = "3\n" },
			"kernel.mounts", Warning, "of at most 3", "fs.mount-max=6",
		},
		{"cgroups of version 1", false, cgroups(v1), "kernel.cgroup", Note, "version 1", "unified_cgroup_hierarchy"},
		{
			"hybrid cgroups", false, cgroups(v1 + "25 24 0:23 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n"),
			"kernel.cgroup", Note, "hybrid", "disabled",
		},
		{"no cgroups", false, cgroups(""), "kernel.cgroup", Note, "none is mounted", "disabled"},
		{
			"nothing delegated", false, func(f *fake) {
				delete(f.files, "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers")
			},
			"kernel.cgroup", Note, "nothing is delegated", "linger",
		},
		{
			"no pids delegated", false, func(f *fake) {
				f.files["/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers"] = "cpu memory\n"
			},
			"kernel.cgroup", Note, "pids is not delegated", "Delegate=",
		},
	}
}
