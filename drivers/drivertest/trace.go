package drivertest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mutating are the system calls that change something outside the process. What a program does in between leaves
// nothing.
func mutating() map[int64]bool {
	m := make(map[int64]bool)
	for _, nr := range []int64{
		unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_UNLINKAT, unix.SYS_SYMLINKAT, unix.SYS_LINKAT, unix.SYS_RENAMEAT,
		unix.SYS_RENAMEAT2,
		unix.SYS_OPENAT, unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE,
		unix.SYS_COPY_FILE_RANGE, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT,
		unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_IOCTL, unix.SYS_MOUNT, unix.SYS_UMOUNT2,
		unix.SYS_FSMOUNT, unix.SYS_MOVE_MOUNT, unix.SYS_FSYNC, unix.SYS_SYNCFS, unix.SYS_SETXATTRAT,
	} {
		m[nr] = true
	}
	return m
}

// killAt runs the deed in a process of its own, and kills that when it is about to make its i-th system call that
// changes something; never for i < 0. It returns how many such calls there were, and what the process said was done.
// Programs that the process starts live on.
func killAt(e *env, i int) (calls int, done []string, err error) {
	e.Helper()
	out, err := os.CreateTemp(e.T.TempDir(), "out")
	if err != nil {
		return 0, nil, err
	}
	defer out.Close()
	// By its magic link: a user namespace's root may not search the directory that the binary was built in.
	cmd := exec.Command("/proc/self/exe", "-test.run="+pattern(filepath.Dir(e.Name())), "-test.v")
	cmd.Env = append(os.Environ(), envChild+"="+e.base, "GOTRACEBACK=none")
	cmd.Stdout, cmd.Stderr = out, out
	calls, err = trace(cmd, i)
	if _, serr := out.Seek(0, 0); serr != nil {
		return calls, nil, serr
	}
	done, rest := readDone(out)
	if err != nil {
		return calls, done, fmt.Errorf("%w; it said %s", err, rest)
	}
	return calls, done, nil
}

// pattern matches the test of that name alone.
func pattern(test string) string {
	parts := strings.Split(test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

// trace runs cmd under ptrace and counts the mutating system calls of all its threads; at the i-th it is killed.
// Without a kill the command has to succeed.
func trace(cmd *exec.Cmd, i int) (calls int, err error) {
	// All requests must come from the thread that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	t := tracer{pid: pid, kill: i, changes: mutating(), inCall: make(map[int]bool)}
	err = t.run()
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = cmd.Process.Wait()
	}
	// The process was waited for above.
	_ = cmd.Process.Release()
	return t.calls, err
}

type tracer struct {
	pid, kill, calls int
	changes          map[int64]bool
	inCall           map[int]bool // threads that are between entry and exit of a call
	killed           bool
}

const traceOptions = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL

func (t *tracer) run() error {
	var ws unix.WaitStatus
	if _, err := unix.Wait4(t.pid, &ws, unix.WALL, nil); err != nil {
		return fmt.Errorf("wait for the process to begin: %w", err)
	}
	if err := unix.PtraceSetOptions(t.pid, traceOptions); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	if err := unix.PtraceSyscall(t.pid, 0); err != nil {
		return fmt.Errorf("trace: %w", err)
	}
	for {
		tid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait for the process: %w", err)
		case tid == t.pid && !ws.Stopped():
			return t.ended(ws)
		case !ws.Stopped():
			continue // a thread that ended, or an orphan of another process
		}
		if err := t.stopped(tid, ws); err != nil {
			return err
		}
	}
}

func (t *tracer) ended(ws unix.WaitStatus) error {
	if t.killed || ws.Exited() && ws.ExitStatus() == 0 {
		return nil
	}
	return fmt.Errorf("the process ended by itself, exit code %d, signal %v", ws.ExitStatus(), ws.Signal())
}

// stopped lets a thread go on, or kills the process.
func (t *tracer) stopped(tid int, ws unix.WaitStatus) error {
	signal := 0
	switch sig := ws.StopSignal(); sig {
	case unix.SIGTRAP | 0x80: // entry or exit of a system call
		entry := !t.inCall[tid]
		t.inCall[tid] = entry
		if entry && t.changing(tid) {
			if t.calls == t.kill {
				t.killed = true
				return ignoreGone(unix.Kill(t.pid, unix.SIGKILL))
			}
			t.calls++
		}
	case unix.SIGTRAP: // an event: a thread began
	case unix.SIGSTOP: // the first stop of a new thread
	default:
		signal = int(sig)
	}
	return ignoreGone(unix.PtraceSyscall(tid, signal))
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil // killed, or ended
	}
	return err
}

// changing says whether the thread, which is at the entry of a system call, is about to change something.
func (t *tracer) changing(tid int) bool {
	nr, third, err := systemCall(tid)
	if err != nil || !t.changes[nr] {
		return false
	}
	return nr != unix.SYS_OPENAT || third&(unix.O_CREAT|unix.O_TRUNC) != 0
}
