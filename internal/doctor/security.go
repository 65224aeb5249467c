package doctor

import (
	"strings"
)

// Numbers of linux/capability.h.
const (
	capSysAdmin    = 21
	capSysResource = 24
)

func securityChecks() []check {
	return []check{
		{"security.container", groupSecurity, "container", several(checkContainer)},
		{"security.capabilities", groupSecurity, "capabilities", several(checkCapabilities)},
		{"security.seccomp", groupSecurity, "seccomp", several(checkSeccomp)},
		{"security.apparmor", groupSecurity, "AppArmor", several(checkAppArmor)},
		{"security.selinux", groupSecurity, "SELinux", several(checkSELinux)},
	}
}

// checkContainer says that this is a container, and what its runtime left out.
func checkContainer(m *machine) []Finding {
	if !m.container.is() {
		if m.nested {
			return one(found(OK, "in a user namespace, and in no container"))
		}
		return one(found(OK, "in none"))
	}
	kind := "root of the machine"
	switch {
	case m.plain():
		kind = "a plain user"
	case m.nested:
		kind = "root of a user namespace"
	case !m.has(capSysAdmin):
		kind = "root without CAP_SYS_ADMIN"
	}
	root := m.mountOf("/")
	f := found(Note, "in a container of %s, as %s, on a root file system of type %s", m.container.runtime, kind, root.fstype)
	if root.fstype == "overlay" {
		f.Detail += "; the kernel's overlayfs does not work on it, plyfs does"
		f = f.with(say("for the driver overlay2, or podman without a mount program, put the store on a volume"))
	}
	if checkMount(m).Status == Problem {
		flags := strings.Join(m.lackingFlags(), " ")
		f.Detail += "; for mounting it lacks " + flags
		f = f.with(say("start the container with it: %s run %s ...", m.containerEngine(), flags))
	}
	return one(f)
}

// checkCapabilities looks at what root may do. A plain user has none, and needs none.
func checkCapabilities(m *machine) []Finding {
	if m.plain() {
		return nil
	}
	names := []struct {
		bit  int
		name string
	}{{0, "CHOWN"}, {1, "DAC_OVERRIDE"}, {3, "FOWNER"}, {4, "FSETID"}, {27, "MKNOD"}, {31, "SETFCAP"}}
	var lacking []string
	for _, c := range names {
		if !m.has(c.bit) {
			lacking = append(lacking, c.name)
		}
	}
	var all []Finding
	switch {
	case !m.has(capSysAdmin):
		all = append(all, found(Note, "root without CAP_SYS_ADMIN: it can mount in a new user namespace only").
			with(say("start the container with --cap-add SYS_ADMIN")))
	case len(lacking) > 0:
		all = append(all, found(Warning, "root without CAP_%s: not every layer can be unpacked",
			strings.Join(lacking, ", CAP_")).
			with(say("start the container with --cap-add %s", strings.Join(lacking, " --cap-add "))))
	default:
		all = append(all, found(OK, "all that layers need"))
	}
	if !m.has(capSysResource) && !m.nested {
		all = append(all, found(Note,
			"root without CAP_SYS_RESOURCE: runtimes can't raise limits (setrlimit RLIMIT_NOFILE: operation not permitted)").
			of("CAP_SYS_RESOURCE").
			with(say(`have podman ask for less, in containers.conf: [containers] default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]`)))
	}
	return all
}

func checkSeccomp(m *machine) []Finding {
	if !m.seccomp() {
		return one(found(OK, "no filter"))
	}
	f := found(Note, "system calls are filtered")
	if all, err := m.fuse(); err == nil {
		if _, bad := failed(all); !bad {
			f.Detail += ", those for mounting are not"
			return one(f)
		}
	}
	if m.container.is() {
		return one(f.with(say("if mounting fails: --security-opt seccomp=unconfined, or a profile that allows mount, " +
			"umount2, unshare and clone")))
	}
	return one(f.with(say("if mounting fails: look at the unit's SystemCallFilter= and RestrictNamespaces=")))
}

// appArmor is the profile that confines this process, "" for none.
func (m *machine) appArmor() string {
	if m.text("/sys/module/apparmor/parameters/enabled") != "Y" {
		return ""
	}
	label := m.text("/proc/self/attr/apparmor/current")
	if label == "" {
		label = m.text("/proc/self/attr/current")
	}
	if label == "unconfined" || strings.HasSuffix(label, "(unconfined)") {
		return ""
	}
	return strings.TrimRight(label, "\x00")
}

func checkAppArmor(m *machine) []Finding {
	profile := m.appArmor()
	if profile == "" {
		return one(found(OK, "not confined"))
	}
	f := found(Note, "confined by the profile %s", profile)
	if strings.HasPrefix(profile, "docker-default") || strings.HasPrefix(profile, "containers-default") ||
		strings.HasPrefix(profile, "cri-containerd") {
		f = found(Warning, "confined by the profile %s, which forbids mounting", profile)
	}
	return one(f.with(say("start the container with --security-opt apparmor=unconfined, or with a profile that allows " +
		"mount, umount and userns")))
}

func checkSELinux(m *machine) []Finding {
	enforce := m.text("/sys/fs/selinux/enforce")
	if enforce == "" {
		return one(found(OK, "not enabled"))
	}
	context := strings.TrimRight(m.text("/proc/self/attr/current"), "\x00")
	if enforce == "0" {
		return one(found(OK, "permissive, as %s", context))
	}
	if strings.Contains(context, ":container_t:") {
		return one(found(Warning, "enforcing, as %s, which may not use %s", context, fuseDevice).with(
			asRoot("setsebool -P container_use_devices on").because("on the machine"),
			say("or start the container with --security-opt label=disable")))
	}
	return one(found(OK, "enforcing, as %s; label what containers share (-v DIR:DIR:z)", context))
}
