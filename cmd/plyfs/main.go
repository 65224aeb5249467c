// A server works on two threads or three whatever the container's share of the processors is. The runtime would keep files of
// the cgroup file system open to watch that share, and so keep that file system mounted.
//
//go:debug containermaxprocs=0

package main

import (
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"plyfs/bench"
	"plyfs/fs/server"
	"plyfs/internal/cmdtable"
	"plyfs/internal/exit"
)

func main() {
	if fd, ok := server.StandbyFD(); ok {
		os.Exit(exit.Report(server.NamePlyfs, server.StandBy(fd, indexes{}), os.Stderr))
	}
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run is the program; it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	name, err := dispatch(args, stdout)
	return exit.Report(name, err, stderr)
}

// dispatch runs the personality that the program was called as, and returns the name that messages begin with.
func dispatch(args []string, stdout io.Writer) (name string, err error) {
	if len(args) == 0 {
		args = []string{server.NamePlyfs}
	}
	if err := continueInNamespace(args); err != nil {
		return server.NamePlyfs, err
	}
	if p, ok := server.PersonalityOf(args[0]); ok {
		return p.Name(), server.Main(p, args[1:], stdout, indexes{})
	}
	app := newApp(stdout)
	if mountsWithoutCommand(app, args[1:]) {
		return server.NamePlyfs, server.Main(server.MountPersonality(), args[1:], stdout, indexes{})
	}
	err = app.Run(args)
	return server.NamePlyfs, err
}

// commands is the table of subcommands.
func commands() []*cli.Command {
	return append([]*cli.Command{
		mountCommand(),
		umountCommand(),
		fsckCommand(),
		indexCommand(),
		imageCommand(),
		layerCommand(),
		containerCommand(),
		driverCommand(),
		unshareCommand(),
		doctorCommand(),
		installCommand(),
		uninstallCommand(),
		completionCommand(),
		psCommand(),
		topCommand(),
		versionCommand(),
		bench.Command(),
	}, append(daemonCommands(), hiddenCommands()...)...)
}

func newApp(stdout io.Writer) *cli.App {
	return &cli.App{
		Name:           server.NamePlyfs,
		Usage:          "union file systems in userspace",
		Commands:       cmdtable.Guess(commands()),
		Writer:         stdout,
		ErrWriter:      stdout,
		HideVersion:    true,
		ExitErrHandler: func(*cli.Context, error) {}, // run exits
		OnUsageError: func(c *cli.Context, err error, _ bool) error {
			return faultf(exitUsage, "%v; see plyfs --help", cmdtable.GuessFlag(err, c.App.Flags))
		},
		Flags: []cli.Flag{&cli.BoolFlag{Name: "version", Aliases: []string{"V"}, Usage: "print the version"}},
		Action: func(c *cli.Context) error {
			switch {
			case c.Bool("version"):
				return server.PrintVersion(c.App.Writer, server.MountPersonality())
			case c.NArg() > 0:
				return faultf(exitUsage, "%s; see plyfs --help", cmdtable.UnknownCommand(c.Args().First(), c.App.Commands))
			}
			return cli.ShowAppHelp(c)
		},
	}
}

// mountCommand is plyfs mount. Its arguments are those of mount programs, which no flag package reads: options stand
// anywhere, -o may be glued to its value, and commas inside belong to the options' own grammar.
func mountCommand() *cli.Command {
	return &cli.Command{
		Name:            "mount",
		Usage:           "mount a union of directories",
		ArgsUsage:       "[-f] [-d] [-o OPTION[,OPTION]...]... [SOURCE] MOUNTPOINT",
		SkipFlagParsing: true,
		HideHelp:        true,
		Action: func(c *cli.Context) error {
			return server.Main(server.MountPersonality(), c.Args().Slice(), c.App.Writer, indexes{})
		},
	}
}

// mountsWithoutCommand recognises the command line of a FUSE program, which mount.fuse3 -t plyfs (and so containerd, for
// mounts of type fuse3.plyfs) makes: SOURCE MOUNTPOINT -o OPTIONS.
func mountsWithoutCommand(app *cli.App, args []string) bool {
	if len(args) < 3 || strings.HasPrefix(args[0], "-") || app.Command(args[0]) != nil {
		return false
	}
	return slices.ContainsFunc(args[1:], func(a string) bool { return strings.HasPrefix(a, "-o") })
}
