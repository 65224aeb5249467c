package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/control"
	"plyfs/internal/latency"
	"plyfs/internal/testenv"
)

// TestTop watches a script at work: who changes what, and at what rate.
func TestTop(t *testing.T) {
	dir := unionTree(t)
	controlled(t)
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers+",index=off", "merged")
	sockets(t, 1)
	top := command(t, dir, "plyfs", "top", "--json", "--interval", "100ms")
	out, err := top.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := top.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	next := func() (r topRow) {
		if !lines.Scan() {
			t.Fatalf("top ended: %v", lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("%v: %s", err, lines.Bytes())
		}
		return r
	}
	next() // it watches
	shell(t, dir, "echo abc >>merged/file; mkdir merged/d; mv merged/d merged/e; exec 3>merged/gone; rm merged/gone; echo late >&3; sync -f merged")
	var all []control.Activity
	var written, copied float64
	for !slices.ContainsFunc(all, func(a control.Activity) bool { return a.Path == "(deleted)" }) {
		r := next()
		all = append(all, r.Activity...)
		written += r.WrittenBytes * r.Seconds
		copied += r.CopyUps * r.Seconds
		if r.Target != dir+"/merged" || r.Requests < 0 || r.Seconds <= 0 {
			t.Errorf("row %+v", r)
		}
	}
	if int(written+0.5) != 9 || int(copied+0.5) != 1 {
		t.Errorf("%v bytes written, %v copy-ups", written, copied)
	}
	find := func(path string) (sum control.Activity) {
		for _, a := range all {
			if a.Path == path {
				sum.Command, sum.PID = a.Command, a.PID
				sum.Bytes, sum.Writes, sum.Changes = sum.Bytes+a.Bytes, sum.Writes+a.Writes, sum.Changes+a.Changes
				sum.CopiedUp = sum.CopiedUp || a.CopiedUp
			}
		}
		return sum
	}
	if a := find("/file"); a.Command != "sh" || a.PID == 0 || a.Bytes != 4 || a.Writes != 1 || !a.CopiedUp {
		t.Errorf("/file: %+v of %+v", a, all)
	}
	if a := find("/d"); a.Command != "mkdir" || a.Changes != 1 || a.CopiedUp {
		t.Errorf("/d: %+v of %+v", a, all)
	}
	if a := find("/e"); a.Command != "mv" || a.Changes != 1 {
		t.Errorf("/e: %+v of %+v", a, all)
	}
	if a := find("(deleted)"); a.Bytes != 5 {
		t.Errorf("a deleted file: %+v of %+v", a, all)
	}
	if err := top.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if err := top.Wait(); err != nil {
		t.Errorf("top ends with %v", err)
	}
	got := runIn(t, dir, "plyfs", "top", "--once", "--interval", "100ms", dir+"/merged")
	if got.code != 0 || !strings.Contains(got.stdout, "mounts 1 ") || !strings.Contains(got.stdout, dir[len(dir)-10:]+"/merged") {
		t.Errorf("top --once: %+v", got)
	}
	if err := os.Symlink("merged", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if got := runIn(t, dir, "plyfs", "top", "--once", "--interval", "100ms", "link"); got.code != 0 || !strings.Contains(got.stdout, "mounts 1 ") {
		t.Errorf("through a symlink: %+v", got)
	}
	if got := runIn(t, dir, "plyfs", "top", "--once", "--interval", "100ms", "/elsewhere"); got.code != exitUsage ||
		got.stdout != "" || !strings.Contains(got.stderr, "/elsewhere: no mount of plyfs") {
		t.Errorf("of another target: %+v", got)
	}
	testenv.Unmount(t, dir+"/merged")
	waitGone(t, dir)
}

// openPTY returns both ends of a terminal.
func openPTY(t *testing.T) (master int, terminal *os.File) {
	t.Helper()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(master) })
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return master, terminal
}

