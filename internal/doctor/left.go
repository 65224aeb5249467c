package doctor

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func leftChecks() []check {
	return []check{
		{"left.mounts", groupLeft, "mounts", checkMounts},
		{"left.servers", groupLeft, "servers of mounts", several(checkServers)},
		{"left.marks", groupLeft, "marks in work directories", several(checkMarks)},
	}
}

// answerLimit is how long a mount's server may take to answer.
const answerLimit = 1500 * time.Millisecond

// checkMounts asks each mount of plyfs or fuse-overlayfs whether its server is there. The child that asks is left
// behind if one hangs.
func checkMounts(ctx context.Context, m *machine) []Finding {
	var targets []string
	servers := make(map[string]mount)
	for _, one := range m.mounts() {
		if one.ours() && servers[one.target].target == "" {
			targets = append(targets, one.target)
			servers[one.target] = one
		}
	}
	if len(targets) == 0 {
		return one(found(OK, "there is none of plyfs or fuse-overlayfs"))
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	results, err := m.Try(ctx, Trial{Name: trialAlive, In: Here, Args: targets})
	if err != nil && ctx.Err() == nil {
		return one(found(Warning, "%s could not be looked at: %v", count(len(targets), "mount"), err))
	}
	var bad []Finding
	for _, target := range targets {
		r, answered := result(results, target)
		switch {
		case !answered:
			bad = append(bad, m.hungMount(servers[target]))
		case r.Errno == int(syscall.ENOTCONN), r.Errno == int(syscall.ECONNABORTED):
			bad = append(bad, m.staleMount(servers[target], r))
		}
	}
	if bad != nil {
		return bad
	}
	return one(found(OK, "%s of plyfs or fuse-overlayfs, whose servers answer", count(len(targets), "mount")))
}

// staleMount is the finding for a mount whose server has ended.
func (m *machine) staleMount(at mount, r Result) Finding {
	step := asUser("plyfs umount --lazy %s", quote(at.target))
	// fusermount3 unmounts for who mounted; root of a user namespace is root of its mounts.
	step.Root = m.plain() && !at.has(fmt.Sprintf("user_id=%d", m.user.UID)) || m.mayMount() && !m.nested
	return found(Problem, "the server of %s has ended: %s", at.target, r.Error).of(at.target).
		with(step.because("then mount again, or restart the container: what was written is in the upper"))
}

// hungMount is the finding for a mount whose server does not answer.
func (m *machine) hungMount(at mount) Finding {
	_, minor, _ := strings.Cut(at.dev, ":")
	f := found(Problem, "the server of %s does not answer within %s", at.target, answerLimit).of(at.target)
	return f.with(say("is it stopped (kill -CONT PID), or is the file system of its layers hung? see dmesg"),
		asRoot("echo 1 >/sys/fs/fuse/connections/%s/abort", minor).because("to give it up; who uses it gets errors"))
}

// process is one of /proc.
type process struct {
	pid  int
	args []string
	// space is its mount namespace, "" if this user may not know.
	space string
	uid   int
}

// server says whether the process is one that serves mounts, by its name. Trials of a doctor are none.
func (p process) server() bool {
	if slices.ContainsFunc(p.args, func(a string) bool { return strings.Contains(a, "/"+scratchPrefix) }) {
		return false
	}
	switch filepath.Base(p.args[0]) {
	case "plyfs":
		return len(p.args) > 2
	case "plyfs-mount", "fuse-overlayfs", "mount.plyfs", "mount.fuse.plyfs", "mount.fuse3.plyfs":
		return true
	}
	return false
}

// processes reads /proc; kernel threads are left out.
func (m *machine) processes() []process {
	names, _ := m.ReadDir("/proc")
	var all []process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		text, err := m.ReadFile("/proc/" + name + "/cmdline")
		if err != nil || len(text) == 0 {
			continue
		}
		p := process{pid: pid, args: strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"), uid: -1}
		p.space, _ = m.Readlink("/proc/" + name + "/ns/mnt")
		if st, err := m.Stat("/proc/" + name); err == nil {
			p.uid = st.UID
		}
		all = append(all, p)
	}
	return all
}

// checkServers looks for servers whose mounts nobody can reach: in a mount namespace that only servers are in. A server
// with a detached mount ends with the last file that is open in it, and is none of them.
func checkServers(m *machine) []Finding {
	all := m.processes()
	held := make(map[string]bool)
	var hidden bool
	for _, p := range all {
		if !p.server() {
			held[p.space] = true
			// Another user's process may be in any namespace; those of root's are in the machine's or in root's.
			hidden = hidden || p.space == "" && p.uid != 0
		}
	}
	for _, one := range m.mounts() {
		if one.fstype == "nsfs" {
			hidden = true
		}
	}
	var bad []Finding
	serving := 0
	for _, p := range all {
		if !p.server() || p.space == "" || !m.servesFUSE(p.pid) {
			continue
		}
		serving++
		if !held[p.space] && !hidden {
			step := asUser("kill %d", p.pid)
			step.Root = p.uid != m.user.UID
			bad = append(bad, found(Warning, "process %d (%s) serves a mount in a namespace that no other process is in", p.pid,
				shorten(p.args)).
				of(fmt.Sprint(p.pid)).with(step.because("nobody can use the mount any more")))
		}
	}
	if bad != nil {
		return bad
	}
	if serving == 0 {
		return one(found(OK, "no server of this user's is running"))
	}
	return one(found(OK, "%s, of mounts that can be reached", count(serving, "server")))
}

// servesFUSE says whether a process has the device open.
func (m *machine) servesFUSE(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, _ := m.ReadDir(dir)
	return slices.ContainsFunc(fds, func(fd string) bool {
		to, err := m.Readlink(dir + "/" + fd)
		return err == nil && to == fuseDevice
	})
}

// shorten is a command line that fits into a sentence.
func shorten(args []string) string {
	text := strings.Join(args, " ")
	const most = 100
	if len(text) > most {
		text = text[:most/2] + "..." + text[len(text)-most/2:]
	}
	return text
}

// maxLayers bounds how many layers of a store are looked at.
const maxLayers = 2000

// checkMarks looks for work directories that a volatile mount marked, and for those whose files were not synced when
// the machine went down. Those of mounts in use have them too.
func checkMarks(m *machine) []Finding {
	boot := m.text("/proc/sys/kernel/random/boot_id")
	volatile, unsynced := make(map[string][]string), make(map[string]int)
	for _, p := range []place{
		{"plyfs", filepath.Join(m.options.Root, "layers/plyfs")},
		{"podman", filepath.Join(m.podmanStorage().GraphRoot, "overlay")},
		{"docker", filepath.Join(m.dockerConfig().DataRoot, "fuse-overlayfs")},
	} {
		names, err := m.ReadDir(p.dir)
		if err != nil {
			continue
		}
		for _, name := range names[:min(len(names), maxLayers)] {
			dir := filepath.Join(p.dir, name)
			if m.mountOf(filepath.Join(dir, "merged")).target == filepath.Join(dir, "merged") {
				continue
			}
			if mark := filepath.Join(dir, "work/work/incompat/volatile"); m.exists(mark) {
				volatile[p.whose] = append(volatile[p.whose], mark)
			}
			if was := m.text(filepath.Join(dir, "work/plyfs.unsynced")); was != "" && was != boot {
				unsynced[p.whose]++
			}
		}
	}
	var all []Finding
	for _, whose := range slices.Sorted(maps.Keys(volatile)) {
		marks := volatile[whose]
		all = append(all, found(Note,
			"%s of %s are not mounted here and marked by volatile mounts: nothing mounts their uppers until the marks are "+
				"removed (a container that runs in another namespace has it too)", fmt.Sprintf("%d work directories",
				len(marks)), whose).of(whose).
			with(say("remove the container: what was not synced may be lost"),
				asUser("rm -r %s", quote(filepath.Dir(marks[0]))).because("or keep it, if the machine did not go down since")))
	}
	for _, whose := range slices.Sorted(maps.Keys(unsynced)) {
		all = append(all, found(Note,
			"%s of %s had files that were not on disk when the machine went down: at the next mount those show what the "+
				"image has", count(unsynced[whose], "upper"), whose).of(whose))
	}
	if all == nil {
		return one(found(OK, "none that would keep an upper from being mounted"))
	}
	return all
}
