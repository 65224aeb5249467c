package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func namespaceChecks() []check {
	return []check{
		{"userns.create", groupNamespace, "new user namespaces", single(checkUserns)},
		{"userns.newuidmap", groupNamespace, "newuidmap and newgidmap", several(checkMappers)},
		{"userns.subids", groupNamespace, "subordinate ids", several(checkSubordinates)},
		{"userns.mapped", groupNamespace, "a namespace with all ids", checkMapped},
		{"userns.runtime_dir", groupNamespace, "XDG_RUNTIME_DIR", several(checkRuntimeDir)},
	}
}

// checkUserns reports the trial of a user namespace. Root needs none.
func checkUserns(m *machine) Finding {
	bad := Problem
	if m.mayMount() {
		bad = Note
	}
	all, err := m.userns()
	if r, is := failed(all); is {
		f := found(bad, "a user namespace can be made, but its root may not mount: %s", r.Error)
		if n, ok := m.number(sysctlAppArmor); ok && n != 0 {
			return f.with(appArmorWays()...)
		}
		return f.with(confinedWays(m)...)
	}
	if err != nil {
		return found(bad, "%v", err).with(namespaceWays(m, err)...)
	}
	return found(OK, "made, and its root may mount")
}

// The settings that forbid user namespaces; the first two are of some distributions only.
const (
	sysctlClone    = "/proc/sys/kernel/unprivileged_userns_clone"
	sysctlAppArmor = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
	sysctlMax      = "/proc/sys/user/max_user_namespaces"
)

// namespaceWays is what to do when a user namespace, or the others of a trial, can't be made.
func namespaceWays(m *machine, err error) []Step {
	if n, ok := m.number(sysctlMax); ok && n == 0 {
		return setSysctl("user.max_user_namespaces", "28633")
	}
	if n, ok := m.number(sysctlClone); ok && n == 0 && m.plain() {
		return setSysctl("kernel.unprivileged_userns_clone", "1")
	}
	if n, ok := m.number(sysctlAppArmor); ok && n != 0 && m.plain() {
		return appArmorWays()
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EUSERS) {
		return []Step{say("there are too many namespaces, or they are nested too deeply: see /proc/sys/user/max_*_namespaces")}
	}
	return confinedWays(m)
}

func setSysctl(name, value string) []Step {
	return []Step{
		asRoot("sysctl -w %s=%s", name, value).because("until the next boot"),
		asRoot("echo '%s = %s' >/etc/sysctl.d/90-plyfs.conf", name, value).because("for good"),
	}
}

// appArmorWays is what to do where AppArmor takes all rights from the user namespaces of programs without a profile.
func appArmorWays() []Step {
	profile := `printf '%s\n' 'abi <abi/4.0>,' 'include <tunables/global>' ` +
		`'profile plyfs /{usr/,usr/local/,}bin/plyfs flags=(unconfined) { userns, }' >/etc/apparmor.d/plyfs && apparmor_parser -r /etc/apparmor.d/plyfs`
	return []Step{
		{Do: "give plyfs a profile that allows user namespaces", Command: profile, Root: true},
		asRoot("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0").because("or allow them to all programs"),
	}
}

// confinedWays is what to do where something forbids what the kernel allows: the runtime of a container, or a service.
func confinedWays(m *machine) []Step {
	if !m.container.is() {
		if m.seccomp() {
			return []Step{say("a seccomp filter is on this process: look at the unit's SystemCallFilter= and RestrictNamespaces=")}
		}
		return []Step{say("run outside of a chroot, and look what confines this process (SELinux, AppArmor: dmesg)")}
	}
	return []Step{say("start the container with what it lacks: %s run %s ...", m.containerEngine(),
		strings.Join(m.lackingFlags(), " "))}
}

// containerEngine is the command that starts containers like the one that this is.
func (m *machine) containerEngine() string {
	if strings.HasPrefix(m.container.runtime, "docker") {
		return "docker"
	}
	return "podman"
}

