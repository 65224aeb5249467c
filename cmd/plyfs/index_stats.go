package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"plyfs/metadata"
)

const indexStatsUsage = "plyfs index stats [--json] [--dir DIR] NAME | -o OPTIONS"

// biggestDirs is how many of the largest directories are told.
const biggestDirs = 10

// indexStatsCommand is plyfs index stats.
func indexStatsCommand() *cli.Command {
	options := &optionList{}
	return &cli.Command{
		Name:         "stats",
		Usage:        "say what an index holds",
		UsageText:    indexStatsUsage,
		Flags:        []cli.Flag{optionsFlag(options), jsonFlag(), dirFlag()},
		OnUsageError: indexUsageError(indexStatsUsage),
		Action: func(c *cli.Context) error {
			ctx, stop := interruptible(c)
			defer stop()
			t, err := openTarget(c, options.take(), indexStatsUsage, indexAlone)
			if err != nil {
				return err
			}
			defer t.close()
			s := indexStats{Index: indexLineOf(t.index.Info())}
			if err := t.index.Walk(ctx, s.add); err != nil {
				return indexFault(err)
			}
			s.finish()
			return printed(c, indexFailed, func(w io.Writer) { printStats(w, c.Bool("json"), &s) })
		},
	}
}

// indexStats is what an index holds, as in the output of --json.
type indexStats struct {
	Index         indexLine `json:"index"`
	BytesPerEntry float64   `json:"bytes_per_entry"`
	// RecordBytes are the encoded directories alone, without keys and what the database adds.
	RecordBytes int64 `json:"record_bytes"`
	// Biggest are the directories with the most entries.
	Biggest []bigDir `json:"biggest"`
	// Layers tells for each layer how many names show from it.
	Layers []layerShare `json:"layers"`
}

type bigDir struct {
	Path    string `json:"path"`
	Entries int    `json:"entries"`
	Bytes   int    `json:"bytes"`
	// Lowers is how many layers have the directory.
	Lowers int `json:"lowers"`
}

type layerShare struct {
	Path    string  `json:"path"`
	Entries uint64  `json:"entries"`
	Share   float64 `json:"share"`
}

func (s *indexStats) add(view string, d *metadata.Dir) error {
	s.RecordBytes += int64(d.Size())
	s.rank(view, d)
	for i := range d.Len() {
		_, _, _, first, err := d.NameAt(i)
		if err != nil {
			return err
		}
		n := int(d.Lowers[first].Layer)
		for len(s.Layers) <= n {
			s.Layers = append(s.Layers, layerShare{})
		}
		s.Layers[n].Entries++
	}
	return nil
}

// rank keeps the directory if it is among the biggest.
func (s *indexStats) rank(view string, d *metadata.Dir) {
	if len(s.Biggest) == biggestDirs && s.Biggest[biggestDirs-1].Entries >= d.Len() {
		return
	}
	b := bigDir{Path: "/" + strings.Clone(view), Entries: d.Len(), Bytes: d.Size(), Lowers: len(d.Lowers)}
	at, _ := slices.BinarySearchFunc(s.Biggest, b, func(x, y bigDir) int { return cmp.Compare(y.Entries, x.Entries) })
	s.Biggest = slices.Insert(s.Biggest, at, b)
	s.Biggest = s.Biggest[:min(len(s.Biggest), biggestDirs)]
}

// finish makes up what depends on all directories.
func (s *indexStats) finish() {
	for len(s.Layers) < len(s.Index.Layers) {
		s.Layers = append(s.Layers, layerShare{})
	}
	for i := range s.Layers {
		if i < len(s.Index.Layers) {
			s.Layers[i].Path = s.Index.Layers[i]
		}
		if s.Index.Entries > 0 {
			s.Layers[i].Share = float64(s.Layers[i].Entries) / float64(s.Index.Entries)
		}
	}
	if s.Index.Entries > 0 {
		s.BytesPerEntry = float64(s.Index.Bytes) / float64(s.Index.Entries)
	}
}

func printStats(w io.Writer, asJSON bool, s *indexStats) {
	if asJSON {
		fmt.Fprintln(w, jsonOf(s))
		return
	}
	digests := "no digests"
	if s.Index.Digests {
		digests = "digests of all regular files"
	}
	fmt.Fprintf(w, "index %s: %s in %s, %s, %s\n", s.Index.Name, plural(s.Index.Entries, "entry", "entries"),
		plural(s.Index.Dirs, "directory", "directories"), digests, s.Index.State)
	fmt.Fprintf(w, "%s on disk, %.1f bytes an entry; records %s\n", byteSize(s.Index.Bytes), s.BytesPerEntry,
		byteSize(s.RecordBytes))
	fmt.Fprintln(w, "biggest directories:")
	for _, d := range s.Biggest {
		fmt.Fprintf(w, "  %8d entries, %s, of %s: %s\n", d.Entries, byteSize(int64(d.Bytes)),
			plural(d.Lowers, "layer", "layers"), printable(d.Path))
	}
	fmt.Fprintln(w, "names by layer, topmost first:")
	for _, l := range s.Layers {
		fmt.Fprintf(w, "  %8d %5.1f%% %s\n", l.Entries, l.Share*100, printable(l.Path))
	}
}
