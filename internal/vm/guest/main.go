package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Inside reports whether this process is in a machine's initial file system.
func Inside() bool {
	_, err := os.Stat(JobFile)
	return err == nil
}

// Main does the machine's job and turns it off. It does not return.
func Main() {
	var j Job
	err := j.do()
	if err != nil {
		fmt.Println("vm: first process:", err) // on the console
	}
	unix.Sync()
	if j.Off == 0 {
		j.Off = unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	err = unix.Reboot(j.Off)
	// The kernel panics when its first process ends, and that ends the machine too.
	fmt.Println("vm: cannot turn off:", err)
	os.Exit(1)
}

func (j *Job) do() error {
	text, err := os.ReadFile(JobFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, j); err != nil {
		return fmt.Errorf("%s: %w", JobFile, err)
	}
	if err := j.assemble(); err != nil {
		return err
	}
	status, err := openPort(j.Status)
	if err != nil {
		return err
	}
	code, err := j.run()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(status, "%s%d\n", ExitPrefix, code); err != nil {
		return err
	}
	drain(status)
	return nil
}

// exitNotFound is what shells say of a program that is not there.
const exitNotFound = 127

// run runs the program and returns its exit status.
func (j *Job) run() (int, error) {
	for _, kv := range append(j.Env, "TMPDIR="+tmpDir) {
		for i := range len(kv) {
			if kv[i] == '=' {
				if err := os.Setenv(kv[:i], kv[i+1:]); err != nil {
					return 0, err
				}
				break
			}
		}
	}
	args, stdio, err := j.stdio()
	if err != nil {
		return 0, err
	}
	file, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintln(stdio[2], "vm:", err)
		drain(stdio[2])
		return exitNotFound, nil
	}
	dir := j.Dir
	if _, err := os.Stat(dir); err != nil {
		dir = "/"
	}
	attr := &os.ProcAttr{Dir: dir, Files: stdio, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: j.Terminal}}
	p, err := os.StartProcess(file, args, attr)
	if err != nil {
		fmt.Fprintln(stdio[2], "vm:", err)
		drain(stdio[2])
		return exitNotFound, nil
	}
	code, err := reap(p.Pid)
	drain(stdio[1])
	return code, err
}

// stdio returns what to run and its descriptors.
func (j *Job) stdio() ([]string, []*os.File, error) {
	if j.Terminal {
		tty, err := os.OpenFile(j.Console, os.O_RDWR, 0)
		if err != nil {
			return nil, nil, err
		}
		return []string{"/bin/bash", "-l"}, []*os.File{tty, tty, tty}, nil
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, err
	}
	out, err := openPort(j.Output)
	if err != nil {
		return nil, nil, err
	}
	return j.Args, []*os.File{null, out, out}, nil
}

// reap waits for a child, and for all orphans until then, and returns its exit status as shells count it.
func reap(pid int) (int, error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case got == pid && ws.Exited():
			return ws.ExitStatus(), nil
		case got == pid:
			return 128 + int(ws.Signal()), nil // no stop is reported, so a signal ended it
		}
	}
}

// portWait is how long a device may take to appear after its driver was loaded.
const portWait = 10 * time.Second

// openPort opens a device for writing bytes that reach the host as they are.
func openPort(name string) (*os.File, error) {
	deadline := time.Now().Add(portWait)
	for {
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err == nil {
			raw(fd)
			return os.NewFile(uintptr(fd), name), nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// raw makes a terminal leave bytes alone; what is no terminal does so anyway.
func raw(fd int) {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON
	_ = unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// drain waits until the host has what was written; cf. tcdrain(3).
func drain(f *os.File) {
	_ = unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) // only terminals keep something back
}

// load loads the modules of the initial file system in the order of their names.
func load() error {
	files, err := filepath.Glob(ModuleDir + "/*.ko")
	if err != nil {
		return err
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}
