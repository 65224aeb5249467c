package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/control"
	"plyfs/internal/testenv"
)

// mount is a source that counts what it is asked.
type mount struct {
	target   string
	asked    atomic.Int64
	watching atomic.Int64
	// settled is what Settle returns.
	settled error
}

func (m *mount) Status() control.Status {
	return control.Status{Program: "test", PID: os.Getpid(), Target: m.target, Lowers: []string{"/l"}}
}

func (m *mount) Metrics() control.Metrics {
	m.asked.Add(1)
	return control.Metrics{
		Status:     m.Status(),
		Operations: []control.Operation{{Op: "LOOKUP", Requests: 3, Errors: map[string]uint64{"not_found": 1}}}, CopyUps: 7,
	}
}

func (m *mount) Watch() control.Watcher {
	m.watching.Add(1)
	return &watcher{m: m}
}

func (m *mount) Settle(context.Context) error { return m.settled }

type watcher struct {
	m *mount
	n atomic.Int64
}

func (w *watcher) Take() ([]control.Activity, uint64) {
	return []control.Activity{{PID: 1, Path: fmt.Sprint("/", w.n.Add(1))}}, 5
}

func (w *watcher) Close() { w.m.watching.Add(-1) }

// runtimeDir is the directory of this test's sockets.
func runtimeDir(t *testing.T) string {
	t.Helper()
	base := filepath.Join(testenv.Scratch(t), "run")
	t.Setenv(control.EnvRuntimeDir, base)
	return filepath.Join(base, "mounts")
}