// lackingFlags are those by which a container gets what this one lacks for mounting. The filters of docker and podman
// let root with CAP_SYS_ADMIN mount.
func (m *machine) lackingFlags() []string {
	var flags []string
	if checkDevice(m).Status == Problem {
		flags = append(flags, "--device "+fuseDevice)
	}
	switch {
	case !m.plain() && !m.has(capSysAdmin):
		flags = append(flags, "--cap-add SYS_ADMIN")
	case m.seccomp():
		flags = append(flags, "--security-opt seccomp=unconfined")
	}
	if m.appArmor() != "" {
		flags = append(flags, "--security-opt apparmor=unconfined")
	}
	if len(flags) == 0 {
		flags = []string{"--privileged"}
	}
	return flags
}

// checkMappers looks at the programs that map subordinate ids.
func checkMappers(m *machine) []Finding {
	if !m.plain() {
		return nil
	}
	var paths []string
	for _, p := range []struct{ program, capability string }{{"newuidmap", "cap_setuid+ep"}, {"newgidmap", "cap_setgid+ep"}} {
		path, err := m.LookPath(p.program, "")
		if err != nil {
			return one(found(Problem,
				"there is no %s: files of a container can have one owner only, and most images can't be unpacked", p.program).
				with(asRoot("apt-get install uidmap").because("Fedora: dnf install shadow-utils")))
		}
		if f, ok := privileged(m, path, p.capability); !ok {
			f.Status = Problem
			return one(f)
		}
		paths = append(paths, path)
	}
	return one(found(OK, "both are there and privileged (%s)", strings.Join(paths, ", ")))
}

// checkMapped reports whether a namespace with subordinate ids can be had; the whole way, by plyfs unshare.
func checkMapped(ctx context.Context, m *machine) []Finding {
	if m.nested && !m.plain() {
		return one(m.mappedHere())
	}
	if !m.plain() {
		return nil
	}
	out, err := m.Self(ctx, "unshare", "cat", "/proc/self/uid_map")
	if err != nil {
		return one(found(Problem, "plyfs unshare fails: %v", err).
			with(say("see to the other findings about user namespaces first"),
				asUser("plyfs unshare true").because("then try again")))
	}
	ids := countIDs(out)
	if ids <= 1 {
		return one(found(Problem, "plyfs unshare maps this user alone: files of a container can have one owner only").
			with(say("see to the findings about newuidmap and subordinate ids")))
	}
	return one(found(OK, "plyfs unshare maps %d ids", ids))
}

// countIDs adds up the lengths in the text of a uid_map.
func countIDs(text string) (ids uint64) {
	for line := range strings.Lines(text) {
		var inside, outside, n uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &n); err == nil {
			ids += n
		}
	}
	return ids
}

// mappedHere is checkMapped for root of a user namespace.
func (m *machine) mappedHere() Finding {
	ids := countIDs(m.text("/proc/self/uid_map"))
	if ids >= wantIDs {
		return found(OK, "%d ids are mapped in this namespace", ids)
	}
	return found(Warning,
		"only %d of the ids of an image are mapped in this namespace: files with other owners can't be unpacked", ids).
		with(asUser("plyfs unshare").because("outside of it, for one with the subordinate ids of the user"))
}

// checkRuntimeDir looks at the directory in which rootless engines keep what does not outlive the session.
func checkRuntimeDir(m *machine) []Finding {
	if !m.plain() {
		return nil
	}
	dir := m.Getenv("XDG_RUNTIME_DIR")
	linger := asRoot("loginctl enable-linger %s",
		m.name()).because("log in by PAM (ssh, machinectl shell), not by su; for services")
	if dir == "" {
		return one(found(Note, "not set: rootless engines take a directory in /tmp, and say that systemd is missing").
			with(linger))
	}
	st, err := m.Stat(dir)
	switch {
	case err != nil:
		return one(found(Warning, "it is %s: %v", dir, err).with(linger))
	case st.UID != m.user.UID:
		return one(found(Warning, "%s belongs to uid %d, as after su", dir, st.UID).with(linger))
	case st.Mode.Perm()&0o077 != 0:
		return one(found(Warning, "%s has mode %04o: others can reach the sockets in it", dir, st.Mode.Perm()).
			with(asUser("chmod 0700 %s", dir)))
	}
	return one(found(OK, "%s is this user's alone", dir))
}

// seccomp says whether system calls are filtered.
func (m *machine) seccomp() bool {
	return statusField(m, "Seccomp") == fmt.Sprint(unix.SECCOMP_MODE_FILTER)
}
