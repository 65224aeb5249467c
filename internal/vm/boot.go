package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"plyfs/internal/vm/guest"
)

var (
	errTimeout = errors.New("killed at its time limit")
	errLost    = errors.New("the machine ended without saying how the program did")
)

// maxDisks is what the names of the disks' devices allow.
const maxDisks = 8

// consoleTail is how much of the console's end is shown when the machine fails.
const consoleTail = 8 << 10

// hypervisor is what differs between user-mode Linux and qemu.
type hypervisor struct {
	// modules are loaded before there is a root.
	modules []string
	// disk is the device of the first disk, but for its last letter.
	disk string
	// fill adds to a job what only this one knows.
	fill func(j *guest.Job, m machine)
	// command builds the process.
	command func(o options, m machine, f files) *exec.Cmd
}

// machine is what prepare.sh made.
type machine struct {
	dir, kind, release string
}

func (m machine) kernel() string  { return filepath.Join(m.dir, "kernel") }
func (m machine) root() string    { return filepath.Join(m.dir, "root") }
func (m machine) modules() string { return filepath.Join(m.root(), "usr/lib/modules", m.release) }

func openMachine(dir string) (machine, error) {
	m := machine{dir: dir}
	for name, to := range map[string]*string{"kind": &m.kind, "release": &m.release} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return m, fmt.Errorf("machine %s is not whole (prepare.sh makes it): %w", dir, err)
		}
		*to = strings.TrimSpace(string(b))
	}
	return m, nil
}

// files are the descriptors that the machine's process inherits, by their numbers there.
type files struct {
	all                             []*os.File
	output, status, console, initrd int
	disks                           []int
}

// firstFD is the number in a child of the first of exec.Cmd.ExtraFiles.
const firstFD = 3

func (f *files) add(file *os.File) int {
	f.all = append(f.all, file)
	return firstFD + len(f.all) - 1
}

func (f *files) close() {
	for _, file := range f.all {
		file.Close()
	}
}

// fdPath is a name under which a process that inherits descriptor fd can open it anew.
func fdPath(fd int) string { return "/dev/fd/" + strconv.Itoa(fd) }

// boot runs the program of o in a machine and returns its exit status.
func boot(ctx context.Context, o options) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("must run as root: the machine sees the host's files through this process")
	}
	m, err := openMachine(o.machine)
	if err != nil {
		return 0, err
	}
	h, ok := hypervisors()[m.kind]
	if !ok {
		return 0, fmt.Errorf("machine %s is of an unknown kind %q", m.dir, m.kind)
	}
	var f files
	defer f.close()
	if err := f.open(o, m, h); err != nil {
		return 0, err
	}
	output, err := f.pipe(&f.output)
	if err != nil {
		return 0, err
	}
	defer output.Close()
	status, err := f.pipe(&f.status)
	if err != nil {
		return 0, err
	}
	defer status.Close()
	console, err := f.pipe(&f.console)
	if err != nil {
		return 0, err
	}
	defer console.Close()
	cmd := h.command(o, m, f)
	cmd.ExtraFiles = f.all
	if o.shell {
		cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	}
	return supervise(ctx, cmd, &f, streams{output, status, console})
}

// pipe adds the end that the machine writes to and returns the one to read.
func (f *files) pipe(fd *int) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	*fd = f.add(w)
	return r, nil
}

// open makes the disks and the initial file system.
func (f *files) open(o options, m machine, h hypervisor) error {
	job := guest.Job{Args: o.command, Terminal: o.shell}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	job.Dir = dir
	for i, size := range o.disks {
		disk, err := diskFile(size)
		if err != nil {
			return err
		}
		f.disks = append(f.disks, f.add(disk))
		job.Disks = append(job.Disks, h.disk+string(rune('a'+i)))
	}
	job.Env = environment(job.Disks)
	h.fill(&job, m)
	text, err := json.Marshal(job)
	if err != nil {
		return err
	}
	modules, err := loadOrder(m.modules(), h.modules)
	if err != nil {
		return err
	}
	initrd, err := initialFiles(text, modules)
	if err != nil {
		return fmt.Errorf("initial file system: %w", err)
	}
	f.initrd = f.add(initrd)
	return nil
}

// environment is that of the program.
func environment(disks []string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "TMPDIR=") })
	return append(env, "PLYFS_VM=1", "PLYFS_VM_DISKS="+strings.Join(disks, " "), "DM_DISABLE_UDEV=1")
}

// diskFile returns an empty sparse file without a name.
func diskFile(size int64) (*os.File, error) {
	fd, err := unix.Open(os.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("disk in %s: %w", os.TempDir(), err)
	}
	f := os.NewFile(uintptr(fd), "disk")
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, fmt.Errorf("disk of %d bytes in %s: %w", size, os.TempDir(), err)
	}
	return f, nil
}

// streams are what the machine writes to.
type streams struct{ output, status, console *os.File }

// supervise runs the machine's process until it ends or ctx is done.
func supervise(ctx context.Context, cmd *exec.Cmd, f *files, s streams) (int, error) {
	// The first process of a PID namespace takes all others with it, and this one dies with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%s: %w", cmd.Path, err)
	}
	f.close()
	f.all = nil
	killed := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it may have ended by itself
	defer killed()

	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(os.Stdout, s.output) // whoever reads this process's output may be gone
	}()
	logged := make(chan []byte, 1)
	go func() { logged <- tail(s.console) }()
	result := make(chan string, 1)
	go func() { result <- lastLine(s.status) }()

	<-copied
	code, said := exitStatus(<-result)
	console := <-logged
	err := cmd.Wait()
	switch {
	case said:
		return code, nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil:
		err = errLost
	default:
		err = fmt.Errorf("%w: %w", errLost, err)
	}
	return 0, fmt.Errorf("%w; the end of its console:\n%s", err, console)
}

// tail reads to the end and returns the last part.
func tail(r io.Reader) []byte {
	var kept []byte
	buf := make([]byte, consoleTail)
	for {
		n, err := r.Read(buf)
		kept = append(kept, buf[:n]...)
		kept = kept[max(0, len(kept)-consoleTail):]
		if err != nil {
			return kept
		}
	}
}

// lastLine reads to the end and returns the last whole line.
func lastLine(r io.Reader) string {
	var last string
	for lines := bufio.NewScanner(r); lines.Scan(); {
		last = lines.Text()
	}
	return last
}

// exitStatus takes the program's exit status out of the last line that the machine's first process wrote.
func exitStatus(line string) (int, bool) {
	text, ok := strings.CutPrefix(strings.TrimSpace(line), guest.ExitPrefix)
	if !ok {
		return 0, false
	}
	code, err := strconv.Atoi(text)
	return code, err == nil
}
