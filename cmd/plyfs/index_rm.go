package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"plyfs/fs/mountopt"
	"plyfs/metadata/indexdb"
)

const indexRmUsage = "plyfs index rm [--json] [--dir DIR] NAME... | --all | --stale"

// indexRmCommand is plyfs index rm.
func indexRmCommand() *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Usage:     "remove indexes; mounts that use them go on",
		UsageText: indexRmUsage,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "remove all"},
			&cli.BoolFlag{Name: "stale", Usage: "remove those that are stale or broken, and those that were set aside"},
			jsonFlag(), dirFlag(),
		},
		OnUsageError: indexUsageError(indexRmUsage),
		Action:       runIndexRm,
	}
}

func runIndexRm(c *cli.Context) error {
	ways := 0
	for _, given := range []bool{c.NArg() > 0, c.Bool("all"), c.Bool("stale")} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		return faultf(indexUsage, "give names, or --all, or --stale; usage: %s", indexRmUsage)
	}
	cache, err := existingIndexCache(c, mountopt.Options{}, warnLog())
	if err != nil {
		return err
	}
	if cache == nil {
		if c.NArg() > 0 {
			return faultf(indexFailed, "index %s: %v; see plyfs index ls", c.Args().First(), indexdb.ErrNotBuilt)
		}
		return printRemoved(c, nil)
	}
	defer cache.Close()
	names := c.Args().Slice()
	if len(names) == 0 {
		infos, err := cache.List()
		if err != nil {
			return indexFault(err)
		}
		for _, i := range infos {
			if c.Bool("all") || i.Stale != "" || i.Broken != "" || indexdb.IsSetAside(i.Name) {
				names = append(names, i.Name)
			}
		}
	}
	removed := make([]string, 0, len(names))
	for _, n := range names {
		if err := cache.Remove(n); err != nil {
			return errors.Join(printRemoved(c, removed), faultf(indexFailed, "%v; see plyfs index ls", err))
		}
		removed = append(removed, n)
	}
	return printRemoved(c, removed)
}

// indexRemoved is the output of --json.
type indexRemoved struct {
	Removed []string `json:"removed"`
}

// printRemoved names the indexes that are gone, also when a later one could not be removed.
func printRemoved(c *cli.Context, names []string) error {
	return printed(c, indexFailed, func(w io.Writer) {
		if c.Bool("json") {
			fmt.Fprintf(w, "%s\n", jsonOf(indexRemoved{Removed: append([]string{}, names...)}))
			return
		}
		for _, n := range names {
			fmt.Fprintf(w, "removed %s\n", n)
		}
	})
}
