package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/daemon"
	"plyfs/internal/testenv"
)

func nobody() testenv.Cred { return testenv.Cred{UID: 65534, GID: 65534} }

func testContext() context.Context {
	return daemon.WithLogger(context.Background(), slog.New(slog.DiscardHandler))
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := daemon.Listen(testContext(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// answer accepts connections and writes a word to each.
func answer(l net.Listener, word string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, word)
		_ = conn.Close()
	}
}

// ask connects and returns all that comes.
func ask(path string) (string, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	b, err := io.ReadAll(conn)
	return string(b), err
}

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

func TestListenMakesAPrivateSocket(t *testing.T) {
	path := filepath.Join(testenv.Scratch(t), "a", "b", "s.sock")
	l := listen(t, "unix://"+path)
	go answer(l, "hello")
	// testenv's umask is 0: what is missing here was taken away by Listen.
	if got := mode(t, path); got != os.ModeSocket|0o600 {
		t.Errorf("mode of the socket is %v", got)
	}
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if got := mode(t, dir); got != os.ModeDir|0o700 {
			t.Errorf("mode of %s is %v", dir, got)
		}
	}
	if got, err := ask(path); got != "hello" || err != nil {
		t.Errorf("answer %q, %v", got, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Even where the mode lets others connect, as of a socket that an administrator opened, they get nothing.
func TestOtherUsersGetNothing(t *testing.T) {
	path := filepath.Join(testenv.Scratch(t), "s.sock")
	var mu sync.Mutex
	var log bytes.Buffer
	ctx := daemon.WithLogger(t.Context(), slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(p)
	}), nil)))
	l, err := daemon.Listen(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go answer(l, "secret")
	err = testenv.RunAs(nobody(), func() error { _, err := dialRaw(path); return err })
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("connecting as another user: %v, want EACCES", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	var got string
	err = testenv.RunAs(nobody(), func() (err error) { got, err = dialRaw(path); return err })
	if got != "" {
		t.Errorf("another user read %q", got)
	}
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
	if got, err := ask(path); got != "secret" || err != nil {
		t.Errorf("the own user: %q, %v", got, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(log.String(), "uid=65534") {
		t.Errorf("the refusal is not logged: %s", &log)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// dialRaw connects on the thread that calls it, whose user it is made as, and reads all that comes.
func dialRaw(path string) (string, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return "", err
	}
	var all []byte
	for buf := make([]byte, 256); ; {
		n, err := unix.Read(fd, buf)
		if err != nil || n == 0 {
			return string(all), err
		}
		all = append(all, buf[:n]...)
	}
}

func TestListenReplacesOnlyStaleSockets(t *testing.T) {
	dir := testenv.Scratch(t)
	path := filepath.Join(dir, "s.sock")
	// What a daemon leaves that was killed.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	l := listen(t, path)
	go answer(l, "first")
	if _, err := daemon.Listen(testContext(), path); !errors.Is(err, daemon.ErrServed) || !strings.Contains(err.Error(), "process ") {
		t.Errorf("second listener: %v, want ErrServed with the process", err)
	}
	if got, err := ask(path); got != "first" || err != nil {
		t.Errorf("the first after that: %q, %v", got, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.Listen(testContext(), file); !errors.Is(err, unix.EEXIST) {
		t.Errorf("at a file: %v, want EEXIST", err)
	}
	if got, err := os.ReadFile(file); string(got) != "precious" {
		t.Errorf("the file afterwards: %q, %v", got, err)
	}
}

func TestListenRefusesUnsafePlaces(t *testing.T) {
	open := filepath.Join(testenv.Scratch(t), "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(testenv.Scratch(t), "theirs")
	if err := os.Mkdir(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(theirs, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{open, theirs} {
		if _, err := daemon.Listen(testContext(), filepath.Join(dir, "s")); !errors.Is(err, daemon.ErrUnsafe) {
			t.Errorf("in %s: %v, want ErrUnsafe", dir, err)
		}
	}
	if err := os.Chmod(open, os.ModeSticky|0o777); err != nil {
		t.Fatal(err)
	}
	squatted := filepath.Join(open, "squatted")
	if err := testenv.RunAs(nobody(), func() error { return unix.Mknod(squatted, unix.S_IFSOCK|0o777, 0) }); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.Listen(testContext(), squatted); !errors.Is(err, daemon.ErrUnsafe) {
		t.Errorf("at another user's socket: %v, want ErrUnsafe", err)
	}
	listen(t, filepath.Join(open, "own"))
}

func TestListenAddresses(t *testing.T) {
	for _, bad := range []string{
		"", "relative", "unix://relative", "/dir/", "http://x", "tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://:1", "tcp://192.0.2.1:80",
		"tcp://example.org:80", "tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://[::1]:65536",
		"tcp://localhost:http", "/" + strings.Repeat("x", 200),
	} {
		if l, err := daemon.Listen(testContext(), bad); !errors.Is(err, daemon.ErrAddress) {
			t.Errorf("%q: %v, want ErrAddress", bad, err)
			if l != nil {
				_ = l.Close()
			}
		}
	}
	l := listen(t, "tcp://localhost:0")
	if _, err := daemon.Listen(testContext(), "tcp://"+l.Addr().String()); !errors.Is(err, daemon.ErrServed) {
		t.Errorf("at a port in use: %v, want ErrServed", err)
	}
}

// Of daemons that start at once over a stale socket one serves, and the others know.
func TestListenRace(t *testing.T) {
	path := filepath.Join(testenv.Scratch(t), "s.sock")
	if err := unix.Mknod(path, unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	const starters = 16
	results := make(chan error, starters)
	winner := make(chan net.Listener, starters)
	for range starters {
		go func() {
			l, err := daemon.Listen(testContext(), path)
			if err == nil {
				winner <- l
			}
			results <- err
		}()
	}
	won := 0
	for range starters {
		switch err := <-results; {
		case err == nil:
			won++
		case !errors.Is(err, daemon.ErrServed):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Fatalf("%d daemons serve one socket", won)
	}
	l := <-winner
	defer l.Close()
	go answer(l, "one")
	if got, err := ask(path); got != "one" || err != nil {
		t.Errorf("the winner: %q, %v", got, err)
	}
}

// A socket that took the place of a listener's own is not removed with the listener.
func TestCloseLeavesASuccessor(t *testing.T) {
	path := filepath.Join(testenv.Scratch(t), "s.sock")
	first := listen(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := listen(t, path)
	go answer(second, "second")
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if got, err := ask(path); got != "second" || err != nil {
		t.Errorf("the successor: %q, %v", got, err)
	}
}

func TestListenTakesSystemdsSocket(t *testing.T) {
	dir := testenv.Scratch(t)
	var files []*os.File
	for _, name := range []string{"other.sock", "s.sock"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name)})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	path := filepath.Join(dir, "s.sock")
	before, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), self)
	child.Env = append(os.Environ(), envChild+"=unix://"+path, "LISTEN_FDS=2")
	child.ExtraFiles = files
	var stderr bytes.Buffer
	child.Stderr = &stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	// The connection waits in the socket's queue until the child accepts it.
	got, err := ask(path)
	if got != "activated" || err != nil {
		t.Errorf("answer %q, %v", got, err)
	}
	if err := child.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("systemd's socket is not there any more: %v", err)
	}
}
