package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/internal/cmdtable"
	"plyfs/internal/daemon"
	"plyfs/internal/exit"
	"plyfs/internal/version"
)

// The exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 16
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// run is the program; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := newApp(stdout, stderr).RunContext(ctx, args)
	if err == nil || errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "plyfs: %s\n", exit.OneLine(err.Error()))
	if errors.Is(err, daemon.ErrAddress) {
		return exitUsage
	}
	var coder cli.ExitCoder
	if errors.As(err, &coder) {
		return coder.ExitCode()
	}
	return exitFailed
}

// commands is the table of daemons.
func commands() []*cli.Command {
	return []*cli.Command{
		snapshotterCommand(),
		graphpluginCommand(),
		metricsCommand(),
	}
}

// tableCommand prints the table as JSON, for plyfs, which completes command lines.
func tableCommand() *cli.Command {
	return &cli.Command{
		Name: "__commands", Usage: "print the table of commands as JSON", Hidden: true, HideHelp: true,
		Action: func(c *cli.Context) error {
			return json.NewEncoder(c.App.Writer).Encode(cmdtable.Of("plyfs", commands()))
		},
	}
}

func newApp(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:           "plyfs",
		Usage:          "daemons of plyfs",
		Version:        version.Read().Version,
		Commands:       append(cmdtable.Guess(commands()), tableCommand()),
		Writer:         stdout,
		ErrWriter:      stderr,                       // the daemons log to it
		ExitErrHandler: func(*cli.Context, error) {}, // run exits
		OnUsageError: func(c *cli.Context, err error, _ bool) error {
			return cli.Exit(fmt.Sprintf("%v; see plyfs --help", cmdtable.GuessFlag(err, c.App.Flags)), exitUsage)
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return cli.Exit(cmdtable.UnknownCommand(c.Args().First(), c.App.Commands)+"; see plyfs --help", exitUsage)
			}
			return cli.ShowAppHelp(c)
		},
	}
}
