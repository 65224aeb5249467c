package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
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
	path, err := findDaemon()
	if err != nil {
		return err
	}
	if err := unix.Exec(path, append([]string{namePlyfs, command}, args...), os.Environ()); err != nil {
		return faultf(exitSystem, "run %s: %v", path, err)
	}
	return nil
}

// findDaemon looks for plyfsd where this program lies, then on PATH.
func findDaemon() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", faultf(exitSystem, "find this program's file: %v", err)
	}
	if self, err = filepath.EvalSymlinks(self); err == nil {
		beside := filepath.Join(filepath.Dir(self), daemonProgram)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(daemonProgram)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return "", faultf(exitSystem, "%s is neither beside %s nor on PATH: install it too (make install does)", daemonProgram, self)
	}
	if err != nil {
		return "", faultf(exitSystem, "%s: %v", daemonProgram, err)
	}
	return path, nil
}
