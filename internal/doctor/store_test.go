package doctor

import (
	"io/fs"
	"syscall"
)

func brokenStorage() []broken {
	const store = "/home/alice/.local/share/plyfs"
	return []broken{
		{
			"store on NFS", false, func(f *fake) { f.remount("/home", "nfs4") },
			"storage.files", Warning, "nfs4", "another place",
		},
		{
			"store on a FUSE file system", false, func(f *fake) { f.remount("/home", "fuse.sshfs") }, "storage.files", Warning,
			"fuse.sshfs", "another place",
		},
		{
			"store on tmpfs", false, func(f *fake) { f.remount("/home", "tmpfs") },
			"storage.files", Note, "tmpfs", "another place",
		},
		{
			"store on ro", false, func(f *fake) { f.remount("/home", "ext4", "ro") },
			"storage.files", Problem, "read-only", "another place",
		},
		{
			"store on noexec", false, func(f *fake) { f.remount("/home", "ext4", "noexec") },
			"storage.files", Note, "noexec", "remount,exec /home",
		},
		{
			"store not writable", false, func(f *fake) { f.readOnly[store] = true },
			"storage.files", Problem, "may not write", "another place",
		},
		{
			"disk full", false, func(f *fake) { f.space.Free = 10 << 20 },
			"storage.files", Warning, "10 MiB", "plyfs layer gc",
		},
		{
			"no inodes", false, func(f *fake) { f.space.FreeInodes = 5 },
			"storage.files", Warning, "5 of", "plyfs layer gc",
		},
		{
			"no user attributes", false, func(f *fake) {
				f.trials[trialFiles] = trialOutcome{results: append(ok("files").results, fails(syscall.ENOTSUP, "user").results...)}
			},
			"storage.files", Warning, "no user attributes", "ext4",
		},
		{
			"no file can be made", false, func(f *fake) { f.trials[trialFiles] = fails(syscall.EROFS, "files") },
			"storage.files", Problem, "no file can be made", "local",
		},
		{
			"another's store", false, func(f *fake) { f.stats[store] = Stat{Mode: fs.ModeDir | 0o700} },
			"storage.store", Problem, "belongs to uid 0", "chown 1000",
		},
		{
			"open store", false, func(f *fake) { f.stats[store] = Stat{Mode: fs.ModeDir | 0o755, UID: 1000} },
			"storage.store", Warning, "0755", "chmod 0700 " + store,
		},
		{
			"store is a file", false, func(f *fake) { f.stats[store] = Stat{Mode: 0o644, UID: 1000} },
			"storage.store", Problem, "no directory", "--root",
		},
		{
			"plyfs driver unusable", false, func(f *fake) {
				f.outputs["plyfs driver probe --json --root "+store] = `[{"driver":"plyfs","usable":false,"why":"no mount","todo":"do this"}]`
			},
			"storage.drivers", Problem, "no mount", "do this",
		},
		{
			"no probe", false, func(f *fake) {
				f.failures["plyfs driver probe --json --root "+store] = syscall.EPERM
				delete(f.outputs, "plyfs driver probe --json --root "+store)
			},
			"storage.drivers", Problem, "could not be tried", "plyfs driver probe",
		},
		{
			"probe fails for root", true, func(f *fake) {
				f.trials[trialDrivers] = fails(syscall.EIO, "private", "proc",
					"probe")
			},
			"storage.drivers", Problem, "input/output error", "plyfs driver probe",
		},
		{
			"no /proc for the probe", true, func(f *fake) {
				f.trials[trialDrivers] = fails(syscall.EPERM, "private", "proc")
				f.outputs["plyfs driver probe --json --root /var/lib/plyfs"] = probeOutput
			},
			"storage.drivers", OK, "usable: plyfs", "",
		},
		{
			"open index", false, func(f *fake) {
				f.stats["/home/alice/.cache/plyfs/index"] = Stat{Mode: fs.ModeDir | 0o777, UID: 1000}
			},
			"storage.index", Warning, "0777", "chmod 0700 /home/alice/.cache/plyfs/index",
		},
		{
			"another's index", false, func(f *fake) {
				f.stats["/home/alice/.cache/plyfs/index"] = Stat{Mode: fs.ModeDir | 0o700}
			},
			"storage.index", Warning, "uid 0", "chown -R 1000",
		},
		{
			"index on NFS", false, func(f *fake) { f.remount("/home/alice/.cache", "nfs") },
			"storage.index", Warning, "nfs", "PLYFS_INDEX_DIR",
		},
	}
}
