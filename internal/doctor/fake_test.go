package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// fake is a System of maps: a machine that can be broken in any way.
type fake struct {
	user     User
	env      map[string]string
	files    map[string]string
	stats    map[string]Stat
	links    map[string]string
	xattrs   map[string]string
	denied   map[string]error // of ReadFile, Stat and OpenDevice
	readOnly map[string]bool
	space    Space
	limit    uint64
	uring    error
	programs map[string]string // by name
	services map[string]string // by name, on the PATH of services
	outputs  map[string]string // of "PROGRAM ARG..."
	failures map[string]error
	trials   map[string]trialOutcome // by name of the trial
	hang     string                  // the trial that ends with the context only
}

type trialOutcome struct {
	results []Result
	err     error
}

const (
	procStatus  = "Name:\tplyfs\nCapEff:\t%s\nSeccomp:\t0\n"
	allCaps     = "000001ffffffffff"
	noCaps      = "0000000000000000"
	wholeUIDMap = "         0          0 4294967295\n"
	healthyInfo = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n23 22 0:21 / /proc rw - proc none rw\n24 22 0:22 / " +
		"/sys/fs/cgroup rw - cgroup2 none rw\n"
	probeOutput  = `[{"driver":"plyfs","usable":true,"why":"it mounts","chosen":true},{"driver":"zfs","usable":false,"why":"no zfs","todo":"x"}]`
	kernelOutput = `{"major":7,"minor":45,"passthrough":true,"idmapped":true,"over_io_uring":false}`
)

// healthyUser is a machine on which all is well for a plain user.
func healthyUser() *fake {
	f := &fake{
		user: User{UID: 1000, Name: "alice", Home: "/home/alice"},
		env:  map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000", "PATH": "/usr/bin"},
		files: map[string]string{
			"/proc/self/status": fmt.Sprintf(procStatus, noCaps), "/proc/self/uid_map": wholeUIDMap,
			"/proc/self/mountinfo": healthyInfo, "/proc/filesystems": "nodev\tfuse\n", "/proc/sys/kernel/osrelease": "6.12.1-amd64\n",
			"/proc/sys/user/max_user_namespaces": "28633\n", "/proc/sys/fs/mount-max": "100000\n",
			"/proc/sys/fs/inotify/max_user_watches": "192536\n", "/proc/sys/fs/inotify/max_user_instances": "128\n",
			"/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers": "cpu memory pids\n",
			"/etc/subuid": "alice:100000:65536\n", "/etc/subgid": "alice:100000:65536\n", "/etc/fuse.conf": "user_allow_other\n",
			"/home/alice/.config/containers/storage.conf": "[storage]\ndriver = \"overlay\"\n[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\n",
			"/etc/os-release":                       "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
			"/proc/sys/kernel/random/boot_id":       "boot-2\n",
			"/home/alice/.local/share/plyfs/driver": "plyfs",
		},
		stats: map[string]Stat{
			fuseDevice:             {Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: fuseMajor, Minor: fuseMinor},
			"/usr/bin/fusermount3": {Mode: 0o755 | fs.ModeSetuid}, "/usr/bin/newuidmap": {Mode: 0o755 | fs.ModeSetuid},
			"/usr/bin/newgidmap": {Mode: 0o755 | fs.ModeSetuid}, "/run/user/1000": {Mode: fs.ModeDir | 0o700, UID: 1000},
			"/home/alice/.local/share/plyfs": {
				Mode: fs.ModeDir | 0o700,
				UID:  1000,
			}, "/home/alice/.cache/plyfs/index": {Mode: fs.ModeDir | 0o700, UID: 1000},
		},
		links: map[string]string{
			"/proc/self/ns/pid": "pid:[4026531836]", "/proc/self/ns/uts": "uts:[4026531838]",
			"/proc/self/ns/ipc": "ipc:[4026531839]",
		},
		xattrs: map[string]string{}, denied: map[string]error{}, readOnly: map[string]bool{},
		space: Space{Free: 100 << 30, Size: 200 << 30, FreeInodes: 1 << 20, Inodes: 2 << 20}, limit: 1 << 20,
		programs: map[string]string{
			"fusermount3": "/usr/bin/fusermount3", "newuidmap": "/usr/bin/newuidmap", "newgidmap": "/usr/bin/newgidmap", "podman": "/usr/bin/podman",
			"fuse-overlayfs": "/usr/bin/fuse-overlayfs",
		},
		services: map[string]string{
			"fuse-overlayfs": "/usr/bin/fuse-overlayfs", "plyfs": "/usr/bin/plyfs",
			"mount.fuse3": "/sbin/mount.fuse3",
		},
		outputs: map[string]string{
			"/usr/bin/fusermount3 --version": "fusermount3 version: 3.14.0\n",
			"/usr/bin/podman --version":      "podman version 4.3.1\n",
			"/usr/bin/fuse-overlayfs --version": "fuse-overlayfs: version 1.17\nplyfs: version " +
				"v1.0 commit abc go1.26 linux/amd64\n",
			"plyfs unshare cat /proc/self/uid_map": "         0       1000          1\n         1 " +
				"    100000      65536\n",
			"plyfs driver probe --json --root /home/alice/.local/share/plyfs": probeOutput,
		},
		failures: map[string]error{},
		trials: map[string]trialOutcome{
			trialNamespace: ok("tmpfs"), trialOverlay: ok("tmpfs", "layers", "mount", "delete", "unmount"),
			trialMount: ok("tmpfs", "layers", "mount", "use", "unmount", "upper=30ms"), trialFusermount: ok("layers", "mount",
				"use", "unmount", "upper=40ms"),
			trialKernel: ok("tmpfs", "init="+kernelOutput), trialDrivers: ok("private", "proc",
				"probe="+probeOutput), trialFiles: ok("files", "user", "trusted", "reflink", "types"),
		},
	}
	return f
}

