package doctor

import (
	"io/fs"
	"syscall"
)

func brokenEngines() []broken {
	const conf = "/home/alice/.config/containers/storage.conf"
	storage := func(text string) func(*fake) { return func(f *fake) { f.files[conf] = text } }
	genuine := func(f *fake) {
		f.outputs["/usr/bin/fuse-overlayfs --version"] = "fusermount3 version: 3.14.0\nfuse-overlayfs: version 1.10\nFUSE " +
			"library version 3.14.0\n"
	}
	docker := func(version, json string, more ...func(*fake)) func(*fake) {
		return func(f *fake) {
			f.programs["dockerd"] = "/usr/bin/dockerd"
			f.outputs["/usr/bin/dockerd --version"] = "Docker version " + version + ", build x\n"
			if json != "" {
				f.files["/etc/docker/daemon.json"] = json
			}
			for _, m := range more {
				m(f)
			}
		}
	}
	containerd := func(toml string, more ...func(*fake)) func(*fake) {
		return func(f *fake) {
			f.programs["containerd"] = "/usr/bin/containerd"
			f.outputs["/usr/bin/containerd --version"] = "containerd github.com/containerd/containerd v2.0.0 abc\n"
			f.files["/etc/containerd/config.toml"] = toml
			for _, m := range more {
				m(f)
			}
		}
	}
	const proxy = "[proxy_plugins.plyfs]\ntype = \"snapshot\"\naddress = \"/run/plyfs/snapshotter.sock\"\n"
	socket := func(f *fake) { f.stats["/run/plyfs/snapshotter.sock"] = Stat{Mode: fs.ModeSocket | 0o600} }
	return []broken{
		{
			"no engines", false, func(f *fake) { delete(f.programs, "podman") },
			"engines.found", Note, "neither podman", "",
		},
		{
			"an engine that does not run", false, func(f *fake) {
				f.failures["/usr/bin/podman --version"] = syscall.ENOEXEC
			},
			"engines.found", OK, "exec format error", "",
		},
		{
			"no fuse-overlayfs", false, func(f *fake) {
				delete(f.programs, "fuse-overlayfs")
				delete(f.services, "fuse-overlayfs")
			},
			"engines.fuse_overlayfs", Note, "nobody", "plyfs install --as fuse-overlayfs --user",
		},
		{
			"the genuine one", true, genuine,
			"engines.fuse_overlayfs", Note, "fuse-overlayfs 1.10", "plyfs install --as fuse-overlayfs",
		},
		{
			"two of them", false, func(f *fake) {
				f.programs["fuse-overlayfs"] = "/home/alice/.local/bin/fuse-overlayfs"
				f.files["/home/alice/.local/bin/fuse-overlayfs"], f.files["/usr/bin/fuse-overlayfs"] = "", ""
				f.outputs["/home/alice/.local/bin/fuse-overlayfs --version"] = "plyfs: version v1 x\n"
				genuine(f)
			},
			"engines.fuse_overlayfs", Warning, "services find /usr/bin/fuse-overlayfs", "Environment=PATH",
		},
		{
			"not for services", false, func(f *fake) { delete(f.services, "fuse-overlayfs") },
			"engines.fuse_overlayfs", Note, "not on their PATH", "mount_program",
		},
		{
			"it does not run", false, func(f *fake) {
				f.failures["/usr/bin/fuse-overlayfs --version"] = syscall.ENOEXEC
			},
			"engines.fuse_overlayfs", Warning, "exec format", "plyfs install",
		},

		{
			"storage.conf is no TOML", false, storage("[storage\n"),
			"engines.podman", Problem, "line 1", "correct the file",
		},
		{
			"storage.conf unreadable", false, func(f *fake) { f.denied[conf] = syscall.EACCES },
			"engines.podman", Problem, "permission denied", "correct",
		},
		{
			"mount program is gone", false, storage("[storage.options.overlay]\nmount_program = \"/opt/x\"\n"),
			"engines.podman", Problem, "/opt/x", "plyfs install --engine podman --user",
		},
		{
			"old form of the key", false, storage("[storage.options]\nmount_program = \"/opt/x\"\n"),
			"engines.podman", Problem, "/opt/x", "plyfs install",
		},
		{
			"genuine mount program", false, genuine,
			"engines.podman", Note, "fuse-overlayfs 1.10", "plyfs install --engine podman --user",
		},
		{
			"driver vfs", false, storage("[storage]\ndriver = \"vfs\"\n"),
			"engines.podman", Warning, "vfs", "plyfs install",
		},
		{
			"driver by the environment", false, func(f *fake) { f.env["STORAGE_DRIVER"] = "btrfs" },
			"engines.podman", Note, "btrfs", "plyfs install",
		},
		{
			"native overlay", false, storage("[storage]\ndriver = \"overlay\"\n"),
			"engines.podman", Note, "the kernel's overlay where that works, else", "plyfs install",
		},
		{
			"made with a program", false, func(f *fake) {
				storage("[storage]\ndriver = \"overlay\"\ngraphroot = \"/g\"\n")(f)
				f.files["/g/overlay/.has-mount-program"] = "true"
			},
			"engines.podman", Note, "made with one", "plyfs install",
		},
		{
			"layers of another driver", false, func(f *fake) {
				storage("[storage]\ngraphroot = \"/g\"\n")(f)
				f.files["/g/vfs-layers/layers.json"] = "[]"
			},
			"engines.podman", Note, "driver vfs", "podman info",
		},
		{
			"by the environment", false, func(f *fake) {
				f.env["CONTAINERS_STORAGE_CONF"] = "/x.conf"
				f.files["/x.conf"] = "[storage]\ndriver=\"vfs\"\n"
			},
			"engines.podman", Warning, "/x.conf", "plyfs install",
		},
		{
			"a user's place by the system's file", false, func(f *fake) {
				delete(f.files, conf)
				f.files["/etc/containers/storage.conf"] = "[storage]\ngraphroot = \"/var/x\"\nrootless_storage_path = " +
					"\"$HOME/here\"\n"
			},
			"engines.podman", Note, "storage in /home/alice/here", "plyfs install",
		},

		{
			"daemon.json is no JSON", true, docker("20.10.24", "{"),
			"engines.docker", Problem, "/etc/docker/daemon.json", "correct the file",
		},
		{
			"several drivers have layers", true, docker("20.10.24", "", func(f *fake) {
				f.files["/var/lib/docker/overlay2/x"], f.files["/var/lib/docker/btrfs/x"] = "", ""
			}),
			"engines.docker", Problem, "overlay2, btrfs", "storage-driver",
		},
		{
			"driver fuse-overlayfs, no program", true, docker("20.10.24", `{"storage-driver":"fuse-overlayfs"}`, func(f *fake) {
				delete(f.services, "fuse-overlayfs")
			}),
			"engines.docker", Problem, "no program", "plyfs install --as",
		},
		{
			"driver fuse-overlayfs, genuine", true, docker("20.10.24", `{"storage-driver":"fuse-overlayfs"}`, genuine),
			"engines.docker", Note, "fuse-overlayfs 1.10", "plyfs install --as",
		},
		{
			"driver fuse-overlayfs, plyfs", true, docker("20.10.24", `{"storage-driver":"fuse-overlayfs"}`),
			"engines.docker", OK, "which is plyfs", "",
		},
		{
			"driver vfs of docker", true, docker("20.10.24", `{"storage-driver":"vfs"}`),
			"engines.docker", Warning, "vfs", "plyfs install --engine docker",
		},
		{
			"plugin without experimental", true, docker("20.10.24", `{"storage-driver":"plyfs"}`),
			"engines.docker", Problem, "experimental mode only", `"experimental": true`,
		},
		{
			"plugin", true, docker("20.10.24+dfsg1", `{"storage-driver":"plyfs","experimental":true}`),
			"engines.docker", OK, "plugin plyfs", "",
		},
		{
			"plugin in 27", true, docker("27.3.1", `{"storage-driver":"plyfs","experimental":true}`),
			"engines.docker", Warning, "27.3.1", "DOCKERD_DEPRECATED_GRAPHDRIVER_PLUGINS=1",
		},
		{
			"snapshotter in 29", true, docker("29.0.1", `{"storage-driver":"plyfs"}`),
			"engines.docker", OK, "snapshotter", "",
		},
		{
			"containerd's images", true, docker("28.0.1", `{"features":{"containerd-snapshotter":true}}`),
			"engines.docker", OK, "containerd's", "",
		},

		{
			"config.toml is no TOML", true, containerd("version = \n"),
			"engines.containerd", Problem, "line 1", "correct the file",
		},
		{
			"no snapshotter", true, containerd("version = 2\n"),
			"engines.containerd", Note, "proxy snapshotter of plyfs is not configured", "plyfs install --engine containerd",
		},
		{
			"snapshotter is down", true, containerd(proxy),
			"engines.containerd", Problem, "not running", "plyfs snapshotter --address /run/plyfs/snapshotter.sock",
		},
		{
			"no mount helper for services", true, containerd(proxy, socket, func(f *fake) {
				delete(f.services, "mount.fuse3")
			}),
			"engines.containerd", Problem, "mount.fuse3", "fuse3",
		},
		{
			"another's snapshotter", true, containerd("[proxy_plugins.stargz]\ntype = \"snapshot\"\naddress = \"/run/stargz.sock\"\n"),
			"engines.containerd", Note, "proxy snapshotter of plyfs is not configured", "plyfs install --engine containerd",
		},
		{"snapshotter is up", true, containerd(proxy, socket), "engines.containerd", OK, "snapshotter plyfs", ""},
		{
			"nerdctl elsewhere", true, func(f *fake) { f.programs["nerdctl"] = "/usr/bin/nerdctl" },
			"engines.nerdctl", Note, "overlayfs", `snapshotter = "plyfs"`,
		},
	}
}

