package doctor

import (
	"fmt"
	"io/fs"
	"syscall"
)

func brokenNamespaces() []broken {
	forbidden := trialOutcome{nil, fmt.Errorf("%w: %w", ErrNamespace, syscall.EPERM)}
	forbid := func(f *fake) { f.trials[trialNamespace], f.trials[trialMount] = forbidden, forbidden }
	return []broken{
		{
			"none allowed", false, func(f *fake) { forbid(f); f.files[sysctlMax] = "0\n" },
			"userns.create", Problem, "not permitted", "sysctl -w user.max_user_namespaces=28633",
		},
		{
			"none for users", false, func(f *fake) { forbid(f); f.files[sysctlClone] = "0\n" },
			"userns.create", Problem, "not permitted", "sysctl -w kernel.unprivileged_userns_clone=1",
		},
		{
			"none for users, the mount", false, func(f *fake) { forbid(f); f.files[sysctlClone] = "0\n" }, "fuse.mount", Problem, "not permitted",
			"kernel.unprivileged_userns_clone=1",
		},
		{
			"none for root, who needs none", true, func(f *fake) {
				f.trials[trialNamespace] = forbidden
				f.files[sysctlMax] = "0\n"
			},
			"userns.create", Note, "not permitted", "user.max_user_namespaces",
		},
		{
			"AppArmor takes the rights", false, func(f *fake) {
				f.trials[trialNamespace] = fails(syscall.EACCES, "tmpfs")
				f.files[sysctlAppArmor] = "1\n"
			},
			"userns.create", Problem, "may not mount", "/etc/apparmor.d/plyfs",
		},
		{
			"too many", false, func(f *fake) {
				f.trials[trialNamespace] = trialOutcome{nil, fmt.Errorf("%w: %w", ErrNamespace, syscall.ENOSPC)}
			},
			"userns.create", Problem, "no space", "max_*_namespaces",
		},
		{
			"seccomp in a container", false, func(f *fake) {
				forbid(f)
				f.contain("podman")
				f.files["/proc/self/status"] = "CapEff:\t0\nSeccomp:\t2\n"
			},
			"userns.create", Problem, "not permitted", "--security-opt seccomp=unconfined",
		},
		{
			"no newuidmap", false, func(f *fake) { delete(f.programs, "newuidmap") },
			"userns.newuidmap", Problem, "no newuidmap", "apt-get install uidmap",
		},
		{
			"newgidmap without privilege", false, func(f *fake) { f.stats["/usr/bin/newgidmap"] = Stat{Mode: 0o755} },
			"userns.newuidmap", Problem, "set-user-id", "setcap cap_setgid+ep /usr/bin/newgidmap",
		},
		{
			"no subuid file", false, func(f *fake) { delete(f.files, "/etc/subuid") },
			"userns.subids", Problem, "has no ids for alice", "usermod --add-subuids 100000-165535 alice",
		},
		{
			"no subgids, others have some", false, func(f *fake) {
				f.files["/etc/subgid"] = "bob:100000:65536\ncarol:165536:65536\n"
			},
			"userns.subids", Problem, "/etc/subgid", "usermod --add-subgids 231072-296607 alice",
		},
		{
			"too few", false, func(f *fake) { f.files["/etc/subuid"] = "alice:100000:1000\n" },
			"userns.subids", Warning, "has 1000 ids", "--add-subuids 101000-166535",
		},
		{
			"overlap", false, func(f *fake) { f.files["/etc/subuid"] = "alice:100000:65536\nbob:120000:10\n" },
			"userns.subids", Warning, "line 1 (alice) and line 2 (bob)", "165536-231071",
		},
		{
			"nonsense in subuid", false, func(f *fake) { f.files["/etc/subuid"] = "alice:100000:65536\nalice:x:1\n" },
			"userns.subids", Warning, "line 2", "correct",
		},
		{
			"a range beyond 32 bits", false, func(f *fake) { f.files["/etc/subuid"] = "alice:4294967000:65536\n" },
			"userns.subids", Problem, "no ids", "usermod",
		},
		{
			"subuid unreadable", false, func(f *fake) { f.denied["/etc/subuid"] = syscall.EACCES },
			"userns.subids", Problem, "permission denied", "chmod 0644 /etc/subuid",
		},
		{
			"unshare fails", false, func(f *fake) {
				f.failures["plyfs unshare cat /proc/self/uid_map"] = syscall.EPERM
			},
			"userns.mapped", Problem, "plyfs unshare fails", "plyfs unshare true",
		},
		{
			"unshare maps one", false, func(f *fake) {
				f.outputs["plyfs unshare cat /proc/self/uid_map"] = "0 1000 1\n"
			},
			"userns.mapped", Problem, "alone", "subordinate",
		},
		{
			"root of one id", true, func(f *fake) { f.files["/proc/self/uid_map"] = "0 1000 1\n" },
			"userns.mapped", Warning, "only 1 of", "plyfs unshare",
		},
		{
			"no runtime directory", false, func(f *fake) { delete(f.env, "XDG_RUNTIME_DIR") },
			"userns.runtime_dir", Note, "not set", "enable-linger alice",
		},
		{
			"another's runtime directory", false, func(f *fake) {
				f.stats["/run/user/1000"] = Stat{Mode: fs.ModeDir | 0o700}
			},
			"userns.runtime_dir", Warning, "belongs to uid 0", "su",
		},
		{
			"open runtime directory", false, func(f *fake) {
				f.stats["/run/user/1000"] = Stat{Mode: fs.ModeDir | 0o755, UID: 1000}
			},
			"userns.runtime_dir", Warning, "0755", "chmod 0700 /run/user/1000",
		},
	}
}
