package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"plyfs/fs/mountopt"
	"plyfs/metadata"
)

const indexLsUsage = "plyfs index ls [--json] [--dir DIR]"

// The states of an index.
const (
	indexOK     = "ok"
	indexStale  = "stale"
	indexBroken = "broken"
)

// indexLsCommand is plyfs index ls.
func indexLsCommand() *cli.Command {
	return &cli.Command{
		Name:         "ls",
		Usage:        "list the indexes",
		UsageText:    indexLsUsage,
		Flags:        []cli.Flag{jsonFlag(), dirFlag()},
		OnUsageError: indexUsageError(indexLsUsage),
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return faultf(indexUsage, "unexpected argument %s; usage: %s", c.Args().First(), indexLsUsage)
			}
			infos, err := listIndexes(c)
			if err != nil {
				return err
			}
			return printed(c, indexFailed, func(w io.Writer) { printIndexes(w, c.Bool("json"), infos) })
		},
	}
}

// listIndexes describes all indexes, of which there may be none.
func listIndexes(c *cli.Context) ([]metadata.Info, error) {
	cache, err := existingIndexCache(c, mountopt.Options{}, warnLog())
	if cache == nil || err != nil {
		return nil, err
	}
	defer cache.Close()
	infos, err := cache.List()
	return infos, indexFault(err)
}

// indexLine is an index in the output of --json.
type indexLine struct {
	Name  string `json:"name"`
	Path  string `json:"path"`
	State string `json:"state"`
	// Reason is why an index is not ok.
	Reason  string `json:"reason,omitempty"`
	Entries uint64 `json:"entries"`
	Dirs    uint64 `json:"dirs"`
	Bytes   int64  `json:"bytes"`
	Digests bool   `json:"digests"`
	// Built and Used are null where they are not known.
	Built  *time.Time `json:"built"`
	Used   *time.Time `json:"used"`
	Layers []string   `json:"layers"`
}

func indexLineOf(i metadata.Info) indexLine {
	l := indexLine{
		Name: i.Name, Path: i.Path, State: indexOK, Entries: i.Entries, Dirs: i.Dirs, Bytes: i.Bytes, Digests: i.Digests,
		Built: knownTime(i.Built), Used: knownTime(i.Used), Layers: append([]string{}, i.Layers...),
	}
	switch {
	case i.Broken != "":
		l.State, l.Reason = indexBroken, i.Broken
	case i.Stale != "":
		l.State, l.Reason = indexStale, i.Stale
	}
	return l
}

func knownTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func printIndexes(out io.Writer, asJSON bool, infos []metadata.Info) {
	lines := make([]indexLine, 0, len(infos))
	for _, i := range infos {
		lines = append(lines, indexLineOf(i))
	}
	if asJSON {
		fmt.Fprintln(out, jsonOf(lines))
		return
	}
	if len(lines) == 0 {
		return
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tENTRIES\tDIRS\tSIZE\tBUILT\tUSED\tDIGESTS\tSTATE\tLAYERS")
	for k, l := range lines {
		state, digests := l.State, "no"
		if l.Reason != "" {
			state += ": " + oneLine(l.Reason)
		}
		if l.Digests {
			digests = "yes"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Name, l.Entries, l.Dirs, byteSize(l.Bytes),
			shortTime(infos[k].Built), shortTime(infos[k].Used), digests, state, layersOf(l.Layers))
	}
	w.Flush()
}

// layersOf names a stack by its topmost layer.
func layersOf(paths []string) string {
	switch len(paths) {
	case 0:
		return "-"
	case 1:
		return printable(paths[0])
	}
	return fmt.Sprintf("%s and %d below", printable(paths[0]), len(paths)-1)
}
