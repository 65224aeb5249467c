package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// quickScale divides the sizes of --quick.
const quickScale = 20

// sampleTimeout is the longest time for a sample, where nothing else is asked for.
const sampleTimeout = 10 * time.Minute

// namespaceVariable is set in the process that has a mount namespace of its own.
const namespaceVariable = "PLYFS_BENCH_NAMESPACE"

// usageError is how a command line that cannot be read ends.
func usageError(_ *cli.Context, err error, _ bool) error { return cli.Exit("bench: "+err.Error(), 1) }

// Command returns the command line of the benchmark. Exit status 1 says that a sample failed or a demand is not met.
func Command() *cli.Command {
	return &cli.Command{
		Name:  "bench",
		Usage: "measure plyfs, the kernel's overlayfs and fuse-overlayfs",
		Description: "Runs file-system workloads on each system in turn, every sample on a fresh mount, and prints medians\n" +
			"and ratios to the kernel's overlayfs. Needs root. Mounts are made in a private namespace. Workloads that begin cold\n" +
			"drop the caches of the whole machine; on tmpfs, where nothing is cold, they are left out.",
		Flags:        flags(),
		OnUsageError: usageError,
		Action:       run,
		Subcommands: []*cli.Command{
			{
				Name: "child", Hidden: true, Usage: "measure one sample", SkipFlagParsing: true,
				Action: func(c *cli.Context) error {
					return childMain(c.Context, c.Args().First(), os.Stdin, c.App.Writer)
				},
			},
			serveCommand(),
			storeCommand(),
			enginesCommand(),
		},
	}
}

// flags are those of the benchmark.
func flags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "list", Usage: "list the workloads and end"},
		&cli.StringFlag{Name: "workloads", Usage: "comma-separated `PATTERNS` of names (default: all)"},
		&cli.StringFlag{Name: "systems", Usage: "comma-separated `NAMES` of kernel, fuse-overlayfs, plyfs, plyfs-index (default: the installed ones)"},
		&cli.StringFlag{Name: "data", Value: "both", Usage: "data `MODE` of plyfs: passthrough, noopen, both or auto"},
		&cli.StringFlag{Name: "options", Usage: "further mount `OPTIONS` for plyfs"},
		&cli.StringFlag{Name: "plyfs", Usage: "`FILE` to run as plyfs (default: this binary)"},
		&cli.IntFlag{Name: "samples", Value: 5, Usage: "`NUMBER` of samples of each workload on each system"},
		&cli.StringFlag{Name: "layers-on", Usage: "where layers are: tmpfs, ext4 (below TMPDIR), loop (a new ext4 in a file below TMPDIR), a `DIR`, or several of them with commas (default: tmpfs)"},
		&cli.StringFlag{Name: "upper-on", Usage: "where uppers are: tmpfs, ext4 or a `DIR` (default: where the layers are)"},
		&cli.BoolFlag{Name: "quick", Usage: fmt.Sprintf("divide all sizes by %d", quickScale)},
		&cli.BoolFlag{Name: "check", Usage: "judge each demand on the speed of plyfs; alone, run just what they are about, on tmpfs, ext4 and loop"},
		&cli.StringFlag{Name: "json", Usage: "write the report as JSON to `FILE`, - for the standard output"},
		&cli.StringFlag{Name: "plot", Usage: "write a plot to `FILE`, as SVG or, with the suffix .html, as a page"},
		&cli.StringFlag{Name: "profile", Usage: "write CPU profiles of plyfs to the directory `DIR`"},
		&cli.DurationFlag{Name: "timeout", Value: sampleTimeout, Usage: "longest `TIME` for one sample"},
		&cli.BoolFlag{Name: "verbose", Usage: "report each sample on the standard error output"},
	}
}

// run is the action of the command.
func run(c *cli.Context) error {
	if c.NArg() > 0 {
		return cli.Exit(fmt.Sprintf("bench: unexpected argument %q", c.Args().First()), 1)
	}
	if c.Bool("list") {
		return list(c.App.Writer, All())
	}
	if os.Getenv(namespaceVariable) == "" && os.Geteuid() == 0 {
		return runInNamespace(0)
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	cfg, err := configure(ctx, c)
	if err != nil {
		return cli.Exit("bench: "+err.Error(), 1)
	}
	text := textOf(c)
	for _, s := range cfg.Systems {
		fmt.Fprintf(text, "%s: %s\n", s.Name, s.Version)
	}
	cfg.OnResult = NewTable(text, cfg.Systems).Add
	report, err := NewRunner(cfg).Run(ctx)
	if report != nil {
		err = errors.Join(err, finish(c, report, text))
	}
	if err != nil {
		return cli.Exit("bench: "+err.Error(), 1)
	}
	return nil
}

// finish writes what was asked for beside the table.
func finish(c *cli.Context, report *Report, text io.Writer) error {
	var failed error
	if c.Bool("check") {
		report.Checks = Judge(report.Results)
		if err := WriteChecks(text, report.Checks); err != nil {
			return err
		}
		for _, check := range report.Checks {
			if !check.Pass {
				failed = errors.New("some demands are not met")
			}
		}
	}
	switch name := c.String("json"); name {
	case "":
	case "-":
		if err := report.WriteJSON(c.App.Writer); err != nil {
			return err
		}
	default:
		if err := writeTo(name, report.WriteJSON); err != nil {
			return err
		}
	}
	if name := c.String("plot"); name != "" {
		write := report.WriteSVG
		if ext := filepath.Ext(name); ext == ".html" || ext == ".htm" {
			write = report.WriteHTML
		}
		if err := writeTo(name, write); err != nil {
			return err
		}
	}
	return failed
}

// mayWrite says before a run whether what finish is to write can be written: a run takes long.
func mayWrite(c *cli.Context) error {
	for _, flag := range []string{"json", "plot"} {
		name := c.String(flag)
		if name == "" || flag == "json" && name == "-" {
			continue
		}
		_, err := os.Stat(name)
		isNew := errors.Is(err, os.ErrNotExist)
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o666)
		if err == nil {
			err = f.Close()
		}
		if err == nil && isNew {
			err = os.Remove(name)
		}
		if err != nil {
			return fmt.Errorf("--%s: %w", flag, err)
		}
	}
	return nil
}

