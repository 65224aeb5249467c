package doctor

import (
	"fmt"
	"strings"
	"syscall"
)

func brokenSecurity() []broken {
	caps := func(hex string) func(*fake) {
		return func(f *fake) { f.files["/proc/self/status"] = fmt.Sprintf(procStatus, hex) }
	}
	confine := func(profile string) func(*fake) {
		return func(f *fake) {
			f.files["/sys/module/apparmor/parameters/enabled"] = "Y\n"
			f.files["/proc/self/attr/current"] = profile
		}
	}
	selinux := func(enforce, context string) func(*fake) {
		return func(f *fake) {
			f.files["/sys/fs/selinux/enforce"], f.files["/proc/self/attr/current"] = enforce, context+"\x00"
		}
	}
	return []broken{
		{
			"container on overlay", true, func(f *fake) {
				f.contain("docker")
				f.files["/proc/self/mountinfo"] = strings.Replace(healthyInfo, "ext4", "overlay", 1)
			},
			"security.container", Note, "overlayfs does not work on it", "volume",
		},
		{
			"container without the device and SYS_ADMIN", true, func(f *fake) {
				f.contain("docker")
				caps("00000000a80425fb")(f)
				delete(f.stats, fuseDevice)
				f.trials[trialMount] = fails(syscall.EPERM, "tmpfs")
			},
			"security.container", Note, "lacks --device /dev/fuse --cap-add SYS_ADMIN", "docker run --device /dev/fuse " +
				"--cap-add SYS_ADMIN",
		},
		{
			"root without SYS_ADMIN", true, caps("00000000a80425fb"),
			"security.capabilities", Note, "CAP_SYS_ADMIN", "--cap-add SYS_ADMIN",
		},
		{
			"root without MKNOD", true, caps("000001fff7ffffff"),
			"security.capabilities", Warning, "CAP_MKNOD", "--cap-add MKNOD",
		},
		{
			"root without SYS_RESOURCE", true, caps("000001fffeffffff"),
			"security.capabilities", Note, "CAP_SYS_RESOURCE", "default_ulimits",
		},
		{
			"docker-default", true, confine("docker-default (enforce)"),
			"security.apparmor", Warning, "forbids mounting", "apparmor=unconfined",
		},
		{
			"a profile", true, confine("mine (enforce)"),
			"security.apparmor", Note, "profile mine", "apparmor=unconfined",
		},
		{"no profile", true, confine("unconfined"), "security.apparmor", OK, "not confined", ""},
		{
			"container_t", true, selinux("1", "system_u:system_r:container_t:s0:c1,c2"),
			"security.selinux", Warning, "container_t", "container_use_devices",
		},
		{
			"permissive", true, selinux("0", "system_u:system_r:container_t:s0"),
			"security.selinux", OK, "permissive", "",
		},
	}
}