// healthyRoot is the same for root.
func healthyRoot() *fake {
	f := healthyUser()
	f.user = User{UID: 0, Name: "root", Home: "/root"}
	f.files["/proc/self/status"] = fmt.Sprintf(procStatus, allCaps)
	f.files["/etc/containers/storage.conf"] = f.files["/home/alice/.config/containers/storage.conf"]
	for _, dir := range []string{"/var/lib/plyfs", "/var/cache/plyfs/index"} {
		f.stats[dir] = Stat{Mode: fs.ModeDir | 0o700}
	}
	return f
}

// optionsOf are those of the command for the user of f.
func optionsOf(f *fake) Options {
	if f.user.UID == 0 {
		return Options{Root: "/var/lib/plyfs", IndexDir: "/var/cache/plyfs/index"}
	}
	return Options{Root: "/home/alice/.local/share/plyfs", IndexDir: "/home/alice/.cache/plyfs/index"}
}

// ok is the outcome of a trial that succeeds; a step may have a value.
func ok(names ...string) trialOutcome {
	var o trialOutcome
	for _, n := range names {
		step, value, _ := strings.Cut(n, "=")
		o.results = append(o.results, Result{Step: step, Value: value})
	}
	return o
}

// fails is the outcome of a trial of which the last step fails.
func fails(errno syscall.Errno, names ...string) trialOutcome {
	o := ok(names...)
	last := &o.results[len(o.results)-1]
	last.Error, last.Errno = errno.Error(), int(errno)
	return o
}

func (f *fake) User() User                { return f.user }
func (f *fake) Getenv(name string) string { return f.env[name] }

func (f *fake) ReadFile(path string) ([]byte, error) {
	if err := f.denied[path]; err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if text, ok := f.files[path]; ok {
		return []byte(text), nil
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ENOENT}
}

// names are all paths that there are.
func (f *fake) names() []string {
	return slices.Concat(slices.Collect(maps.Keys(f.files)), slices.Collect(maps.Keys(f.stats)),
		slices.Collect(maps.Keys(f.links)))
}

func (f *fake) ReadDir(path string) ([]string, error) {
	var all []string
	for _, n := range f.names() {
		if rest, ok := strings.CutPrefix(n, path+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			all = append(all, first)
		}
	}
	if all == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ENOENT}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func (f *fake) Stat(path string) (Stat, error) {
	if st, ok := f.stats[path]; ok {
		return st, nil
	}
	if _, ok := f.files[path]; ok {
		return Stat{Mode: 0o644}, nil
	}
	if _, err := f.ReadDir(path); err == nil || path == "/" {
		return Stat{Mode: fs.ModeDir | 0o755}, nil
	}
	return Stat{}, &fs.PathError{Op: "stat", Path: path, Err: syscall.ENOENT}
}

func (f *fake) Readlink(path string) (string, error) {
	if to, ok := f.links[path]; ok {
		return to, nil
	}
	return "", &fs.PathError{Op: "readlink", Path: path, Err: syscall.ENOENT}
}

func (f *fake) Resolve(path string) (string, error) {
	_, err := f.Stat(path)
	return path, err
}

func (f *fake) Getxattr(path, name string) ([]byte, error) {
	if v, ok := f.xattrs[path+" "+name]; ok {
		return []byte(v), nil
	}
	return nil, syscall.ENODATA
}

func (f *fake) Statfs(string) (Space, error) { return f.space, nil }
func (f *fake) Writable(path string) bool    { return !f.readOnly[path] }

func (f *fake) OpenDevice(path string) error {
	if err := f.denied[path]; err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return nil
}

func (f *fake) OpenFiles() (soft, hard uint64) { return 1024, f.limit }
func (f *fake) IOUring() error                 { return f.uring }

func (f *fake) LookPath(name, path string) (string, error) {
	list := f.programs
	if path != "" {
		list = f.services
	}
	if p, ok := list[name]; ok {
		return p, nil
	}
	return "", &fs.PathError{Op: "look for", Path: name, Err: fs.ErrNotExist}
}

func (f *fake) Output(_ context.Context, name string, args ...string) (string, error) {
	line := strings.Join(append([]string{name}, args...), " ")
	if err := f.failures[line]; err != nil {
		return f.outputs[line], err
	}
	if out, ok := f.outputs[line]; ok {
		return out, nil
	}
	return "", fmt.Errorf("%s: %w", filepath.Base(name), errors.ErrUnsupported)
}

func (f *fake) Self(ctx context.Context, args ...string) (string, error) {
	return f.Output(ctx, "plyfs", args...)
}

func (f *fake) Try(ctx context.Context, t Trial) ([]Result, error) {
	if t.Name == f.hang {
		<-ctx.Done()
		return f.trials[t.Name].results, ctx.Err()
	}
	o := f.trials[t.Name]
	return o.results, o.err
}
