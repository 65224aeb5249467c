package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os/signal"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// The flags that every daemon has. They are no keys of the configuration file, except those of the log.
const (
	flagConfig    = "config"
	flagLogLevel  = "log-level"
	flagLogFormat = "log-format"
)

// EnvConfig names the configuration file where --config does not.
const EnvConfig = "PLYFS_CONFIG"

// Spec describes a daemon.
type Spec struct {
	// Name is that of the command, and of the daemon's table in the configuration file.
	Name string
	// Usage is one line; Description any number of them.
	Usage, Description string
	// Flags are the daemon's own. Each is a key of the configuration file too, under its first name. None may be Required: it is
	// not known before the file is read, so Run checks. Types are those of cli.BoolFlag, StringFlag, PathFlag, IntFlag, Int64Flag,
	// UintFlag, Uint64Flag, Float64Flag, DurationFlag, StringSliceFlag and GenericFlag; the last two are arrays in the file.
	Flags []cli.Flag
	// Run serves until ctx ends, which a SIGTERM or SIGINT brings about, and then returns nil. c has what the command line, the
	// environment and the file say, in this order of precedence, then the defaults. log is the daemon's; Logger(ctx) is the same.
	Run func(ctx context.Context, c *cli.Context, log *slog.Logger) error
}

// Command returns the command that runs the daemon. It adds --config, --log-level and --log-format to the daemon's flags, and
// reads the file. What is wrong with the command line or the file is a UsageError, and nothing has been started then.
//
// systemd is told STOPPING=1 when the context ends. A second signal ends the process at once.
func Command(s Spec) *cli.Command {
	return &cli.Command{
		Name: s.Name, Usage: s.Usage, Description: s.Description,
		Flags: append(slices.Clone(s.Flags), commonFlags()...),
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return usagef("%v; see plyfs %s --help", err, s.Name)
		},
		Action: func(c *cli.Context) error { return s.run(c) },
	}
}

// commonFlags are those that Command adds.
func commonFlags() []cli.Flag {
	return []cli.Flag{
		&cli.PathFlag{
			Name: flagConfig, EnvVars: []string{EnvConfig},
			Usage: "configuration `FILE` (default: " + systemConfig + ", of users other than root ~/.config/" + userConfig + ")",
		},
		&cli.StringFlag{Name: flagLogLevel, Value: "info", Usage: "least severe `LEVEL` to log: debug, info, warn or error"},
		&cli.StringFlag{Name: flagLogFormat, Value: formatText, Usage: "`FORMAT` of the log: text or json"},
	}
}

func (s Spec) run(c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef("unexpected argument %s; see plyfs %s --help", c.Args().First(), s.Name)
	}
	if err := applyConfig(c); err != nil {
		return err
	}
	log, err := newLogger(c)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGTERM, unix.SIGINT)
	defer stop()
	told := make(chan struct{})
	tell := func() {
		defer close(told)
		stop()
		if err := Stopping(); err != nil {
			log.Warn("tell systemd of the stop", "error", err)
		}
	}
	unhook := context.AfterFunc(ctx, tell)
	err = s.Run(WithLogger(ctx, log), c, log)
	switch {
	case !unhook():
		<-told
	case ctx.Err() != nil:
		tell() // who waited for the context was sooner than what it calls
	}
	return err
}

// UsageError is a command line, or a configuration file, that the daemon can't be started with.
type UsageError struct{ text string }

// Error says what is wrong, where, and the way out.
func (e *UsageError) Error() string { return e.text }

// ExitCode is that of a bad command line, for cli.ExitCoder.
func (e *UsageError) ExitCode() int { return 16 }

// usagef formats a UsageError.
func usagef(format string, args ...any) error { return &UsageError{text: fmt.Sprintf(format, args...)} }
