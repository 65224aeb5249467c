package plyfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"plyfs/drivers"
)

// VerdictEnv is the environment variable that holds the number of a descriptor to which plyfs, started to serve a
// mount, writes whether it does: one byte, zero for yes, else the exit code of mount(8) followed by the reason. It
// serves in the process that was started, and gives up its standard files with the verdict.
const VerdictEnv = "_PLYFS_VERDICT_FD"

// maxVerdict bounds the reason, and maxStderr what is kept of a server's last words.
const (
	maxVerdict = 64 << 10
	maxStderr  = 16 << 10
)

// command is a server to be started.
type command struct {
	program, dir string
	// args begin with the name that the program is called by.
	args []string
}

// process is a server that serves.
type process struct {
	pid int
	// started is the time of its start in clock ticks since boot, which tells it from another of the same number.
	started uint64
	// ended is closed when the process was waited for.
	ended chan struct{}
	cmd   *exec.Cmd
}

// start starts a server and returns when it serves. It goes on when this process ends.
func start(ctx context.Context, c command) (*process, error) {
	verdict, report, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer verdict.Close()
	last := &tail{max: maxStderr}
	cmd := exec.Command(c.program)
	cmd.Args, cmd.Dir, cmd.Stderr = c.args, c.dir, last
	cmd.Env = append(os.Environ(), VerdictEnv+"=3")
	cmd.ExtraFiles = []*os.File{report}
	// Signals of the terminal are not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	report.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w: %w", c.program, err, drivers.ErrPrerequisites)
	}
	p := &process{pid: cmd.Process.Pid, ended: make(chan struct{}), cmd: cmd}
	go func() {
		_ = cmd.Wait() // how it ended, its verdict and its log tell
		close(p.ended)
	}()
	stop := context.AfterFunc(ctx, func() { verdict.Close() })
	answer, err := io.ReadAll(io.LimitReader(verdict, maxVerdict))
	if !stop() {
		return nil, errors.Join(ctx.Err(), p.kill())
	}
	if err != nil {
		return nil, errors.Join(err, p.kill())
	}
	if len(answer) == 1 && answer[0] == 0 {
		p.started, err = startTime(p.pid)
		if err != nil {
			return nil, errors.Join(err, p.kill())
		}
		return p, nil
	}
	<-p.ended
	if len(answer) == 0 {
		return nil, fmt.Errorf("%s ended before it served: %v: %s", c.program, cmd.ProcessState, last)
	}
	return nil, fmt.Errorf("%s: %s", c.program, strings.TrimSpace(string(answer[1:])))
}

// kill ends a server at once, and waits for its end.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.ended
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// tail keeps the beginning of what is written to it.
type tail struct {
	mu  sync.Mutex
	max int
	buf bytes.Buffer // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p[:min(len(p), max(t.max-t.buf.Len(), 0))])
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.buf.String())
}
