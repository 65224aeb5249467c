package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
	"plyfs/fs/server"
	"plyfs/fs/union"
	"plyfs/internal/cmdtable"
	"plyfs/internal/exit"
	"plyfs/metadata"
	"plyfs/metadata/indexdb"
)

// The exit codes of plyfs index, which are those of fsck(8) where they mean the same.
const (
	// indexDiffers: plyfs index verify found a difference, or the index is damaged.
	indexDiffers = 1
	// indexFailed: what was asked for could not be done.
	indexFailed      = 8
	indexUsage       = 16
	indexInterrupted = 32
)

// indexCommand is plyfs index.
func indexCommand() *cli.Command {
	return &cli.Command{
		Name:  "index",
		Usage: "look at, build and check the indexes of stacks of lowers",
		Subcommands: []*cli.Command{
			indexLsCommand(),
			indexBuildCommand(),
			indexVerifyCommand(),
			indexStatsCommand(),
			indexRmCommand(),
			indexDuplicatesCommand(),
		},
		OnUsageError: indexUsageError("plyfs index COMMAND"),
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return faultf(indexUsage, "%s; see plyfs index --help", cmdtable.UnknownCommand("index "+c.Args().First(), c.Command.Subcommands))
			}
			return cli.ShowSubcommandHelp(c)
		},
	}
}

func indexUsageError(line string) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error {
		return faultf(indexUsage, "%v; usage: %s", err, line)
	}
}

func dirFlag() cli.Flag {
	return &cli.StringFlag{Name: "dir", Usage: "`DIR` that holds the indexes, instead of the usual one or index=DIR"}
}

// printed calls print with the standard output, and says with the exit code if something could not be written there.
func printed(c *cli.Context, code int, print func(w io.Writer)) error {
	w := bufio.NewWriter(c.App.Writer)
	print(w)
	if err := w.Flush(); err != nil {
		return faultf(code, "cannot print the result: %v", err)
	}
	return nil
}

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }

// parseIndexOptions reads mount options, with further lowers below those of the options. What does not concern the
// lowers is ignored.
func parseIndexOptions(options, lowers []string, line string) (mountopt.Options, error) {
	for _, a := range lowers {
		if strings.HasPrefix(a, "-") {
			return mountopt.Options{}, faultf(indexUsage, "flag %s stands behind the arguments; usage: %s", a, line)
		}
	}
	o, err := mountopt.Parse(options...)
	switch {
	case err != nil:
		return o, faultf(indexUsage, "%v", err)
	case len(o.Unknown) > 0:
		return o, faultf(indexUsage, "unknown option %s; %s", o.Unknown[0], fsckHint(o.Unknown[0]))
	}
	o.LowerDirs = append(o.LowerDirs, lowers...)
	o.UpperDir, o.WorkDir = "", ""
	return o, nil
}

// openIndexStack opens the lowers of o and refuses what a mount would refuse.
func openIndexStack(o mountopt.Options) (*server.Stack, error) {
	if len(o.LowerDirs) == 0 {
		return nil, faultf(indexUsage, "no lowerdir given; add -o lowerdir=DIR[:DIR]..., the topmost first")
	}
	s, err := server.OpenStack(o)
	if err != nil {
		return nil, failedFault(err)
	}
	if _, err := s.Check(server.MountPersonality()); err != nil {
		s.Close()
		return nil, failedFault(err)
	}
	return s, nil
}

// failedFault is err, whatever exit code it had as a failure to mount.
func failedFault(err error) error { return faultf(indexFailed, "%s", exit.AsFault(err).Text) }

// lowersOnly are the options of a union of lowers that shows what a mount with o does.
func lowersOnly(o mountopt.Options, s *server.Stack, log *slog.Logger) union.Options {
	return union.Options{
		Lowers: s.Lowers, ReadOnly: true, RedirectDir: server.RedirectDir(o.RedirectDir), MaxOpenFiles: o.MaxOpenFiles, Logger: log,
	}
}

// indexDir is the directory of indexes that the command line means.
func indexDir(c *cli.Context, o mountopt.Options) (string, error) {
	if dir := c.String("dir"); dir != "" {
		return dir, nil
	}
	if o.IndexDir != "" {
		return o.IndexDir, nil
	}
	dir, err := server.IndexDir()
	if err != nil {
		return "", faultf(indexFailed, "%v, or with --dir", err)
	}
	return dir, nil
}

// openIndexCache opens a directory of indexes, and makes it if need be.
func openIndexCache(dir string, log *slog.Logger) (*indexdb.Cache, error) {
	cache, err := indexdb.OpenCache(dir, log)
	if err != nil {
		return nil, faultf(indexFailed, "%v", err)
	}
	return cache, nil
}

// existingIndexCache is openIndexCache for commands that only look: where nothing is, it makes nothing and returns nil.
func existingIndexCache(c *cli.Context, o mountopt.Options, log *slog.Logger) (*indexdb.Cache, error) {
	dir, err := indexDir(c, o)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // there are no indexes
	}
	return openIndexCache(dir, log)
}

// warnLog tells warnings to stderr.
func warnLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// interruptible is a context that ends with SIGINT and SIGTERM.
func interruptible(c *cli.Context) (ctx context.Context, stop func()) {
	return signal.NotifyContext(c.Context, os.Interrupt, unix.SIGTERM)
}

// indexFault is err as a fault of plyfs index.
func indexFault(err error) error {
	var f *fault
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f):
		return err
	case errors.Is(err, metadata.ErrDamaged):
		return faultf(indexDiffers, "%v; remove it with plyfs index rm, the next mount builds it anew", err)
	case errors.Is(err, context.Canceled):
		return faultf(indexInterrupted, "interrupted; nothing was changed")
	}
	return faultf(indexFailed, "%v", err)
}

// byteSize is a number of bytes for people.
func byteSize(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/(1<<10), 0
	for v >= 1<<10 && i < len(units)-1 {
		v /= 1 << 10
		i++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// plural is a number of things.
func plural[T ~int | ~int64 | ~uint64](n T, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// shortTime is a time for people, "-" where it is not known.
func shortTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}

// isTerminal says whether people look at f.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
