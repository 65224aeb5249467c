package daemon_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"plyfs/internal/daemon"
	"plyfs/internal/testenv"
)

// list is a flag that may be repeated.
type list []string

func (l *list) Set(v string) error { *l = append(*l, v); return nil }
func (l *list) String() string     { return strings.Join(*l, " ") }

// seen is what a daemon was started with.
type seen struct {
	address, format string
	wait            time.Duration
	limit           int
	ratio           float64
	idle            bool
	names, opts     []string
	debug           bool
}

// start runs a program of two daemons with the arguments and returns what the first was started with.
func start(t *testing.T, args ...string) (*seen, error) {
	t.Helper()
	var got *seen
	first := daemon.Command(daemon.Spec{
		Name: "first", Usage: "of two",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "address", Value: "default", EnvVars: []string{"TEST_ADDRESS"}},
			&cli.DurationFlag{Name: "wait", Value: time.Second},
			&cli.IntFlag{Name: "limit"},
			&cli.Float64Flag{Name: "ratio"},
			&cli.BoolFlag{Name: "idle"},
			&cli.StringSliceFlag{Name: "name", Aliases: []string{"n"}},
			&cli.GenericFlag{Name: "driver-opt", Value: &list{}},
		},
		Run: func(ctx context.Context, c *cli.Context, log *slog.Logger) error {
			if daemon.Logger(ctx) != log {
				t.Error("the context has another logger")
			}
			got = &seen{
				address: c.String("address"), wait: c.Duration("wait"), limit: c.Int("limit"), ratio: c.Float64("ratio"),
				idle: c.Bool("idle"), names: c.StringSlice("name"), opts: *c.Generic("driver-opt").(*list),
				debug: log.Enabled(ctx, slog.LevelDebug), format: c.String("log-format"),
			}
			return nil
		},
	})
	second := daemon.Command(daemon.Spec{
		Name: "second", Flags: []cli.Flag{&cli.UintFlag{Name: "port"}},
		Run: func(context.Context, *cli.Context, *slog.Logger) error { return nil },
	})
	app := &cli.App{
		Commands: []*cli.Command{first, second}, Writer: io.Discard, ErrWriter: io.Discard,
		ExitErrHandler: func(*cli.Context, error) {},
	}
	err := app.RunContext(t.Context(), append([]string{"plyfs", "first"}, args...))
	return got, err
}

// configFile writes a configuration and returns its path.
func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const everyKey = `# Comment.
[first]
address = "from file"   # another
wait = "1m30s"
limit = -3
ratio = 2
idle = true
name = ["a,b", "c"]
driver-opt = ["x=1", "y=2"]
log-level = "debug"
log-format = "json"

[second]
port = 7
`

func TestConfigSetsEveryKind(t *testing.T) {
	got, err := start(t, "--config", configFile(t, everyKey))
	if err != nil {
		t.Fatal(err)
	}
	if got.address != "from file" || got.wait != 90*time.Second || got.limit != -3 || got.ratio != 2 || !got.idle || !got.debug ||
		got.format != "json" || strings.Join(got.names, " ") != "a,b c" || strings.Join(got.opts, " ") != "x=1 y=2" {
		t.Errorf("got %+v", *got)
	}
	for _, same := range []string{`first = { address = "inline" }`, `first.address = "inline"`} {
		got, err := start(t, "--config", configFile(t, same))
		if err != nil || got.address != "inline" {
			t.Errorf("%s: %+v, %v", same, got, err)
		}
	}
}

func TestConfigPrecedence(t *testing.T) {
	path := configFile(t, everyKey)
	t.Setenv("TEST_ADDRESS", "from environment")
	got, err := start(t, "--config", path, "--wait", "5s", "-n", "z", "--idle=false", "--driver-opt", "z=3")
	if err != nil {
		t.Fatal(err)
	}
	if got.address != "from environment" || got.wait != 5*time.Second || got.idle || got.limit != -3 ||
		strings.Join(got.names, " ") != "z" || strings.Join(got.opts, " ") != "z=3" {
		t.Errorf("got %+v", *got)
	}
}

func TestConfigPlaces(t *testing.T) {
	home := testenv.Scratch(t)
	t.Setenv("XDG_CONFIG_HOME", home)
	if got, err := start(t); err != nil || got.address != "default" {
		t.Errorf("without a file: %+v, %v", got, err)
	}
	if got := daemon.DefaultConfig(); got != "/etc/plyfs/config.toml" {
		t.Errorf("root's configuration is %s", got)
	}
	t.Setenv("PLYFS_CONFIG", configFile(t, "[first]\nlimit = 9\n"))
	if got, err := start(t); err != nil || got.limit != 9 {
		t.Errorf("by PLYFS_CONFIG: %+v, %v", got, err)
	}
	t.Setenv("PLYFS_CONFIG", filepath.Join(home, "absent"))
	if _, err := start(t); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("a file that is named and missing: %v", err)
	}
}

