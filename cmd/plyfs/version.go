package main

import (
	"encoding/json"

	"github.com/urfave/cli/v2"

	"plyfs/fs/server"
	"plyfs/internal/version"
)

// versionCommand is plyfs version.
func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print it as a JSON object"}},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return faultf(exitUsage, "%v; usage: plyfs version [--json]", err)
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return faultf(exitUsage, "unexpected argument %q; see plyfs version --help", c.Args().First())
			}
			if !c.Bool("json") {
				return server.PrintVersion(c.App.Writer, server.MountPersonality())
			}
			e := json.NewEncoder(c.App.Writer)
			e.SetIndent("", "  ")
			return e.Encode(version.Read())
		},
	}
}
