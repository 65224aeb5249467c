package main

import (
	"context"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/fs/server"
	"plyfs/internal/doctor"
	"plyfs/layerdb"
)

// doctorProblems is the exit code of plyfs doctor for a machine with problems.
const doctorProblems = 1

const doctorUsage = "plyfs doctor [--json] [--all] [--root DIR]"

// doctorCommand is plyfs doctor.
func doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "say what works for this user on this machine, what does not, and what to do about it",
		UsageText: doctorUsage,
		Description: "Tries what plyfs and container engines need, in namespaces of its own, and changes nothing.\n" +
			"Run it as the user who runs the containers. Exit code 1 if there are problems.",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{
				Name: "all", Aliases: []string{"a"},
				Usage: "print what works in full, and what can be done about notes",
			},
			&cli.StringFlag{Name: "root", EnvVars: []string{"PLYFS_ROOT"}, Usage: "`DIR` of the layer store"},
		},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return faultf(storeUsage, "%v; usage: %s", err, doctorUsage)
		},
		HideHelpCommand: true, Subcommands: []*cli.Command{doctorTryCommand()},
		Action: runDoctor,
	}
}

// doctorTryCommand is what plyfs doctor runs itself as to try something.
func doctorTryCommand() *cli.Command {
	return &cli.Command{
		Name: doctor.TryCommand, Hidden: true, SkipFlagParsing: true, HideHelp: true,
		Action: func(c *cli.Context) error {
			if err := doctor.RunTrial(c.Args().Slice(), c.App.Writer); err != nil {
				return faultf(storeUsage, "%v", err)
			}
			return nil
		},
	}
}

func runDoctor(c *cli.Context) error {
	if c.NArg() > 0 {
		return faultf(storeUsage, "unexpected argument %s; usage: %s", c.Args().First(), doctorUsage)
	}
	o := doctor.Options{Root: c.String("root")}
	if o.Root == "" {
		o.Root = layerdb.DefaultRoot()
	}
	// Without a place there is no index, which a check says.
	o.IndexDir, _ = server.IndexDir()
	ctx, stop := interruptible(c)
	defer stop()
	r := doctor.Run(ctx, doctor.Host{}, o)
	if ctx.Err() != nil {
		return storeFault(context.Cause(ctx))
	}
	if err := printDoctor(c, r); err != nil {
		return faultf(storeFailed, "%v", err)
	}
	if r.Problems() > 0 {
		return &fault{Code: doctorProblems}
	}
	return nil
}

func printDoctor(c *cli.Context, r *doctor.Report) error {
	if c.Bool("json") {
		return r.WriteJSON(c.App.Writer)
	}
	s := doctor.Style{All: c.Bool("all"), Width: 120}
	if f, ok := c.App.Writer.(*os.File); ok && isTerminal(f) {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 0 {
			s.Width = int(ws.Col)
		}
		// https://no-color.org
		s.Colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return r.WriteText(c.App.Writer, s)
}