func TestConfigRefusals(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "[first]\n\naddrss = 1\n", ":3: [first] has no key addrss; did you mean address?"},
		{"underscore", "[first]\ndriver_opt = []\n", ":2: [first] has no key driver_opt; did you mean driver-opt?"},
		{"other case", "[first]\nLimit = 1\n", ":2: [first] has no key Limit; did you mean limit?"},
		{"nothing like it", "[first]\nfrobnicate = 1\n", ":2: [first] has no key frobnicate; there are address, wait,"},
		{"alias", "[first]\nn = []\n", ":2: [first] has no key n"},
		{"not a key", "[first]\nconfig = \"x\"\n", ":2: [first] has no key config"},
		{"unknown table", "[frist]\nx = 1\n", ":1: there is no table [frist]; did you mean [first]?"},
		{"no table", "limit = 1\n", ":1: limit stands outside of a table; write it below [first] or [second]"},
		{"array of tables", "[[first]]\nlimit = 1\n", ":1: "},
		{"table below", "[first.limit]\nx = 1\n", ":1: limit: want a whole number, not a table"},
		{"another daemon's key", "[second]\nprot = 1\n", ":2: [second] has no key prot; did you mean port?"},
		{"another daemon's type", "[second]\nport = \"1\"\n", ":2: port: want a whole number, not a string"},
		{"string for a number", "[first]\nlimit = \"1\"\n", ":2: limit: want a whole number, not a string"},
		{"number for a string", "[first]\naddress = 1\n", ":2: address: want a string in quotes, not a number"},
		{"number for a duration", "[first]\nwait = 10\n", `:2: wait: want a duration in quotes, such as "10s", not a number`},
		{"bad duration", "[first]\nwait = \"10\"\n", `:2: wait: "10" is no duration`},
		{"string for a list", "[first]\nname = \"a\"\n", ":2: name: want an array of strings"},
		{"numbers in a list", "[first]\nname = [1]\n", ":2: name: want strings in the array, not a number"},
		{"string for a boolean", "[first]\nidle = \"yes\"\n", ":2: idle: want true or false, not a string"},
		{"date", "[first]\nlimit = 2026-01-01\n", ":2: limit: want a whole number, not a date or time"},
		{"syntax", "[first]\nlimit = \n", ":2:"},
		{"twice", "[first]\nlimit = 1\nlimit = 2\n", ":3:"},
		{"level", "[first]\nlog-level = \"loud\"\n", `log-level is "loud"`},
		{"format", "[first]\nlog-format = \"xml\"\n", `log-format is "xml"`},
		{"not text", "[first]\nlimit = \xff\n", ":2:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := start(t, "--config", configFile(t, c.text))
			var usage *daemon.UsageError
			if got != nil || !errors.As(err, &usage) || usage.ExitCode() != 16 || !strings.Contains(err.Error(), c.want) {
				t.Errorf("started with %+v, error %v; want %q", got, err, c.want)
			}
		})
	}
}

// A file that others may have written would decide what a daemon of root's does.
func TestConfigOfOthersIsRefused(t *testing.T) {
	path := configFile(t, "[first]\nlimit = 1\n")
	for want, change := range map[string]func() error{
		"written by others": func() error { return os.Chmod(path, 0o664) },
		"belongs to user":   func() error { return errors.Join(os.Chmod(path, 0o644), os.Chown(path, 65534, 0)) },
		"not a regular":     func() error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := start(t, "--config", path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("[first]\nlimit = 1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestArgumentsAreRefused(t *testing.T) {
	var usage *daemon.UsageError
	if _, err := start(t, "stray"); !errors.As(err, &usage) || !strings.Contains(err.Error(), "stray") {
		t.Errorf("%v, want a usage error that names the argument", err)
	}
	if _, err := start(t, "--no-such-flag"); !errors.As(err, &usage) {
		t.Errorf("%v, want a usage error", err)
	}
}

// The process ends when the command returns: systemd must have heard of the stop by then, however quick that was.
func TestSignalEndsTheContext(t *testing.T) {
	path := filepath.Join(testenv.Scratch(t), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	entered := make(chan struct{})
	done := make(chan error, 1)
	app := &cli.App{
		Writer: io.Discard, ErrWriter: io.Discard,
		Commands: []*cli.Command{daemon.Command(daemon.Spec{
			Name: "d",
			Run: func(ctx context.Context, _ *cli.Context, _ *slog.Logger) error {
				close(entered)
				<-ctx.Done()
				return nil
			},
		})},
	}
	go func() { done <- app.RunContext(t.Context(), []string{"plyfs", "d"}) }()
	<-entered
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if heard, err := received(manager); err != nil || heard != "STOPPING=1" {
		t.Errorf("systemd heard %q, %v", heard, err)
	}
}

// received returns the next message that has come; it does not wait for one.
func received(conn *net.UnixConn) (string, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", err
	}
	buf := make([]byte, 256)
	n := 0
	var inner error
	err = raw.Read(func(fd uintptr) bool {
		n, inner = syscall.Read(int(fd), buf)
		return true
	})
	return string(buf[:max(n, 0)]), errors.Join(err, inner)
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(everyKey))
	f.Add([]byte("first = { a = [1, {b = 2}] }\n[[second]]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := start(t, "--config", configFile(t, string(text))); err != nil && !errors.As(err, new(*daemon.UsageError)) {
			t.Errorf("%v is no usage error", err)
		}
	})
}
