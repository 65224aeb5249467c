package main

import (
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/fs/server"
	"plyfs/internal/sibling"
)

// daemonProgram has the daemons, whose packages would make every mount start slower.
const daemonProgram = "plyfsd"

// daemonCommands are the commands that plyfsd has. It reads their flags.
func daemonCommands() []*cli.Command {
	var all []*cli.Command
	for _, d := range []struct{ name, usage string }{
		{"snapshotter", "serve containerd as a snapshotter"},
		{"graphplugin", "serve Docker as a graph-driver plugin"},
		{"metrics", "export the metrics of all mounts to Prometheus"},
	} {
		all = append(all, &cli.Command{
			Name: d.name, Usage: d.usage, SkipFlagParsing: true, HideHelp: true,
			Action: func(c *cli.Context) error { return runDaemon(d.name, c.Args().Slice()) },
		})
	}
	return all
}

// runDaemon replaces this process by plyfsd. It returns only if that fails.
func runDaemon(command string, args []string) error {
	path, err := sibling.Find(daemonProgram)
	if err != nil {
		return faultf(exitSystem, "%v", err)
	}
	if err := unix.Exec(path, append([]string{server.NamePlyfs, command}, args...), os.Environ()); err != nil {
		return faultf(exitSystem, "run %s: %v", path, err)
	}
	return nil
}