// TestTopArguments: a flag behind a target would be a target that never comes, watched for ever.
func TestTopArguments(t *testing.T) {
	for _, args := range [][]string{{"top", "merged", "--once"}, {"version", "top"}} {
		got := finish(t, command(t, t.TempDir(), "plyfs", args...))
		if got.code != exitUsage || got.stdout != "" || !strings.Contains(got.stderr, args[len(args)-1]) {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

// TestTopTerminal draws on a terminal, ends with q, and leaves it as it was.
func TestTopTerminal(t *testing.T) {
	controlled(t)
	master, terminal := openPTY(t)
	before, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	top := command(t, t.TempDir(), "plyfs", "top", "--interval", "100ms")
	top.Stdin, top.Stdout, top.Stderr = terminal, terminal, terminal
	if err := top.Start(); err != nil {
		t.Fatal(err)
	}
	var screen strings.Builder
	buf := make([]byte, 4096)
	read := func(until string) {
		for !strings.Contains(screen.String(), until) {
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(master), Events: unix.POLLIN}}, int(longest.Milliseconds()))
			n := 0
			if err == nil && ready > 0 {
				n, err = unix.Read(master, buf)
			}
			if err != nil && !errors.Is(err, unix.EINTR) || ready == 0 {
				t.Fatalf("%v after %q", err, screen.String())
			}
			screen.Write(buf[:max(n, 0)])
		}
	}
	read("plyfs top")
	if _, err := unix.Write(master, []byte("q")); err != nil {
		t.Fatal(err)
	}
	read(screenLeave)
	if err := top.Wait(); err != nil {
		t.Errorf("after q: %v", err)
	}
	after, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal is left as %+v, %v, it was %+v", after, err, before)
	}
}

func TestTopRow(t *testing.T) {
	sample := func(at int, lookups, writes, errors uint64, cpu float64) *control.Sample {
		var h latency.Histogram
		for range lookups {
			h.Observe(5 * time.Microsecond)
		}
		s := &control.Sample{Time: time.Unix(int64(at), 0)}
		s.CPUSeconds = cpu
		s.Operations = []control.Operation{
			{Op: "LOOKUP", Requests: lookups, Durations: h.Snapshot()},
			{Op: "WRITE", Requests: writes, Errors: map[string]uint64{"space": errors}},
			{Op: "NEW_ONE", Requests: 2},
		}
		return s
	}
	r := rowOf(control.Owner{Container: "c"}, sample(10, 100, 5, 1, 1), sample(14, 300, 15, 3, 3))
	if r.Requests != 52.5 || r.Names != 50 || r.Writes != 2.5 || r.Errors != 0.5 || r.CPU != 0.5 || r.P99 != 8e-6 || r.Container != "c" {
		t.Errorf("%+v", r)
	}
	if r := rowOf(control.Owner{}, sample(10, 1, 1, 0, 0), sample(10, 2, 2, 0, 0)); r.Requests != 0 {
		t.Errorf("without time between: %+v", r)
	}
	if r := rowOf(control.Owner{}, sample(10, 9, 9, 9, 9), sample(11, 1, 1, 1, 1)); r.Requests != 0 || r.CPU != 0 {
		t.Errorf("after counters went back: %+v", r)
	}
}

// TestTopMerges: nothing is lost or told twice when samples and frames do not alternate.
func TestTopMerges(t *testing.T) {
	sample := func(at int, lookups uint64, path string) *control.Sample {
		s := &control.Sample{Time: time.Unix(int64(at), 0), Activity: []control.Activity{{Path: path}}}
		s.Operations = []control.Operation{{Op: "LOOKUP", Requests: lookups}}
		return s
	}
	m := &topMount{}
	tp := &top{mounts: map[string]*topMount{"m": m}}
	m.add(sample(0, 10, "/0"))
	if f := tp.frame(); len(f.rows) != 0 {
		t.Errorf("one sample gives %+v", f.rows)
	}
	m.add(sample(1, 20, "/1"))
	m.add(sample(2, 50, "/2"))
	r := tp.frame().rows[0]
	if r.Seconds != 2 || r.Requests != 20 || len(r.Activity) != 2 || r.again {
		t.Errorf("two samples give %+v", r)
	}
	if r := tp.frame().rows[0]; !r.again || len(r.Activity) != 0 {
		t.Errorf("shown twice: %+v", r)
	}
	m.add(sample(3, 51, "/3"))
	if r := tp.frame().rows[0]; r.Seconds != 1 || r.Requests != 1 || len(r.Activity) != 1 || r.again {
		t.Errorf("afterwards %+v", r)
	}
}

// TestTopLines: a frame keeps within the screen, and what people of elsewhere call their files can't control it.
func TestTopLines(t *testing.T) {
	f := frame{at: time.Now()}
	for range 30 {
		f.rows = append(f.rows, topRow{Target: "/m\x1b[2J", Activity: []control.Activity{{Path: "/x\ny", Command: "\x07"}, {Path: "/z"}}})
	}
	for _, height := range []int{5, 10, 24, 200} {
		lines := f.lines(height)
		if len(lines) > height {
			t.Errorf("%d lines on a screen of %d", len(lines), height)
		}
		for _, l := range lines {
			if strings.ContainsAny(l, "\x1b\x07\n") {
				t.Errorf("line %q", l)
			}
		}
	}
	if lines := f.lines(0); !strings.Contains(strings.Join(lines, "\n"), "/z") || len(lines) < 33 {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
}
