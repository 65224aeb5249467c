package fusefs

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/fs/union"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// The tests mount in a second process: one that uses its own mount may wait for itself.
const envServer = "PLYFS_FUSEFS_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(envServer) != "" {
		if err := serverMain(); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testenv.Main(m, testenv.Options{}))
}

// serverConfig says what the second process mounts.
type serverConfig struct {
	Lowers             []string
	Upper, Work        string
	Target             string
	Data               DataMode
	Transport          Transport
	Timeout            time.Duration
	ACL, Debug         bool
	ReadOnly, NoXattrs bool
	NoIndex            bool
	SlowWrite          time.Duration // added to each write to the upper
	Hold               string        // a file that holds up each write to the upper while it exists

	MkdirFails syscall.Errno // what making a directory fails with, 0 for success

	Panic bool // making a symlink panics, and making a FIFO with a lock

	passed *os.File // becomes descriptor 3
}

// stuckCode is how the second process ends when a lock is lost.
const stuckCode = 7

// serverState is what the second process tells of itself on request.
type serverState struct {
	Counters map[string]uint64
	Nodes    int
	Mallocs  uint64
	CPU      time.Duration
	Readers  int
}

func serverMain() error {
	var cfg serverConfig
	if err := json.Unmarshal([]byte(os.Getenv(envServer)), &cfg); err != nil {
		return err
	}
	obs := new(Observer)
	o := union.Options{Observer: obs, ReadOnly: cfg.ReadOnly, NoIndex: cfg.NoIndex}
	if cfg.SlowWrite > 0 || cfg.Hold != "" {
		o.Mutator = &sys.Mutator{Hook: func(op string) error {
			if op == "write" {
				time.Sleep(cfg.SlowWrite)
				for cfg.Hold != "" && unix.Access(cfg.Hold, unix.F_OK) == nil {
					time.Sleep(5 * time.Millisecond)
				}
			}
			return nil
		}}
	}
	if cfg.MkdirFails != 0 {
		o.Mutator = &sys.Mutator{Hook: func(op string) error {
			if op == "mkdir" {
				return cfg.MkdirFails
			}
			return nil
		}}
	}
	var fs *FS
	if cfg.Panic {
		o.Mutator = &sys.Mutator{Hook: func(op string) error {
			switch op {
			case "mknod":
				fs.table.mu.Lock()
				panic("injected, with a lock")
			case "symlink":
				panic("injected")
			}
			return nil
		}}
	}
	var err error
	for _, p := range cfg.Lowers {
		l, err := layer.Open(p)
		if err != nil {
			return err
		}
		o.Lowers = append(o.Lowers, l)
	}
	if cfg.Upper != "" {
		if o.Upper, err = layer.Open(cfg.Upper); err != nil {
			return err
		}
		if o.Work, err = layer.Open(cfg.Work); err != nil {
			return err
		}
	}
	u, err := union.New(o)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if cfg.Debug {
		level = slog.LevelDebug
	}
	fs = New(u, Config{
		Data: cfg.Data, Transport: cfg.Transport, Timeout: cfg.Timeout, ACL: cfg.ACL, ReadOnly: cfg.ReadOnly,
		NoXattrs: cfg.NoXattrs, Observer: obs, Debug: cfg.Debug, Stuck: func(error) { os.Exit(stuckCode) },
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	})
	fs.lockWait = 200 * time.Millisecond
	dev, err := Mount(MountConfig{Target: cfg.Target, FSName: "plyfs-test", Subtype: "plyfs", AllowOther: os.Geteuid() == 0})
	if err != nil {
		return err
	}
	go control(fs, dev)
	err = fs.Serve(dev, func(err error) { fmt.Println("ready", err) })
	if err != nil {
		fmt.Println("serve:", err)
		return err
	}
	if err := dev.Close(); err != nil {
		return err
	}
	return u.Close()
}

