package doctor

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"plyfs/internal/sys"
)

// machine is a System with what several checks want to know of it, each found out once.
type machine struct {
	System
	options Options
	user    User
	// nested says that the user namespace is not the machine's.
	nested    bool
	caps      uint64
	container container
	mounts    func() []mount
	// Trials that several checks look at.
	userns func() ([]Result, error)
	fuse   func() ([]Result, error)
}

func newMachine(ctx context.Context, s System, o Options) *machine {
	m := &machine{System: s, options: o, user: s.User()}
	m.nested = isNested(s)
	m.caps = effectiveCaps(s)
	m.container = inContainer(s)
	m.mounts = sync.OnceValue(func() []mount { return readMounts(s) })
	m.userns = sync.OnceValues(func() ([]Result, error) { return s.Try(ctx, Trial{Name: trialNamespace, In: NewUser}) })
	m.fuse = sync.OnceValues(func() ([]Result, error) { return s.Try(ctx, Trial{Name: trialMount, In: m.mountNamespace()}) })
	return m
}

// plain says that the user is not root, neither of the machine nor of a namespace.
func (m *machine) plain() bool { return m.user.UID != 0 }

// mayMount says whether the process may mount in the namespaces that it is in.
func (m *machine) mayMount() bool { return !m.plain() && m.has(capSysAdmin) }

// mountNamespace is where this user can try a mount.
func (m *machine) mountNamespace() Namespace {
	if m.mayMount() {
		return NewMounts
	}
	return NewUser
}

func (m *machine) has(capability int) bool { return m.caps>>capability&1 == 1 }

// name is the user's name for commands and sentences.
func (m *machine) name() string { return cmp.Or(m.user.Name, strconv.Itoa(m.user.UID)) }

func (m *machine) subject() Subject {
	return Subject{
		UID: m.user.UID, User: m.user.Name, UserNamespace: m.nested, Kernel: m.text("/proc/sys/kernel/osrelease"),
		System: osRelease(m), Container: m.container.name(),
	}
}

// text is the content of a file without the white space around it, "" if it can't be read.
func (m *machine) text(path string) string {
	b, _ := m.ReadFile(path)
	return strings.TrimSpace(string(b))
}

// number is the content of a file that holds a number.
func (m *machine) number(path string) (n int64, ok bool) {
	n, err := strconv.ParseInt(m.text(path), 10, 64)
	return n, err == nil
}

// exists says whether something is there, as far as the user can see.
func (m *machine) exists(path string) bool {
	_, err := m.Stat(path)
	return err == nil
}

func isNested(s System) bool {
	text, err := s.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(text)), " ") != "0 0 4294967295"
}

func effectiveCaps(s System) uint64 {
	caps, _ := strconv.ParseUint(statusField(s, "CapEff"), 16, 64)
	return caps
}

// statusField is a field of /proc/self/status.
func statusField(s System, name string) string {
	text, _ := s.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func osRelease(s System) string {
	text, _ := s.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return ""
}

// container is what kind of container the process is in; its fields are empty outside of all.
type container struct {
	// runtime is podman, docker, lxc, kubernetes and the like.
	runtime string
}

func (c container) name() string { return c.runtime }

func (c container) is() bool { return c.runtime != "" }

// inContainer looks for the marks that runtimes leave. They are not believed in the machine's own namespaces, where a
// root file system was made of an image.
func inContainer(s System) container {
	if machineNamespaces(s) {
		return container{}
	}
	if text, err := s.ReadFile("/run/.containerenv"); err == nil {
		runtime := "podman"
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, "engine="); ok {
				runtime = strings.Trim(strings.TrimSpace(value), `"`)
			}
		}
		return container{runtime}
	}
	if _, err := s.Stat("/.dockerenv"); err == nil {
		return container{"docker"}
	}
	if s.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return container{"kubernetes"}
	}
	if c := s.Getenv("container"); c != "" {
		return container{c}
	}
	text, _ := s.ReadFile("/proc/1/cgroup")
	for _, runtime := range []string{"docker", "kubepods", "libpod", "containerd", "lxc"} {
		if strings.Contains(string(text), "/"+runtime) {
			return container{runtime}
		}
	}
	return container{}
}

// machineNamespaces says that the process is in the first PID, UTS and IPC namespaces; their numbers are constant (cf.
// linux/proc_ns.h, PROC_PID_INIT_INO and its like).
func machineNamespaces(s System) bool {
	for name, first := range map[string]string{
		"pid": "pid:[4026531836]", "uts": "uts:[4026531838]",
		"ipc": "ipc:[4026531839]",
	} {
		if is, err := s.Readlink("/proc/self/ns/" + name); err != nil || is != first {
			return false
		}
	}
	return true
}

// mount is a line of mountinfo.
type mount struct {
	target, fstype, source string
	// dev is the device number, major:minor.
	dev string
	// options are those of the mount and of its file system.
	options []string
}

func (m mount) has(option string) bool { return slices.Contains(m.options, option) }

// ours says whether a mount is one of plyfs, or of a fuse-overlayfs, which plyfs may be.
func (m mount) ours() bool { return m.fstype == "fuse.plyfs" || m.fstype == "fuse.fuse-overlayfs" }

func readMounts(s System) []mount {
	text, _ := s.ReadFile("/proc/self/mountinfo")
	return parseMounts(string(text))
}

// parseMounts reads mountinfo (proc(5)); lines that are none are left out.
func parseMounts(text string) []mount {
	var all []mount
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		if !ok || len(b) < 6 || len(a) < 3 {
			continue
		}
		all = append(all, mount{
			target: sys.UnescapeMount(b[4]), dev: b[2], fstype: a[0], source: sys.UnescapeMount(a[1]),
			options: append(strings.Split(b[5], ","), strings.Split(a[2], ",")...),
		})
	}
	return all
}

// mountOf returns the mount that a path is on: the last one of the longest matching mount point.
func (m *machine) mountOf(path string) (best mount) {
	for _, one := range m.mounts() {
		if beneath(path, one.target) && len(one.target) >= len(best.target) {
			best = one
		}
	}
	return best
}

// beneath says whether path is dir or in it.
func beneath(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// nearest returns the path itself, or the nearest directory above it that exists, without symbolic links.
func (m *machine) nearest(path string) string {
	for {
		real, err := m.Resolve(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || path == "/" || path == "." {
			return cmp.Or(real, path)
		}
		path = filepath.Dir(path)
	}
}
