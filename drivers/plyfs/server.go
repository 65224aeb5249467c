package plyfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/fs/mountopt"
)

// maxVerdict bounds the reason, and maxStderr what is kept of a server's last words.
const (
	maxVerdict = 64 << 10
	maxStderr  = 16 << 10
)

// process is a server that serves a mount, or one that waits for a mount to serve.
type process struct {
	pid int
	// started is the time of its start in clock ticks since boot, which tells it from another of the same number.
	started uint64
	// ended is closed when the process was waited for.
	ended chan struct{}
	cmd   *exec.Cmd
	// orders is the socket for command lines and verdicts.
	orders *os.File
	stderr *tail
}

// service is one mount that a process serves.
type service struct {
	*process
	// over is closed when the mount is gone and nothing of it is left in the process, which may serve another by then.
	over chan struct{}
}

// launch starts a program that waits for a mount to serve. It goes on when this process ends, but for one that still
// waits.
func launch(program, dir string) (*process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	// The runtime's poller takes only what does not block, and a verdict that does not come must not hold a thread.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fds[0]), unix.Close(fds[1]))
	}
	orders, theirs := os.NewFile(uintptr(fds[0]), "orders"), os.NewFile(uintptr(fds[1]), "orders")
	p := &process{ended: make(chan struct{}), orders: orders, stderr: &tail{max: maxStderr}}
	p.cmd = exec.Command(program)
	p.cmd.Args, p.cmd.Dir, p.cmd.Stderr = []string{Name, "(standing by)"}, dir, p.stderr
	p.cmd.Env = append(os.Environ(), mountopt.StandbyEnv+"=3")
	p.cmd.ExtraFiles = []*os.File{theirs}
	// Signals of the terminal are not for it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = p.cmd.Start()
	if cerr := theirs.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w: %w", program, err, drivers.ErrPrerequisites), orders.Close())
	}
	p.pid = p.cmd.Process.Pid
	if p.started, err = startTime(p.pid); err != nil {
		return nil, errors.Join(err, p.cmd.Process.Kill(), p.cmd.Wait(), orders.Close())
	}
	go func() {
		_ = p.cmd.Wait() // how it ended, its verdict and its log tell
		close(p.ended)
	}()
	return p, nil
}

// errNotWaiting says that a process that was started in advance ended before it got anything to do.
var errNotWaiting = errors.New("the server that stood by is gone")

// serve gives a waiting process its command line, and returns when it serves. After an error the process is gone.
func (p *process) serve(ctx context.Context, args []string) error {
	stop := context.AfterFunc(ctx, func() { p.orders.Close() })
	answer, err := p.order(args)
	if !stop() {
		return errors.Join(ctx.Err(), p.kill())
	}
	if err == nil && len(answer) == 1 && answer[0] == 0 {
		return nil
	}
	if len(answer) > 0 {
		p.dismiss()
		return fmt.Errorf("%s: %s", p.cmd.Path, strings.TrimSpace(string(answer[1:])))
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		p.dismiss()
		return fmt.Errorf("%s ended before it served: %v: %s", p.cmd.Path, p.cmd.ProcessState, p.stderr)
	}
	return errors.Join(err, p.kill())
}

// order sends the command line and reads the verdict.
func (p *process) order(args []string) ([]byte, error) {
	b, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	if _, err := p.orders.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotWaiting, err)
	}
	answer, err := p.receive()
	if errors.Is(err, unix.ECONNRESET) { // it ended without having read
		err = fmt.Errorf("%w: %w", errNotWaiting, err)
	}
	return answer, err
}

// receive reads one verdict.
func (p *process) receive() ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(p.orders, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, min(binary.LittleEndian.Uint32(length[:]), maxVerdict))
	_, err := io.ReadFull(p.orders, b)
	return b, err
}

// waitForEnd waits until the mount is gone, and says whether the process stands by again. If not, it has ended.
func (p *process) waitForEnd() (again bool) {
	b, err := p.receive()
	if err == nil && len(b) == 1 && b[0] == 0 {
		return true
	}
	p.dismiss()
	return false
}

// dismiss makes a process end that waits, or is about to end, and waits for that.
func (p *process) dismiss() {
	_ = p.orders.Close() // it has nothing to flush
	<-p.ended
}

// kill ends a server at once, and waits for its end.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	p.dismiss()
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
