package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// heartbeat is how long nothing is printed before the names of the running tests are.
const heartbeat = 30 * time.Second

// patience is how long what was asked to end may take.
const patience = 10 * time.Second

// maxLine bounds one line of go test's output.
const maxLine = 16 << 20

func main() {
	os.Exit(run(os.Args[1:], os.Stdout))
}

// check is a command that counts as one test.
type check struct{ name, command string }

func run(args []string, out io.Writer) int {
	flags := flag.NewFlagSet("ci", flag.ContinueOnError)
	var checks []check
	flags.Func("check", "NAME=COMMAND: a shell command that counts as one test", func(s string) error {
		name, command, ok := strings.Cut(s, "=")
		if !ok || name == "" || command == "" {
			return errors.New("give NAME=COMMAND")
		}
		checks = append(checks, check{name, command})
		return nil
	})
	limit := flags.Duration("timeout", 0, "ends everything after this long; 0 for never")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	r := newReport(out)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *limit)
		defer cancel()
	}
	for _, c := range checks {
		r.runCheck(ctx, c)
	}
	for _, group := range groups(flags.Args()) {
		r.runTests(ctx, group)
	}
	return r.finish()
}

// groups splits the arguments at "--".
func groups(args []string) [][]string {
	var all [][]string
	var group []string
	for _, a := range args {
		if a == "--" {
			all, group = append(all, group), nil
			continue
		}
		group = append(group, a)
	}
	if len(group) > 0 {
		all = append(all, group)
	}
	return all
}

// runCheck runs a check to its end.
func (r *report) runCheck(ctx context.Context, c check) {
	started := time.Now()
	cmd := exec.Command("sh", "-c", c.command)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := wait(ctx, cmd, syscall.SIGTERM, nil)
	r.check(c.name, output.String(), err, time.Since(started))
}

// runTests runs go test with the arguments of one group and feeds its events to the report.
func (r *report) runTests(ctx context.Context, args []string) {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		r.group(args, "", err)
		return
	}
	// Of this signal go removes its directory for builds.
	err = wait(ctx, cmd, syscall.SIGINT, func() { r.consume(stdout) })
	r.group(args, stderr.String(), err)
}

// consume reads events until their end. Lines that are none are kept as output that belongs to no test.
func (r *report) consume(in io.Reader) {
	events := make(chan event)
	go func() {
		defer close(events)
		lines := bufio.NewScanner(in)
		lines.Buffer(make([]byte, 64<<10), maxLine)
		for lines.Scan() {
			var e event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				e = event{Action: "output", Output: lines.Text() + "\n"}
			}
			events <- e
		}
		// What is left of a line too long to read must not block the tests.
		_, _ = io.Copy(io.Discard, in)
	}()
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			if r.take(e) {
				tick.Reset(heartbeat)
			}
		case <-tick.C:
			r.running()
		}
	}
}

// wait runs the command and, until it ends, whatever consumes its output. The command gets a process group of its own,
// which is asked by the signal please to end as a whole when ctx is done, so that tests remove what they put on the machine, and
// killed if it does not.
func wait(ctx context.Context, cmd *exec.Cmd, please syscall.Signal, consume func()) error {
	if ctx.Err() != nil {
		return fmt.Errorf("not started: %w", ctx.Err())
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 10 * time.Second // for a descendant that left the group and holds the output open
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		if consume != nil {
			consume()
		}
		done <- cmd.Wait()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		group := -cmd.Process.Pid
		_ = syscall.Kill(group, please) // it may just have ended by itself
		kill := time.AfterFunc(patience, func() { _ = syscall.Kill(group, syscall.SIGKILL) })
		err := <-done
		kill.Stop()
		return fmt.Errorf("ended early: %w", errors.Join(ctx.Err(), err))
	}
}
