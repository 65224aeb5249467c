package control_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"plyfs/internal/control"
)

// envBecome makes this program a server, of which it does what standard input says: a line for each step.
const envBecome = "PLYFS_TEST_BECOME_SERVER"

// becomeServer opens /dev/fuse, then has a socket, then none, then ends. It says on standard output that a step is done.
func becomeServer() int {
	step := func(err error) bool {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return false
		}
		_, err = fmt.Println("done")
		return err == nil
	}
	orders := bufio.NewScanner(os.Stdin)
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if !step(err) || !orders.Scan() {
		return 1
	}
	dir, err := control.Dir()
	if err != nil {
		return 1
	}
	s, err := control.Serve(dir, control.SocketName(os.Getpid(), 1), &mount{target: "/m"}, slog.New(slog.DiscardHandler))
	if !step(err) || !orders.Scan() || !step(s.Close()) {
		return 1
	}
	orders.Scan()
	_ = fuse.Close()
	return 0
}

// server is a process that runs becomeServer.
type server struct {
	*exec.Cmd
	orders io.WriteCloser
	done   *bufio.Scanner
}

func startServer(t *testing.T) server {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := server{Cmd: exec.Command(exe)}
	s.Env, s.Stderr = append(os.Environ(), envBecome+"=1"), t.Output()
	if s.orders, err = s.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.done = bufio.NewScanner(out)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.orders.Close()
		_ = s.Wait()
	})
	s.await(t)
	return s
}

func (s server) await(t *testing.T) {
	t.Helper()
	if !s.done.Scan() {
		t.Fatal("the server failed")
	}
}

func (s server) step(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(s.orders, "\n"); err != nil {
		t.Error(err)
	}
}

// gatherWhile returns the state of a server by a Gather in whose midst it takes a step, "" if it was not found.
func gatherWhile(t *testing.T, s server) control.State {
	t.Helper()
	type answer struct {
		found []control.Found
		err   error
	}
	gathered := make(chan answer, 1)
	go func() {
		found, err := control.Gather(patience(t), control.Own)
		gathered <- answer{found, err}
	}()
	time.Sleep(5 * time.Millisecond)
	s.step(t)
	got := <-gathered
	if got.err != nil {
		t.Fatal(got.err)
	}
	at := slices.IndexFunc(got.found, func(f control.Found) bool { return f.PID == s.Process.Pid })
	if at < 0 {
		return ""
	}
	return got.found[at].State
}

// TestGatherInBetween: a server that has no socket yet, or no more, is not one that has none. On a loaded machine it may take longer
// than Gather waits, so one of three has to do.
func TestGatherInBetween(t *testing.T) {
	runtimeDir(t)
	var starting, ending []control.State
	for range 3 {
		s := startServer(t)
		starting = append(starting, gatherWhile(t, s))
		s.await(t)
		s.step(t)
		s.await(t)
		ending = append(ending, gatherWhile(t, s))
		_ = s.Wait()
	}
	if !slices.Contains(starting, control.StateOK) || !slices.Contains(ending, "") {
		t.Errorf("a server that starts is %q, one that ends %q", starting, ending)
	}
}

// TestGatherWithoutSocket: what has no socket for long is said to have none, and goes with its process.
func TestGatherWithoutSocket(t *testing.T) {
	runtimeDir(t)
	s := startServer(t)
	states := func() (list []control.State) {
		found, err := control.Gather(patience(t), control.Own)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if f.PID == s.Process.Pid {
				list = append(list, f.State)
			}
		}
		return list
	}
	if got := states(); !slices.Equal(got, []control.State{control.StateNoSocket}) {
		t.Errorf("without a socket: %q", got)
	}
	s.step(t)
	s.await(t)
	if got := states(); !slices.Equal(got, []control.State{control.StateOK}) {
		t.Errorf("with a socket: %q", got)
	}
	_ = s.orders.Close()
	_ = s.Wait()
	if got := states(); len(got) != 0 {
		t.Errorf("without a process: %q", got)
	}
}
