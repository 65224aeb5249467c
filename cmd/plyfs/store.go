package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/drivers/all"
	"plyfs/internal/cmdtable"
	"plyfs/layerdb"
	"plyfs/layerdb/image"
)

// The exit codes of plyfs image, layer, container and driver. 2 is what the Go runtime exits with after a crash.
const (
	storeFailed = 1
	// storeNotFound: no such image, layer, container, driver or file, here or in a registry.
	storeNotFound = 3
	// storeInUse: mounted, or needed by something else.
	storeInUse  = 4
	storeExists = 5
	// storeUnsupported: the driver, the kernel, the file system or a privilege does not allow it here.
	storeUnsupported = 6
	// storeOther: another driver, or another version of plyfs, made the store.
	storeOther = 7
	// storeDamaged: something in the store, or what was to come in, is not what it should be.
	storeDamaged = 8
	// storeLocked: another process has the store open, and did not end in time.
	storeLocked = 9
	// storeNoSpace: the file system, or a quota, is full.
	storeNoSpace = 10
	// storeUnauthorized: a registry wants other credentials.
	storeUnauthorized = 11
	// storeBrokenOff: a transfer ended early; the same command goes on where it ended.
	storeBrokenOff   = 12
	storeUsage       = 16
	storeInterrupted = 32
)

// storeCodes gives an error its exit code: that of the first class that it wraps.
func storeCodes() []struct {
	class error
	code  int
} {
	return []struct {
		class error
		code  int
	}{
		{context.Canceled, storeInterrupted},
		{layerdb.ErrLocked, storeLocked},
		{drivers.ErrOtherDriver, storeOther},
		{layerdb.ErrVersion, storeOther},
		{image.ErrUnauthorized, storeUnauthorized},
		{layerdb.ErrNoSpace, storeNoSpace},
		{syscall.ENOSPC, storeNoSpace},
		{syscall.EDQUOT, storeNoSpace},
		{image.ErrMalformed, storeDamaged},
		{tarlayer.ErrInvalid, storeDamaged},
		{tarlayer.ErrLimit, storeDamaged},
		{layerdb.ErrDigest, storeDamaged},
		{drivers.ErrDamaged, storeDamaged},
		{image.ErrBrokenOff, storeBrokenOff},
		{drivers.ErrNotFound, storeNotFound},
		{image.ErrAmbiguous, storeUsage},
		{drivers.ErrInUse, storeInUse},
		{drivers.ErrExists, storeExists},
		{drivers.ErrNotSupported, storeUnsupported},
		{drivers.ErrPrerequisites, storeUnsupported},
		{drivers.ErrIncompatibleFS, storeUnsupported},
		{drivers.ErrInvalid, storeUsage},
	}
}

// storeFault is err as a fault of a command on the store.
func storeFault(err error) error {
	var f *fault
	if err == nil || errors.As(err, &f) {
		return err
	}
	for _, c := range storeCodes() {
		if errors.Is(err, c.class) {
			if c.code == storeInterrupted {
				return faultf(c.code, "interrupted: %v", err)
			}
			return faultf(c.code, "%v", err)
		}
	}
	return faultf(storeFailed, "%v", err)
}

// storeCommand is a command on the store: flags may stand behind its arguments.
type storeCommand struct {
	name, usage, line string
	description       string
	flags             []cli.Flag
	// min and max are how many arguments there must be; a negative max is no bound.
	min, max int
	// refers says that the arguments name what is in the store: one that is not there is not made.
	refers bool
	// run is given the open store.
	run func(ctx context.Context, s *session) error
	// bare, in place of run, is called without opening the store.
	bare func(ctx context.Context, s *session) error
	// closed is called, if not nil, when the store cannot be opened, with the reason; what it returns counts.
	closed func(ctx context.Context, s *session, err error) error
}

// command is the command for the table of commands.
func (s storeCommand) command() *cli.Command {
	return &cli.Command{
		Name: s.name, Usage: s.usage, UsageText: s.line, Description: s.description,
		Flags: append(slices.Clone(s.flags), storeFlags()...),
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return faultf(storeUsage, "%v; usage: %s", err, s.line)
		},
		Action: func(c *cli.Context) error {
			args, err := lateFlags(c)
			if err != nil {
				return faultf(storeUsage, "%v; usage: %s", err, s.line)
			}
			switch {
			case c.Bool("help"): // it stood behind an argument
				return cli.ShowSubcommandHelp(c)
			case len(args) < s.min:
				return faultf(storeUsage, "an argument is missing; usage: %s", s.line)
			case s.max >= 0 && len(args) > s.max:
				return faultf(storeUsage, "unexpected argument %s; usage: %s", args[s.max], s.line)
			}
			return storeFault(s.runSession(c, args))
		},
	}
}