func brokenLeft() []broken {
	mounted := func(f *fake) {
		f.files["/proc/self/mountinfo"] += `90 22 0:99 / /mnt/a\040b rw - fuse.plyfs plyfs rw,user_id=1000,group_id=1000` + "\n"
	}
	const dir = "/mnt/a b"
	server := func(space string) func(*fake) {
		return func(f *fake) {
			f.files["/proc/77/cmdline"] = "plyfs\x00mount\x00-o\x00lowerdir=/l\x00/m\x00"
			f.stats["/proc/77"] = Stat{Mode: fs.ModeDir | 0o555, UID: 1000}
			f.links["/proc/77/ns/mnt"], f.links["/proc/77/fd/5"] = space, fuseDevice
			f.files["/proc/1/cmdline"], f.links["/proc/1/ns/mnt"] = "init\x00", "mnt:[1]"
		}
	}
	return []broken{
		{
			"server is gone", false, func(f *fake) {
				mounted(f)
				f.trials[trialAlive] = fails(syscall.ENOTCONN, dir)
			},
			"left.mounts", Problem, "has ended", "plyfs umount --lazy '/mnt/a b'",
		},
		{
			"server hangs", false, func(f *fake) {
				mounted(f)
				f.hang = trialAlive
				f.trials[trialAlive] = trialOutcome{}
			},
			"left.mounts", Problem, "does not answer", "connections/99/abort",
		},
		{
			"server answers", false, func(f *fake) { mounted(f); f.trials[trialAlive] = ok(dir) },
			"left.mounts", OK, "1 mount ", "",
		},
		{
			"another's mount", false, func(f *fake) { mounted(f); f.trials[trialAlive] = fails(syscall.EACCES, dir) },
			"left.mounts", OK, "1 mount ", "",
		},
		{"orphaned server", false, server("mnt:[2]"), "left.servers", Warning, "process 77", "kill 77"},
		{"server in use", false, server("mnt:[1]"), "left.servers", OK, "1 server", ""},
		{
			"a trial of a doctor", false, func(f *fake) {
				server("mnt:[2]")(f)
				f.files["/proc/77/cmdline"] = "plyfs\x00doctor\x00try\x00mount\x00/tmp/plyfs-doctor-12\x00"
			},
			"left.servers", OK, "no server", "",
		},
		{
			"server in a namespace that somebody may hold", false, func(f *fake) {
				server("mnt:[2]")(f)
				f.files["/proc/88/cmdline"] = "sleep\x00"
				f.stats["/proc/88"] = Stat{Mode: fs.ModeDir | 0o555, UID: 100005}
			},
			"left.servers", OK, "1 server", "",
		},
		{
			"volatile mark", false, func(f *fake) {
				f.files["/home/alice/.local/share/containers/storage/overlay/abc/work/work/incompat/volatile"] = ""
			},
			"left.marks", Note, "podman", "rm -r /home/alice/.local/share/containers/storage/overlay/abc/work/work/incompat",
		},
		{
			"unsynced", false, func(f *fake) {
				f.files["/home/alice/.local/share/plyfs/layers/plyfs/abc/work/plyfs.unsynced"] = "boot-1"
			},
			"left.marks", Note, "not on disk", "",
		},
		{
			"unsynced, this boot", false, func(f *fake) {
				f.files["/home/alice/.local/share/plyfs/layers/plyfs/abc/work/plyfs.unsynced"] = "boot-2"
			},
			"left.marks", OK, "none", "",
		},
	}
}
