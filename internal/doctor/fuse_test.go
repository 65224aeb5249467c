package doctor

import (
	"io/fs"
	"strings"
	"syscall"
)

func brokenFUSE() []broken {
	gone := func(f *fake) { delete(f.stats, fuseDevice) }
	return []broken{
		{
			"no device", false, gone,
			"fuse.device", Problem, "though the kernel has FUSE", "mknod -m 0666 /dev/fuse c 10 229",
		},
		{
			"no device and no module", false, func(f *fake) { gone(f); f.files["/proc/filesystems"] = "\text4\n" },
			"fuse.device", Problem, "not in the kernel", "modprobe fuse",
		},
		{
			"no device in podman", true, func(f *fake) { gone(f); f.contain("podman") },
			"fuse.device", Problem, "in this container", "podman run --device /dev/fuse",
		},
		{
			"no device in docker", true, func(f *fake) { gone(f); f.contain("docker") },
			"fuse.device", Problem, "in this container", "docker run --device /dev/fuse",
		},
		{
			"no device in a pod", true, func(f *fake) { gone(f); f.contain("kubernetes") },
			"fuse.device", Problem, "in this container", "device plugin",
		},
		{
			"a file as device", false, func(f *fake) { f.stats[fuseDevice] = Stat{Mode: 0o644} },
			"fuse.device", Problem, "is not the device", "mknod",
		},
		{
			"another device", false, func(f *fake) {
				f.stats[fuseDevice] = Stat{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3}
			},
			"fuse.device", Problem, "1:3", "mknod",
		},
		{
			"mode 0600", false, func(f *fake) {
				f.stats[fuseDevice] = Stat{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 10, Minor: 229}
				f.denied[fuseDevice] = syscall.EACCES
			},
			"fuse.device", Problem, "mode 0600", "chmod 0666 /dev/fuse",
		},
		{
			"device cgroup", true, func(f *fake) { f.denied[fuseDevice] = syscall.EPERM; f.contain("docker") },
			"fuse.device", Problem, "cgroup", "--device /dev/fuse",
		},
		{
			"no module behind the device", true, func(f *fake) { f.denied[fuseDevice] = syscall.ENODEV },
			"fuse.device", Problem, "no FUSE", "modprobe fuse",
		},
		{
			"mount fails after a bad device", false, func(f *fake) {
				f.denied[fuseDevice] = syscall.EACCES
				f.trials[trialMount] = fails(syscall.EACCES, "tmpfs", "layers", "mount")
			},
			"fuse.mount", Problem, "at the step mount", "first see to /dev/fuse",
		},
		{
			"mount is forbidden", true, func(f *fake) {
				f.contain("docker")
				f.files["/proc/self/status"] = strings.Replace(f.files["/proc/self/status"], "Seccomp:\t0", "Seccomp:\t2", 1)
				f.trials[trialMount] = fails(syscall.EPERM, "tmpfs")
			},
			"fuse.mount", Problem, "at the step tmpfs", "seccomp=unconfined",
		},
		{
			"mount hangs", true, func(f *fake) {
				f.trials[trialMount] = trialOutcome{ok("tmpfs", "layers").results, syscall.ETIMEDOUT}
			},
			"fuse.mount", Problem, "did not come to its end", "plyfs mount -d",
		},
		{
			"write is lost", true, func(f *fake) {
				f.trials[trialMount] = fails(syscall.EIO, "tmpfs", "layers", "mount", "use")
			},
			"fuse.mount", Problem, "at the step use", "plyfs mount -d",
		},
		{
			"no fusermount3", false, func(f *fake) { delete(f.programs, "fusermount3") },
			"fuse.fusermount", Warning, "not on PATH", "apt-get install fuse3",
		},
		{
			"no fusermount3, root", true, func(f *fake) { delete(f.programs, "fusermount3") },
			"fuse.fusermount", Note, "not on PATH", "fuse3",
		},
		{
			"fusermount3 without set-user-id", false, func(f *fake) {
				f.stats["/usr/bin/fusermount3"] = Stat{Mode: 0o755}
			},
			"fuse.fusermount", Warning, "set-user-id", "chmod u+s /usr/bin/fusermount3",
		},
		{
			"fusermount3 of somebody", false, func(f *fake) {
				f.stats["/usr/bin/fusermount3"] = Stat{Mode: 0o755 | fs.ModeSetuid, UID: 7}
			},
			"fuse.fusermount", Warning, "uid 7", "chown root",
		},
		{
			"fusermount3 on nosuid", false, func(f *fake) { f.remount("/usr/bin", "ext4", "nosuid") },
			"fuse.fusermount", Warning, "nosuid", "remount,suid /usr/bin",
		},
		{
			"fusermount3 does not mount", false, func(f *fake) {
				f.trials[trialFusermount] = fails(syscall.EPERM, "layers", "mount")
			},
			"fuse.fusermount", Warning, "at the step mount", "user namespace",
		},
		{
			"no user_allow_other", false, func(f *fake) { f.files["/etc/fuse.conf"] = "#user_allow_other\n" },
			"fuse.allow_other", Note, "not set", "echo user_allow_other >>/etc/fuse.conf",
		},
	}
}