// writeTo creates a file.
func writeTo(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	buf := bufio.NewWriter(f)
	return errors.Join(write(buf), buf.Flush(), f.Close())
}

// common is what all commands take from flags.
func common(c *cli.Context) (Config, error) {
	cfg := Config{Samples: c.Int("samples"), Scale: 1, Timeout: c.Duration("timeout"), Logger: newLogger(c)}
	if cfg.Samples < 1 {
		return cfg, fmt.Errorf("--samples %d: at least 1 is needed", cfg.Samples)
	}
	if cfg.Timeout <= 0 {
		return cfg, fmt.Errorf("--timeout %v: a time above 0 is needed", cfg.Timeout)
	}
	return cfg, mayWrite(c)
}

// programOf is the plyfs that is measured.
func programOf(c *cli.Context) (string, error) {
	if p := c.String("plyfs"); p != "" {
		return p, nil
	}
	return os.Executable()
}

// textOf is where what is not JSON is written.
func textOf(c *cli.Context) io.Writer {
	if c.String("json") == "-" {
		return os.Stderr
	}
	return c.App.Writer
}

// configure turns flags into a Config.
func configure(ctx context.Context, c *cli.Context) (Config, error) {
	cfg, err := common(c)
	if err != nil {
		return cfg, err
	}
	cfg.LayersOn, cfg.UpperOn, cfg.ProfileDir = words(c.String("layers-on")), c.String("upper-on"), c.String("profile")
	if c.Bool("quick") {
		cfg.Scale = quickScale
	}
	if cfg.Workloads, err = Select(All(), words(c.String("workloads"))); err != nil {
		return cfg, err
	}
	if c.Bool("check") && c.String("workloads") == "" {
		cfg.Only = demanded
	}
	switch {
	case len(cfg.LayersOn) > 0:
	case c.Bool("check"):
		cfg.LayersOn = []string{tmpfsMedium, ext4Medium, loopMedium}
	default:
		cfg.LayersOn = []string{tmpfsMedium}
	}
	if cfg.ProfileDir != "" {
		if cfg.ProfileDir, err = filepath.Abs(cfg.ProfileDir); err != nil {
			return cfg, err
		}
		if err := os.MkdirAll(cfg.ProfileDir, 0o755); err != nil {
			return cfg, err
		}
	}
	if cfg.Systems, err = chooseSystems(ctx, c); err != nil {
		return cfg, err
	}
	return cfg, nil
}

// chooseSystems turns the flags about systems into systems.
func chooseSystems(ctx context.Context, c *cli.Context) ([]System, error) {
	program, err := programOf(c)
	if err != nil {
		return nil, err
	}
	choice := Choice{Systems: words(c.String("systems")), Options: c.String("options"), Program: program}
	switch mode := c.String("data"); mode {
	case "both":
		choice.Data = []DataMode{Passthrough, NoOpen}
	case string(Passthrough), string(NoOpen), string(AutoData):
		choice.Data = []DataMode{DataMode(mode)}
	default:
		return nil, fmt.Errorf("--data %s: passthrough, noopen, both or auto is needed", mode)
	}
	return Detect(ctx, choice)
}

func newLogger(c *cli.Context) *slog.Logger {
	level := slog.LevelWarn
	if c.Bool("verbose") {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// words splits a list at commas.
func words(s string) []string {
	var out []string
	for _, w := range strings.Split(s, ",") {
		if w = strings.TrimSpace(w); w != "" {
			out = append(out, w)
		}
	}
	return out
}

// runInNamespace runs this command again in a mount namespace of its own, and the others of flags, so that no mount outlives it, whatever
// happens, and none of its mounts is seen by the rest of the machine. Signals are passed on; this process waits for
// the inner one to clean up.
func runInNamespace(flags uintptr) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = Plyfs
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), namespaceVariable+"=1")
	// An own group, and each signal passed on once: it must not come twice from a terminal.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Unshareflags: unix.CLONE_NEWNS, Setpgid: true, Pdeathsig: unix.SIGTERM}
	runtime.LockOSThread() // the parent-death signal is bound to the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return cli.Exit("bench: mount namespace: "+err.Error(), 1)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // it may have ended just now
		case err := <-done:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return cli.Exit("", max(1, exit.ExitCode()))
			}
			return err
		}
	}
}