// control answers each line on standard input with the state, and unmounts at its end.
func control(fs *FS, dev *Device) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if in.Text() == "settle" {
			ctx, cancel := context.WithTimeout(context.Background(), settleTime)
			fmt.Println(fs.Settle(ctx))
			cancel()
			continue
		}
		if in.Text() == "break" { // whoever reads the device next gets EISDIR
			dir, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Dup3(dir, dev.Fd(), unix.O_CLOEXEC)
			}
			fmt.Println(err)
			continue
		}
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		s := serverState{Counters: fs.Counters(), Nodes: fs.Nodes(), Mallocs: mem.Mallocs, CPU: cpuTime()}
		out, err := json.Marshal(s)
		if err != nil {
			panic(err)
		}
		fmt.Println(string(out))
	}
	if err := dev.Unmount(); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
	}
}

// mounted is a union served by a second process.
type mounted struct {
	serverConfig
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader

	user uint32 // whom the server runs as
}

// mountUnion serves a lower that fill fills and an empty upper. change may alter the configuration.
func mountUnion(t testing.TB, fill func(lower string), change func(*serverConfig)) *mounted {
	t.Helper()
	dir := testenv.Scratch(t)
	m := &mounted{t: t, serverConfig: serverConfig{
		Lowers: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"),
		Work: filepath.Join(dir, "work"), Target: filepath.Join(dir, "merged"), Timeout: Unlimited,
	}}
	for _, d := range []string{m.Lowers[0], m.Upper, m.Work, m.Target} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if fill != nil {
		fill(m.Lowers[0])
	}
	if change != nil {
		change(&m.serverConfig)
	}
	m.start()
	t.Cleanup(m.stop)
	return m
}

func (m *mounted) start() {
	m.t.Helper()
	cfg, err := json.Marshal(m.serverConfig)
	if err != nil {
		m.t.Fatal(err)
	}
	m.cmd = exec.Command("/proc/self/exe")
	m.cmd.Env = append(os.Environ(), envServer+"="+string(cfg))
	m.cmd.Stderr = os.Stderr
	if m.user != 0 {
		m.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: m.user, Gid: m.user}}
	}
	if m.passed != nil {
		m.cmd.ExtraFiles = []*os.File{m.passed}
	}
	if m.in, err = m.cmd.StdinPipe(); err != nil {
		m.t.Fatal(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	m.out = bufio.NewReader(out)
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	if line, err := m.out.ReadString('\n'); err != nil || line != "ready <nil>\n" {
		_ = m.cmd.Wait()
		m.t.Fatalf("server not ready: %q, %v", line, err)
	}
}

// stop unmounts and requires the server to end by itself.
func (m *mounted) stop() {
	if m.cmd == nil {
		return
	}
	_ = m.in.Close()
	done := make(chan error, 1)
	go func() { done <- m.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			m.t.Errorf("server: %v", err)
		}
	case <-time.After(20 * time.Second):
		_ = unix.Unmount(m.Target, unix.MNT_DETACH)
		_ = m.cmd.Process.Kill()
		<-done
		m.t.Error("the server did not end after the unmount")
	}
	m.cmd = nil
}

// settleTime is how long a server may settle.
const settleTime = 150 * time.Millisecond

// settle returns what FS.Settle told.
func (m *mounted) settle() string {
	m.t.Helper()
	if _, err := io.WriteString(m.in, "settle\n"); err != nil {
		m.t.Fatal(err)
	}
	line, err := m.out.ReadString('\n')
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (m *mounted) state() serverState {
	m.t.Helper()
	if _, err := io.WriteString(m.in, "state\n"); err != nil {
		m.t.Fatal(err)
	}
	line, err := m.out.ReadBytes('\n')
	if err != nil {
		m.t.Fatal(err)
	}
	var s serverState
	if err := json.Unmarshal(line, &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// requests returns which requests f causes.
func (m *mounted) requests(f func()) map[string]uint64 {
	m.t.Helper()
	before := m.state().Counters
	f()
	diff := make(map[string]uint64)
	for name, n := range m.state().Counters {
		if n != before[name] {
			diff[name] = n - before[name]
		}
	}
	return diff
}

func (m *mounted) path(name string) string { return filepath.Join(m.Target, name) }

var must = testenv.Must

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}
