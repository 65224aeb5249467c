package control

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// Process is a server that was found in /proc.
type Process struct {
	PID     int
	UID     uint32
	Started time.Time
	// ResidentBytes is its resident memory.
	ResidentBytes uint64
	// Options are those of its -o, one string; Target its last argument, absolute only if it was given so.
	Options, Target string
	// Foreign says that it is in another mount namespace: its paths are not those of the caller.
	Foreign bool
}

// Servers returns the servers of mounts among the processes that this user may look into: those that run a program named plyfs, or
// one that was built from this project, under whatever name, and have /dev/fuse open. Processes that end meanwhile are left out.
func Servers(ctx context.Context) ([]Process, error) {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	boot := bootTime()
	var list []Process
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if p, ok := lookAt(pid, self, boot); ok {
			list = append(list, p)
		}
	}
	return list, nil
}

// lookAt reports whether a process is a server.
func lookAt(pid int, self os.FileInfo, boot time.Time) (p Process, ok bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return p, false
	}
	if !serves(pid) || !isOurs(exe, dir+"/exe", self) {
		return p, false
	}
	p.PID = pid
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return p, false
	}
	p.UID = st.Uid
	p.Started, p.ResidentBytes = startOf(dir, boot), residentOf(dir)
	p.Foreign = linkOf(dir+"/ns/mnt") != linkOf("/proc/self/ns/mnt")
	args, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return p, false
	}
	p.Options, p.Target = mountArgs(strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00"))
	return p, true
}

// isOurs reports whether a process runs a program of this project, under whatever name and from whatever copy: link is where its file
// was, exe the file itself.
func isOurs(link, exe string, self os.FileInfo) bool {
	if strings.TrimSuffix(filepath.Base(link), " (deleted)") == baseName {
		return true
	}
	if info, err := os.Stat(exe); err != nil || os.SameFile(info, self) {
		return err == nil
	}
	info, err := buildinfo.ReadFile(exe)
	return err == nil && strings.HasPrefix(info.Path, baseName+"/cmd/"+baseName)
}

// mountArgs finds options and mount point in a command line, as far as people need that.
func mountArgs(args []string) (options, target string) {
	for i := 1; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-o" && i+1 < len(args):
			i++
			options += "," + args[i]
		case strings.HasPrefix(a, "-o"):
			options += "," + a[2:]
		case !strings.HasPrefix(a, "-"):
			target = a
		}
	}
	return strings.TrimPrefix(options, ","), target
}

// serves reports whether a process has /dev/fuse open, as far as this user may see.
func serves(pid int) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if linkOf(filepath.Join(dir, fd.Name())) == "/dev/fuse" {
			return true
		}
	}
	return false
}

func linkOf(path string) string {
	to, err := os.Readlink(path)
	if err != nil {
		return ""
	}
	return to
}

// lives reports whether there is a process with that id that has not ended: one that nobody waited for yet has.
func lives(pid int) bool {
	if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return false
	}
	fields, err := statFields(filepath.Join("/proc", strconv.Itoa(pid)))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	return len(fields) == 0 || fields[0][0] != 'Z' && fields[0][0] != 'X'
}

// statFields returns the fields of /proc/PID/stat from the third one on, which is the state.
func statFields(dir string) ([][]byte, error) {
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return nil, err
	}
	// The second is the name, in parentheses, and may hold anything.
	return bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]), nil
}

// ticks is the unit of times in /proc/PID/stat, which is the same on all of Linux (cf. USER_HZ).
const ticks = 100

// startOf is when a process began, to a tick.
func startOf(dir string, boot time.Time) time.Time {
	const startTime = 22 - 3 // it is field 22
	fields, err := statFields(dir)
	if err != nil || len(fields) <= startTime {
		return time.Time{}
	}
	n, err := strconv.ParseInt(string(fields[startTime]), 10, 64)
	if err != nil || boot.IsZero() {
		return time.Time{}
	}
	return boot.Add(time.Duration(n) * time.Second / ticks)
}

func bootTime() time.Time {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(now.Nano()))
}

// ResidentBytes is the resident memory of a process, 0 if that can't be seen.
func ResidentBytes(pid int) uint64 { return residentOf(filepath.Join("/proc", strconv.Itoa(pid))) }

func residentOf(dir string) uint64 {
	b, err := os.ReadFile(dir + "/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}

// Mount is a FUSE mount of plyfs, or in the name of fuse-overlayfs, in this mount namespace.
type Mount struct {
	// Target is where it is, Type its file system type, Source what it was called.
	Target, Type, Source string
	// Device is the number of its files, such as 0:57.
	Device string
}

// Mounts returns those of this mount namespace, the latest of each device only.
func Mounts() ([]Mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []Mount
	at := make(map[string]int)
	for line := range strings.Lines(string(b)) {
		m, ok := parseMount(line)
		if !ok || m.Type != "fuse.plyfs" && m.Type != "fuse.fuse-overlayfs" {
			continue
		}
		if i, seen := at[m.Device]; seen {
			list[i] = m
			continue
		}
		at[m.Device] = len(list)
		list = append(list, m)
	}
	return list, nil
}

// parseMount reads one line of mountinfo (cf. proc_pid_mountinfo(5)).
func parseMount(line string) (m Mount, ok bool) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 2 {
		return m, false
	}
	return Mount{Target: sys.UnescapeMount(f[4]), Device: f[2], Type: g[0], Source: sys.UnescapeMount(g[1])}, true
}

// ErrNoServer says that the server of a mount ended, so that every use of it fails.
var ErrNoServer = errors.New("no server")

// Probe finds out whether the mount on target is served. The error is ErrNoServer, or os.ErrDeadlineExceeded if it did not answer
// until ctx ended: then a thread of this process waits on for the answer.
func Probe(ctx context.Context, target string) error {
	done := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		done <- unix.Statfs(target, &st)
	}()
	select {
	case err := <-done:
		if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
			return ErrNoServer
		}
		return nil
	case <-ctx.Done():
		return os.ErrDeadlineExceeded
	}
}
