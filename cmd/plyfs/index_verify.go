package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"plyfs/fs/fsck"
)

const indexVerifyUsage = "plyfs index verify [--json] [-q] [--dir DIR] NAME | -o OPTIONS"

// indexVerifyCommand is plyfs index verify.
func indexVerifyCommand() *cli.Command {
	options := &optionList{}
	return &cli.Command{
		Name:      "verify",
		Usage:     "compare an index with its layers, and files with their digests",
		UsageText: indexVerifyUsage,
		Description: "Compares every directory and entry with the layers, which are found by the paths that the index\n" +
			"was built from, or given as options of the mount. If the index has digests, every file is read. An index that is\n" +
			"wrong is marked stale: the next mount builds it anew.\n" +
			"Exit codes: 0 no differences, 1 differences, 8 the check failed, 16 bad command line, 32 interrupted.",
		Flags: []cli.Flag{
			optionsFlag(options),
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "leave the summary out"},
			jsonFlag(), dirFlag(),
		},
		OnUsageError: indexUsageError(indexVerifyUsage),
		Action:       func(c *cli.Context) error { return runIndexVerify(c, options.take()) },
	}
}

func runIndexVerify(c *cli.Context, options []string) error {
	ctx, stop := interruptible(c)
	defer stop()
	t, err := openTarget(c, options, indexVerifyUsage, withLayers)
	if err != nil {
		return err
	}
	defer t.close()
	out := bufio.NewWriter(c.App.Writer)
	p := &verifyPrinter{w: out, json: c.Bool("json"), quiet: c.Bool("quiet"), index: indexLineOf(t.index.Info())}
	p.begin()
	stale := ""
	sum, err := fsck.VerifyIndex(ctx, fsck.IndexOptions{
		Index: t.index, Lowers: t.stack.Lowers, Content: t.index.Info().Digests,
		Report: func(f fsck.IndexFinding) {
			if stale == "" && f.OfIndex() {
				stale = fmt.Sprintf("/%s in layer %s %s", f.View, f.Layer, f.Explanation)
				t.index.MarkStale(oneLine(stale))
			}
			p.finding(f)
		},
		Progress: verifyProgress(os.Stderr),
	})
	p.end(sum, err)
	if ferr := out.Flush(); ferr != nil && err == nil {
		return faultf(indexFailed, "cannot print the result: %v", ferr)
	}
	switch {
	case err != nil:
		return indexFault(err)
	case sum.Stale+sum.Rotten > 0:
		return &fault{Code: indexDiffers}
	}
	return nil
}

// verifyPrinter prints findings as they come, as lines or as the elements of one JSON object.
type verifyPrinter struct {
	w           *bufio.Writer
	json, quiet bool
	index       indexLine
	any         bool
}

// indexFinding is a finding in the output of --json.
type indexFinding struct {
	Kind fsck.IndexKind `json:"kind"`
	Path string         `json:"path"`
	// PathBytes is the path where it is not UTF-8, in base64.
	PathBytes   []byte `json:"path_bytes,omitempty"`
	Layer       string `json:"layer"`
	Explanation string `json:"explanation"`
}

// indexVerified is the summary in the output of --json.
type indexVerified struct {
	Directories uint64 `json:"directories"`
	Entries     uint64 `json:"entries"`
	Files       uint64 `json:"files"`
	Bytes       uint64 `json:"bytes"`
	Stale       uint64 `json:"stale"`
	Rotten      uint64 `json:"rotten"`
}

func (p *verifyPrinter) begin() {
	if p.json {
		fmt.Fprintf(p.w, `{"index":%s,"findings":[`, jsonOf(p.index))
	}
}

func (p *verifyPrinter) finding(f fsck.IndexFinding) {
	if !p.json {
		fmt.Fprintf(p.w, "%s %s %s", f.Kind, printable(f.View), oneLine(f.Explanation))
		if f.Layer != "" {
			fmt.Fprintf(p.w, " (layer %s)", printable(f.Layer))
		}
		fmt.Fprintln(p.w)
		return
	}
	out := indexFinding{Kind: f.Kind, Path: f.View, Layer: f.Layer, Explanation: f.Explanation}
	if !utf8.ValidString(f.View) {
		out.PathBytes = []byte(f.View)
	}
	if p.any {
		fmt.Fprint(p.w, ",")
	}
	p.any = true
	fmt.Fprint(p.w, "\n", jsonOf(out))
}

func (p *verifyPrinter) end(s fsck.IndexSummary, err error) {
	switch {
	case p.json:
		fmt.Fprint(p.w, "\n],\"summary\":", jsonOf(indexVerified(s)))
		if err != nil {
			fmt.Fprint(p.w, ",\"failure\":", jsonOf(err.Error()))
		}
		fmt.Fprintln(p.w, "}")
	case err == nil && !p.quiet:
		read := "contents not checked: the index has no digests"
		if p.index.Digests {
			read = fmt.Sprintf("%s read, %s", plural(s.Files, "file", "files"), byteSize(int64(s.Bytes)))
		}
		fmt.Fprintf(p.w, "index %s: %s in %s, %s: %s\n", p.index.Name, plural(s.Entries, "entry", "entries"),
			plural(s.Directories, "directory", "directories"), read, plural(s.Stale+s.Rotten, "difference", "differences"))
		if p.index.State == indexStale {
			fmt.Fprintf(p.w, "the index was stale before: %s\n", oneLine(p.index.Reason))
		}
	}
}

// verifyProgress reports progress of long checks to a terminal; nil if f is none.
func verifyProgress(f *os.File) func(fsck.IndexSummary) {
	if !isTerminal(f) {
		return nil
	}
	return everySoOften(f, func(w io.Writer, s fsck.IndexSummary) {
		fmt.Fprintf(w, "plyfs index verify: %d entries, %d files read, %s\n", s.Entries, s.Files, byteSize(int64(s.Bytes)))
	})
}

// everySoOften calls say at most once in progressEvery, the first time after as long.
func everySoOften[T any](w io.Writer, say func(io.Writer, T)) func(T) {
	last := time.Now()
	return func(v T) {
		if now := time.Now(); now.Sub(last) >= progressEvery {
			last = now
			say(w, v)
		}
	}
}
