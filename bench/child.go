package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// childSpec tells a measuring process what to do; it is its only argument, as JSON.
type childSpec struct {
	Workload  string `json:"workload"`
	Worker    int    `json:"worker"` // -1 for the first process
	Scale     int    `json:"scale"`
	Tree      Tree   `json:"tree"`
	Aux       string `json:"aux"`
	Settle    string `json:"settle"`
	System    System `json:"system"`
	Layout    Layout `json:"layout"`
	Index     string `json:"index"`
	ServerPID int    `json:"server_pid"`

	Caches CachePolicy `json:"caches"`
}

// message is what a measuring process writes to its standard output: AtGate, with the monotonic clock, from a worker
// that waits for a byte on its standard input (before and after measuring), then the outcome.
type message struct {
	AtGate  bool               `json:"at_gate,omitempty"`
	Clock   time.Duration      `json:"clock,omitempty"`
	Elapsed time.Duration      `json:"elapsed,omitempty"`
	Ops     int                `json:"ops,omitempty"`
	Values  map[string]float64 `json:"values,omitempty"`
	Skip    string             `json:"skip,omitempty"`
	Error   string             `json:"error,omitempty"`
}

// err turns the outcome back into an error.
func (m message) err() error {
	switch {
	case m.Skip != "":
		return &SkipError{Reason: m.Skip}
	case m.Error != "":
		return errors.New(m.Error)
	}
	return nil
}

// childCommand prepares a measuring process: this binary, run again.
func childCommand(ctx context.Context, spec childSpec) (*exec.Cmd, error) {
	arg, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "bench", "child", string(arg))
	cmd.Args[0] = Plyfs
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = stopTimeout
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd, nil
}

// runInChild measures one sample in a process, and a process group, of its own.
func runInChild(ctx context.Context, spec childSpec) (message, error) {
	cmd, err := childCommand(ctx, spec)
	if err != nil {
		return message{}, err
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	out, err := cmd.Output()
	if err != nil {
		return message{}, fmt.Errorf("measuring process: %w", errors.Join(ctx.Err(), err))
	}
	var m message
	if err := json.Unmarshal(out, &m); err != nil {
		return message{}, fmt.Errorf("measuring process: %w", err)
	}
	return m, m.err()
}

// childMain is the measuring process: it writes messages to out. Only an unreadable spec is an error of its own.
func childMain(ctx context.Context, arg string, in io.Reader, out io.Writer) error {
	var spec childSpec
	if err := json.Unmarshal([]byte(arg), &spec); err != nil {
		return fmt.Errorf("child: %w", err)
	}
	// The workers' parent-death signal is bound to the thread that starts them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	enc := json.NewEncoder(out)
	m, err := spec.run(ctx, in, enc)
	var skip *SkipError
	switch {
	case errors.As(err, &skip):
		m.Skip = skip.Reason
	case err != nil:
		m.Error = err.Error()
	}
	return enc.Encode(m)
}

// run runs the workload here, or in its workers.
func (s childSpec) run(ctx context.Context, in io.Reader, enc *json.Encoder) (message, error) {
	w, err := find(s.Workload)
	if err != nil {
		return message{}, err
	}
	if w.Workers > 0 && s.Worker < 0 {
		return s.runWorkers(ctx, w.Workers)
	}
	e := &Env{
		Dir: s.Layout.Target, Root: -1, Scale: s.Scale, Tree: s.Tree, Aux: s.Aux, Worker: s.Worker,
		ServerPID: s.ServerPID, System: s.System, Layout: s.Layout, Index: s.Index, caches: s.Caches, settle: s.Settle,
	}
	if w.Workers > 0 {
		e.gate = func() error {
			now, err := monotonic()
			if err != nil {
				return err
			}
			if err := enc.Encode(message{AtGate: true, Clock: now}); err != nil {
				return err
			}
			_, err = io.ReadFull(in, make([]byte, 1))
			return err
		}
	}
	if w.Mounting == Unmounted {
		if err := s.addMounting(e); err != nil {
			return message{}, err
		}
	} else {
		e.Root, err = unix.Open(e.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return message{}, opError("open", e.Dir, err)
		}
		defer unix.Close(e.Root)
	}
	if err := w.Run(ctx, e); err != nil {
		return message{}, err
	}
	if !e.ran {
		return message{}, errNotMeasured
	}
	return message{Elapsed: e.elapsed, Ops: e.ops, Values: e.values}, nil
}

// addMounting lets the workload mount. The servers that mount programs leave behind become children of this process,
// so that their end can be awaited.
func (s childSpec) addMounting(e *Env) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	e.Mount = s.System.mount
	e.Unmount = func(_ context.Context, l Layout) error { return unmount(l.Target) }
	e.Reap = reapAll
	return nil
}

// reapAll waits until this process has no child.
func reapAll(ctx context.Context) error {
	deadline := time.Now().Add(stopTimeout)
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for servers: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(deadline):
			return fmt.Errorf("a server did not end within %v of the unmount", stopTimeout)
		case pid == 0:
			time.Sleep(pollInterval)
		}
	}
}

// worker is one of several measuring processes at work at once.
type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// runWorkers starts n processes and releases them together when all are ready. The time is that from the release to
// the end of the last. None verifies before all have measured.
func (s childSpec) runWorkers(ctx context.Context, n int) (m message, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	workers := make([]worker, 0, n)
	defer func() {
		if err != nil {
			cancel()
		}
		for _, w := range workers {
			err = errors.Join(err, w.cmd.Wait())
		}
	}()
	for i := range n {
		w, err := s.startWorker(ctx, i)
		if err != nil {
			return m, err
		}
		workers = append(workers, w)
	}
	if _, err := awaitAll(workers); err != nil {
		return m, err
	}
	start, err := monotonic()
	if err != nil {
		return m, err
	}
	if err := release(workers); err != nil {
		return m, err
	}
	end, err := awaitAll(workers)
	if err != nil {
		return m, err
	}
	m.Elapsed = end - start
	if err := release(workers); err != nil {
		return m, err
	}
	for _, w := range workers {
		var got message
		if err := w.out.Decode(&got); err != nil {
			return m, fmt.Errorf("worker: %w", err)
		}
		if err := got.err(); err != nil {
			return m, err
		}
		m.Ops += got.Ops
	}
	return m, nil
}

// awaitAll waits until every worker has come to its next gate, and returns when the last did.
func awaitAll(workers []worker) (last time.Duration, err error) {
	for _, w := range workers {
		var got message
		if err := w.out.Decode(&got); err != nil {
			return 0, fmt.Errorf("worker: %w", err)
		}
		if !got.AtGate {
			return 0, errors.Join(errors.New("worker ended early"), got.err())
		}
		last = max(last, got.Clock)
	}
	return last, nil
}

// release lets every worker through the gate at which it waits.
func release(workers []worker) error {
	for _, w := range workers {
		if _, err := w.in.Write([]byte{0}); err != nil {
			return fmt.Errorf("release worker: %w", err)
		}
	}
	return nil
}

// monotonic reads the clock that all processes share.
func monotonic() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, fmt.Errorf("clock_gettime: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

func (s childSpec) startWorker(ctx context.Context, i int) (worker, error) {
	s.Worker = i
	cmd, err := childCommand(ctx, s)
	if err != nil {
		return worker{}, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return worker{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return worker{}, err
	}
	if err := cmd.Start(); err != nil {
		return worker{}, err
	}
	return worker{cmd: cmd, in: in, out: json.NewDecoder(out)}, nil
}