func serve(t *testing.T, dir, name string, m *mount) *control.Server {
	t.Helper()
	s, err := control.Serve(dir, name, m, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// only returns the one socket that there is.
func only(t *testing.T) control.Socket {
	t.Helper()
	list, err := control.List(control.Own)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d sockets: %v, %v", len(list), list, err)
	}
	return list[0]
}

func patience(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestAsk(t *testing.T) {
	dir := runtimeDir(t)
	m := &mount{target: "/a\nb"}
	s := serve(t, dir, control.SocketName(os.Getpid(), 12), m)
	for path, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, filepath.Dir(dir): 0o700 | os.ModeDir} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	sock := only(t)
	if info, err := os.Lstat(sock.Path); err != nil || info.Mode() != 0o600|os.ModeSocket {
		t.Errorf("%s: %v, %v", sock.Path, info.Mode(), err)
	}
	st, err := sock.Status(patience(t))
	if err != nil || st.Target != m.target || st.PID != os.Getpid() || len(st.Lowers) != 1 {
		t.Errorf("status %+v, %v", st, err)
	}
	if n := m.asked.Load(); n != 0 {
		t.Errorf("asking for the status asked %d times for metrics", n)
	}
	got, err := sock.Metrics(patience(t))
	if err != nil || got.CopyUps != 7 || got.Target != m.target || got.Operations[0].Errors["not_found"] != 1 {
		t.Errorf("metrics %+v, %v", got, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := sock.Status(patience(t)); !errors.Is(err, control.ErrGone) {
		t.Errorf("after the end: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

// TestSettle: a mount that has ended is not answered for, until its server has ended too.
func TestSettle(t *testing.T) {
	dir := runtimeDir(t)
	name := control.SocketName(os.Getpid(), 0xabc)
	serve(t, dir, control.SocketName(os.Getpid(), 0xab), &mount{target: "/other"})
	m := &mount{target: "/m"}
	s := serve(t, dir, name, m)
	sock, ok := control.Find(control.Own, 0xabc)
	if !ok || filepath.Base(sock.Path) != name {
		t.Fatalf("found %v, %v", sock, ok)
	}
	if other, ok := control.Find(control.Own, 0xbc); ok {
		t.Errorf("found %v for a mount that has none", other)
	}
	if _, err := sock.Settle(patience(t)); err != nil {
		t.Error(err)
	}
	m.settled = errors.New("nobody knows")
	if _, err := sock.Settle(patience(t)); err == nil || !strings.Contains(err.Error(), "nobody knows") {
		t.Errorf("told %v", err)
	}
	m.settled = control.ErrGone
	answer := make(chan error, 1)
	go func() {
		_, err := sock.Settle(patience(t))
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Errorf("answered before the end: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-answer; !errors.Is(err, control.ErrRefused) && !errors.Is(err, control.ErrGone) {
		t.Errorf("at the end: %v", err)
	}
	if _, err := sock.Settle(patience(t)); !errors.Is(err, control.ErrGone) {
		t.Errorf("after the end: %v", err)
	}
}

// TestLongPath: a socket's address has room for 107 bytes only.
func TestLongPath(t *testing.T) {
	base := filepath.Join(testenv.Scratch(t), strings.Repeat("long/", 60))
	t.Setenv(control.EnvRuntimeDir, base)
	serve(t, filepath.Join(base, "mounts"), "1-1", &mount{target: "/t"})
	if st, err := only(t).Status(patience(t)); err != nil || st.Target != "/t" {
		t.Errorf("%+v, %v", st, err)
	}
}

// ask sends raw text and returns all of the answer.
func ask(t *testing.T, path, text string) string {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, unix.ECONNRESET) { // what was not read yet is lost
		t.Fatal(err)
	}
	return string(b)
}

func TestRefusedRequests(t *testing.T) {
	dir := runtimeDir(t)
	serve(t, dir, "1-1", &mount{})
	path := filepath.Join(dir, "1-1")
	for text, want := range map[string]string{
		"plyfs/2 status\n":      "speaks plyfs/1 only",
		"GET / HTTP/1.1\n":      "speaks plyfs/1 only",
		"\n":                    "a request is",
		"plyfs/1 stop\n":        "requests are",
		"plyfs/1 status now\n":  "requests are",
		"plyfs/1 watch\n":       "requests are",
		"plyfs/1 watch 0\n":     "an interval is",
		"plyfs/1 watch NaN\n":   "an interval is",
		"plyfs/1 watch 1e300\n": "an interval is",
		"plyfs/1 watch -1\n":    "an interval is",
	} {
		if got := ask(t, path, text); !strings.Contains(got, want) || !strings.Contains(got, `"version":1`) {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	if got := ask(t, path, strings.Repeat("x", 300)+"\n"); got != "" {
		t.Errorf("a request of 300 bytes: %s", got)
	}
	if got := ask(t, path, "plyfs/1 status\n"); !strings.Contains(got, `"program":"test"`) {
		t.Errorf("afterwards: %s", got)
	}
}

// TestOtherUser: another user gets nothing, even through permissions that somebody opened wide.
func TestOtherUser(t *testing.T) {
	dir := runtimeDir(t)
	serve(t, dir, "1-1", &mount{})
	path := filepath.Join(dir, "1-1")
	connect := func() (int, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		return fd, unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	talk := func() (string, error) {
		fd, err := connect()
		if fd >= 0 {
			defer unix.Close(fd)
		}
		if err != nil {
			return "", err
		}
		if _, err := unix.Write(fd, []byte("plyfs/1 status\n")); err != nil && !errors.Is(err, unix.EPIPE) {
			return "", err
		}
		var b [4096]byte
		n, err := unix.Read(fd, b[:])
		return string(b[:max(n, 0)]), err
	}
	as := func(uid int) (got string, err error) {
		err = testenv.RunAs(testenv.Cred{UID: uid, GID: uid}, func() (err error) {
			got, err = talk()
			return err
		})
		return got, err
	}
	if _, err := as(1234); !errors.Is(err, unix.EACCES) {
		t.Errorf("through the directory: %v", err)
	}
	for _, p := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := as(1234); !errors.Is(err, unix.EACCES) {
		t.Errorf("through the socket's mode: %v", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if got, err := as(1234); got != "" || err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("by credentials: %q, %v", got, err)
	}
	if got, err := as(65534); got != "" || err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("as nobody: %q, %v", got, err)
	}
	if got, err := as(0); err != nil || !strings.Contains(got, `"program"`) {
		t.Errorf("as root: %q, %v", got, err)
	}
}

func TestWideDirectory(t *testing.T) {
	dir := runtimeDir(t)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := control.Serve(dir, "1-1", &mount{}, slog.New(slog.DiscardHandler))
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("a socket in a directory that others may enter: %v", err)
		_ = s.Close()
	}
}

func TestWatch(t *testing.T) {
	dir := runtimeDir(t)
	m := &mount{target: "/t"}
	s := serve(t, dir, "1-1", m)
	sock := only(t)
	ctx, cancel := context.WithCancel(patience(t))
	var paths []string
	err := sock.Watch(ctx, 100*time.Millisecond, func(sample control.Sample) error {
		if sample.Dropped != 5 || sample.CopyUps != 7 || sample.Time.IsZero() {
			t.Errorf("sample %+v", sample)
		}
		paths = append(paths, sample.Activity[0].Path)
		if len(paths) == 3 {
			cancel()
		}
		return nil
	})
	if err != nil || fmt.Sprint(paths) != "[/1 /2 /3]" {
		t.Errorf("watched %v, %v", paths, err)
	}
	testenv.Eventually(t, "the watcher is closed", func() bool { return m.watching.Load() == 0 })

	enough := errors.New("enough")
	if err := sock.Watch(patience(t), time.Second, func(control.Sample) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("visit's error became %v", err)
	}
	// The server's end ends a watch.
	started := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		var once sync.Once
		ended <- sock.Watch(t.Context(), time.Hour, func(control.Sample) error {
			once.Do(func() { close(started) })
			return nil
		})
	}()
	<-started
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("a watch whose server ended gives no error")
	}
	if n := m.watching.Load(); n != 0 {
		t.Errorf("%d watchers are open after the end", n)
	}
}

// TestManyClients asks from many sides at once, beyond the room there is, while a watcher and the end come in between.
func TestManyClients(t *testing.T) {
	dir := runtimeDir(t)
	s := serve(t, dir, "1-1", &mount{})
	sock := only(t)
	var all sync.WaitGroup
	var answered atomic.Int64
	for range 40 {
		all.Go(func() {
			for range 10 {
				_, err := sock.Metrics(patience(t))
				switch {
				case err == nil:
					answered.Add(1)
				case !errors.Is(err, control.ErrRefused) && !errors.Is(err, control.ErrGone) && !errors.Is(err, unix.EPIPE):
					t.Error(err)
				}
			}
		})
	}
	testenv.Eventually(t, "some answers", func() bool { return answered.Load() > 20 })
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	all.Wait()
	if err := s.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
}

// abandon leaves a socket behind whose process is dead, and returns its path.
func abandon(t *testing.T, dir string) string {
	t.Helper()
	dead := exec.Command("/bin/true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	return bindOnly(t, filepath.Join(dir, control.SocketName(dead.Process.Pid, 1)))
}

// bindOnly makes a socket at which nobody listens.
func bindOnly(t *testing.T, path string) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStale(t *testing.T) {
	dir := runtimeDir(t)
	live := serve(t, dir, control.SocketName(os.Getpid(), 7), &mount{target: "/live"})
	dead := abandon(t, dir)
	young := bindOnly(t, filepath.Join(dir, control.SocketName(os.Getpid(), 8))) // its process lives, and may listen soon
	list, err := control.List(control.Own)
	if err != nil || len(list) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, s := range list {
		_, err := s.Status(patience(t))
		if want := s.Path != dead && s.Path != young; (err == nil) != want || !want && !errors.Is(err, control.ErrGone) {
			t.Errorf("%s: %v", s.Path, err)
		}
	}
	if _, err := os.Lstat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead server's socket stays: %v", err)
	}
	if _, err := os.Lstat(young); err != nil {
		t.Errorf("a socket of a live process is gone: %v", err)
	}
	// A server takes over what another one of its name left, and not what is served.
	serve(t, dir, filepath.Base(young), &mount{target: "/young"})
	if s, err := control.Serve(dir, control.SocketName(os.Getpid(), 7), &mount{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a served socket was taken over")
		_ = s.Close()
	}
	if err := live.Close(); err != nil {
		t.Error(err)
	}
}

// TestNoDescriptor: a server that can't take a client for want of descriptors takes the next.
func TestNoDescriptor(t *testing.T) {
	dir := runtimeDir(t)
	serve(t, dir, control.SocketName(os.Getpid(), 9), &mount{target: "/m"})
	list, err := control.List(control.Own)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: list[0].Path})
	time.Sleep(50 * time.Millisecond)
	if err := errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)); err != nil {
		t.Fatal(err)
	}
	if s, err := list[0].Status(patience(t)); err != nil || s.Target != "/m" {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestHostileDirectory: what else lies in a directory is passed over, and nothing is followed.
func TestHostileDirectory(t *testing.T) {
	dir := runtimeDir(t)
	serve(t, dir, "1-1", &mount{target: "/real"})
	elsewhere := filepath.Join(testenv.Scratch(t), "victim")
	l, err := net.Listen("unix", elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	foreign := bindOnly(t, filepath.Join(dir, "3-1"))
	err = errors.Join(
		os.Symlink(elsewhere, filepath.Join(dir, "2-1")), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600), os.Chown(foreign, 4321, 4321), os.Mkdir(filepath.Join(dir, "4-1"), 0o700),
	)
	if err != nil {
		t.Fatal(err)
	}
	if s := only(t); s.Path != filepath.Join(dir, "1-1") {
		t.Errorf("found %s", s.Path)
	}
	// A directory that is a link, or not there, has none.
	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if list, err := control.List(control.Own); err != nil || len(list) != 0 {
			t.Errorf("%v, %v", list, err)
		}
		_ = os.Symlink(dir+"2", dir)
	}
}

// TestHostileServer: answers are not believed beyond their form, nor waited for without end.
func TestHostileServer(t *testing.T) {
	dir := runtimeDir(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var reply atomic.Pointer[string]
	l, err := net.Listen("unix", filepath.Join(dir, "1-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if r := *reply.Load(); r != "" {
					_, _ = io.WriteString(c, r)
				}
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	sock := only(t)
	for text, want := range map[string]string{
		"{}\n":                 "version 0",
		`{"version":2}` + "\n": "version 2",
		`{"version":1,"error":"\u001b[2J"}` + "\n": `\x1b[2J`,
		"nonsense\n":                     "answer",
		`{"version":1,"pid":"x"}` + "\n": "answer",
		strings.Repeat("x", 9<<20):       "more than",
	} {
		reply.Store(&text)
		if _, err := sock.Metrics(patience(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
	silence := ""
	reply.Store(&silence)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := sock.Status(ctx); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
}