// storeGroup is a command with subcommands.
func storeGroup(name, usage string, commands ...storeCommand) *cli.Command {
	group := &cli.Command{
		Name: name, Usage: usage,
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return faultf(storeUsage, "%v; usage: plyfs %s COMMAND", err, name)
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return faultf(storeUsage, "%s; see plyfs %s --help", cmdtable.UnknownCommand(name+" "+c.Args().First(), c.Command.Subcommands), name)
			}
			return cli.ShowSubcommandHelp(c)
		},
	}
	for _, s := range commands {
		group.Subcommands = append(group.Subcommands, s.command())
	}
	return group
}

// storeFlags are those of every command on the store.
func storeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "root", EnvVars: []string{"PLYFS_ROOT"}, Usage: "`DIR` of the store"},
		&cli.StringFlag{Name: "driver", EnvVars: []string{"PLYFS_DRIVER"}, Usage: "`NAME` of the graph driver; see plyfs driver probe"},
		listFlag("driver-opt", "`NAME=VALUE`, an option of the driver; may be repeated"),
		&cli.DurationFlag{Name: "wait", Value: 10 * time.Second, Usage: "`DURATION` to wait for a process that has the store open; 0 for none"},
		jsonFlag(),
	}
}

// session is one command's use of the store.
type session struct {
	c       *cli.Context
	args    []string
	out     io.Writer
	options layerdb.Options
	// layers and images are nil in a command that does without the store.
	layers *layerdb.Store
	images *image.Store
	// private says that mounts made here are seen by nobody and end with the command.
	private bool
	// unprinted is the first error of what printer wrote.
	unprinted error
}

// printer is out for what is printed line by line: that it fails is said at the end.
func (s *session) printer() io.Writer { return sessionPrinter{s} }

type sessionPrinter struct{ s *session }

func (p sessionPrinter) Write(b []byte) (int, error) {
	if p.s.unprinted != nil {
		return 0, p.s.unprinted
	}
	n, err := p.s.out.Write(b)
	p.s.unprinted = err
	return n, err
}

// json says whether the output is for programs.
func (s *session) json() bool { return s.c.Bool("json") }

// runSession runs the command: for an unprivileged user in a user namespace, in a process of its own.
func (s storeCommand) runSession(c *cli.Context, args []string) (err error) {
	ns, err := namespaceOf(c)
	if err != nil || ns == nsDone {
		return err
	}
	ctx, stop := interruptible(c)
	defer stop()
	o, err := storeOptions(c)
	if err != nil {
		return err
	}
	o.MustExist = s.refers && len(args) > 0 && args[0] != scratchImage
	use := &session{c: c, args: args, out: c.App.Writer, options: o, private: ns == nsPrivate}
	defer func() {
		if use.unprinted != nil {
			err = errors.Join(err, use.unprinted)
		}
	}()
	if s.bare != nil {
		return s.bare(ctx, use)
	}
	if use.layers, err = layerdb.Open(ctx, o); err != nil {
		if s.closed != nil {
			return s.closed(ctx, use, err)
		}
		return err
	}
	defer func() { err = errors.Join(err, use.layers.Close()) }()
	if use.images, err = image.Open(use.layers); err != nil {
		return err
	}
	return s.run(ctx, use)
}

// storeOptions are those that the command line names.
func storeOptions(c *cli.Context) (layerdb.Options, error) {
	o := layerdb.Options{
		Root: c.String("root"), Driver: c.String("driver"), Registry: all.Registry(), Wait: c.Duration("wait"), Log: warnLog(),
	}
	if o.Wait <= 0 {
		o.Wait = layerdb.NoWait
	}
	if o.Root == "" {
		o.Root = layerdb.DefaultRoot()
	}
	var err error
	o.DriverOptions, err = pairsOf(listOf(c, "driver-opt"))
	return o, err
}

// pairsOf reads NAME=VALUE words.
func pairsOf(words []string) (map[string]string, error) {
	pairs := make(map[string]string, len(words))
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok || name == "" {
			return nil, faultf(storeUsage, "%q is not NAME=VALUE", w)
		}
		if _, twice := pairs[name]; twice {
			return nil, faultf(storeUsage, "%s is given twice", name)
		}
		pairs[name] = value
	}
	return pairs, nil
}
