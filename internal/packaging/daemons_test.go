package packaging_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// manager is what a service manager is to a daemon.
type manager struct {
	*net.UnixConn
	path string
}

func newManager(t *testing.T) manager {
	t.Helper()
	path := filepath.Join(testenv.Scratch(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return manager{conn, path}
}

// hears waits for a message.
func (m manager) hears(t *testing.T, want string) {
	t.Helper()
	buf := make([]byte, 1024)
	n, err := m.Read(buf)
	if err != nil || string(buf[:n]) != want {
		t.Fatalf("the service manager heard %q, %v, want %q", buf[:n], err, want)
	}
}

// tables are what the configuration of each daemon must say to start in a directory of a test.
func tables(dir string) map[string]string {
	return map[string]string{
		"snapshotter": "address = 'unix://" + dir + "/s'\nroot = '" + dir + "/store'\ndriver = 'vfs'\ncontainerd-address = ''\n",
		"graphplugin": "address = '" + dir + "/s'\nstate-dir = '" + dir + "/state'\ndriver = 'vfs'\n",
		"metrics":     "address = '" + dir + "/s'\n",
	}
}

// Each daemon, started by its unit with a file that says everything: it tells when it serves and when it stops, its socket is
// its user's alone, and it leaves none.
func TestDaemonsUnderAServiceManager(t *testing.T) {
	for name := range tables("") {
		t.Run(name, func(t *testing.T) {
			dir := testenv.Scratch(t)
			config := filepath.Join(dir, "config.toml")
			if err := os.WriteFile(config, []byte("["+name+"]\n"+tables(dir)[name]), 0o600); err != nil {
				t.Fatal(err)
			}
			m := newManager(t)
			cmd := command(t, testenv.Binary(t), name)
			cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+m.path, "PLYFS_CONFIG="+config, "HOME="+dir)
			var log bytes.Buffer
			cmd.Stderr, cmd.WaitDelay = &log, longest
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() {
				ended <- cmd.Wait()
				// A reader that waits for word of a daemon which ended early would wait for ever.
				_ = m.Close()
			}()
			m.hears(t, "READY=1")
			socket := filepath.Join(dir, "s")
			if info, err := os.Lstat(socket); err != nil || info.Mode() != os.ModeSocket|0o600 {
				t.Errorf("the socket: %v, %v", info, err)
			}
			err := testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error { return connect(socket) })
			if !errors.Is(err, unix.EACCES) {
				t.Errorf("another user connects: %v, want EACCES", err)
			}
			if err := connect(socket); err != nil {
				t.Errorf("its own user connects: %v", err)
			}
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			m.hears(t, "STOPPING=1")
			if err := <-ended; err != nil {
				t.Errorf("plyfs %s ends with %v: %s", name, err, &log)
			}
			if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket is left behind: %v", err)
			}
		})
	}
}

// connect connects on the thread that calls it.
func connect(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}

func TestDaemonsRefuseUnknownKeys(t *testing.T) {
	for name := range tables("") {
		config := filepath.Join(testenv.Scratch(t), "config.toml")
		if err := os.WriteFile(config, []byte("["+name+"]\n\nlog-lvel = 'info'\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := command(t, testenv.Binary(t), name, "--config", config).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 16 || !strings.Contains(string(out), config+":3: ") ||
			!strings.Contains(string(out), "did you mean log-level?") {
			t.Errorf("plyfs %s: %v: %s", name, err, out)
		}
	}
}
