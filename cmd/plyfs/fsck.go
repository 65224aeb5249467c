package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"plyfs/cow/layer"
	"plyfs/fs/fsck"
	"plyfs/fs/mountopt"
	"plyfs/fs/server"
	"plyfs/fs/union"
	"plyfs/internal/exit"
	"plyfs/metadata/indexdb"
)

// The exit codes of plyfs fsck, which are those of fsck(8): the sum of what applies.
const (
	fsckClean     = 0
	fsckCorrected = 1
	fsckLeft      = 4
	// fsckFailed: the check could not be made.
	fsckFailed      = 8
	fsckUsage       = 16
	fsckInterrupted = 32
)

const fsckUsageLine = "plyfs fsck [--repair | -n] [--json] [-q] -o upperdir=DIR,workdir=DIR,lowerdir=DIR[:DIR]..."

// fsckCommand is plyfs fsck.
func fsckCommand() *cli.Command {
	options := &optionList{}
	return &cli.Command{
		Name:      "fsck",
		Usage:     "check an upper layer and its work directory",
		UsageText: fsckUsageLine,
		Description: "Takes the options of the mount; what says nothing about the layers is ignored. The layers must not\n" +
			"be mounted, but with -n. Without lowerdir, what can't be judged without the lowers is left out.\n" +
			"Exit codes are those of fsck(8), added up: 0 no errors, 1 errors corrected, 4 errors left, 8 the check\n" +
			"failed, 16 bad command line, 32 interrupted. Notes don't count.",
		Flags: []cli.Flag{
			optionsFlag(options),
			&cli.BoolFlag{Name: "repair", Usage: "repair what can be repaired without losing anything"},
			&cli.BoolFlag{
				Name: "dry-run", Aliases: []string{"n"}, Usage: "change nothing, and check even layers that are mounted",
			},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "leave notes out"},
		},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return faultf(fsckUsage, "%v; usage: %s", err, fsckUsageLine)
		},
		Action: func(c *cli.Context) error {
			return runFsck(c, append(options.take(), c.Args().Slice()...))
		},
	}
}

// runFsck opens the layers, checks them and prints what is found.
func runFsck(c *cli.Context, args []string) error {
	repair, dry := c.Bool("repair"), c.Bool("dry-run")
	if repair && dry {
		return faultf(fsckUsage, "--repair changes the layers and --dry-run nothing; give one of the two")
	}
	s, o, err := openFsckStack(args, repair)
	if err != nil {
		return err
	}
	defer s.Close()
	index, err := fsckIndex(o, s)
	if err != nil {
		fmt.Fprintf(os.Stderr, "plyfs fsck: the index of the lowers is not checked, and mounts go without it: %v\n", err)
	}
	if index != nil {
		if !repair {
			index.Keep()
		}
		defer index.Close()
	}
	ctx, stop := interruptible(c)
	defer stop()
	out := bufio.NewWriter(c.App.Writer)
	p := newFsckPrinter(out, c)
	sum, err := fsck.Run(ctx, fsck.Options{
		Upper: s.Upper, Work: s.Work, Lowers: s.Lowers, StackIndex: index, Repair: repair, InUse: dry,
		Report: p.finding, Progress: fsckProgress(os.Stderr),
	})
	p.end(sum, err)
	if ferr := out.Flush(); ferr != nil && err == nil {
		return faultf(fsckFailed, "cannot print the result: %v", ferr)
	}
	if err != nil {
		return fsckFault(err)
	}
	return fsckVerdict(sum)
}

// fsckVerdict is the exit code, without further words.
func fsckVerdict(sum fsck.Summary) error {
	code := fsckClean
	if sum.RepairedErrors > 0 {
		code |= fsckCorrected
	}
	if sum.Left() > 0 {
		code |= fsckLeft
	}
	if code == fsckClean {
		return nil
	}
	return &fault{Code: code}
}

func fsckFault(err error) error {
	switch {
	case errors.Is(err, fsck.ErrInUse):
		return faultf(fsckFailed, "%v; unmount it, or add -n to look without changing anything", err)
	case errors.Is(err, context.Canceled):
		return faultf(fsckInterrupted, "%v", err)
	}
	return faultf(fsckFailed, "%v", err)
}

// openFsckStack opens the layers that the arguments name. The lowers and, without repair, the work directory may be
// left out.
func openFsckStack(args []string, repair bool) (s *server.Stack, o mountopt.Options, err error) {
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			return nil, o, faultf(fsckUsage, "flag %s stands behind the options; usage: %s", a, fsckUsageLine)
		}
	}
	o, err = mountopt.Parse(args...)
	switch {
	case err != nil:
		return nil, o, faultf(fsckUsage, "%v", err)
	case len(o.Unknown) > 0:
		return nil, o, faultf(fsckUsage, "unknown option %s; %s", o.Unknown[0], fsckHint(o.Unknown[0]))
	case o.UpperDir == "":
		return nil, o, faultf(fsckUsage, "no upperdir given; usage: %s", fsckUsageLine)
	case repair && o.WorkDir == "":
		return nil, o, faultf(fsckUsage, "no workdir given; --repair needs it to know whether the upper is mounted")
	case len(o.LowerDirs) > server.MaxLowers:
		return nil, o, faultf(fsckUsage, "%d lower directories given, the limit is %d", len(o.LowerDirs), server.MaxLowers)
	}
	s = &server.Stack{}
	defer func() {
		if err != nil {
			s.Close()
			err = faultf(fsckFailed, "%s", exit.AsFault(err).Text)
		}
	}()
	server.RaiseFileLimit()
	from := &layer.Opener{}
	if s.Upper, err = server.OpenLayer(from, "upperdir", o.UpperDir); err != nil {
		return s, o, err
	}
	if o.WorkDir != "" {
		if s.Work, err = server.OpenLayer(from, "workdir", o.WorkDir); err != nil {
			return s, o, err
		}
	}
	for _, dir := range o.LowerDirs {
		var l *layer.Layer
		if l, err = server.OpenLayer(from, "lowerdir", dir); err != nil {
			return s, o, err
		}
		s.Lowers = append(s.Lowers, l)
	}
	return s, o, s.Distinct()
}

// fsckIndex opens the index of the lowers if mounts with o would use it. It returns nil if there is none. Nothing in
// the directory of indexes is made or changed.
func fsckIndex(o mountopt.Options, s *server.Stack) (*indexdb.Index, error) {
	dir := o.IndexDir
	if dir == "" {
		var err error
		if dir, err = server.IndexDir(); err != nil {
			return nil, nil //nolint:nilnil // who has no place for an index has none
		}
	}
	if _, err := os.Stat(dir); err != nil || len(s.Lowers) == 0 || o.Index == mountopt.IndexOff {
		return nil, nil //nolint:nilnil // as above
	}
	uo := lowersOnly(o, s, nil)
	id, err := union.StackOf(&uo)
	if err != nil {
		return nil, err
	}
	cache, err := indexdb.OpenCache(dir, nil)
	if err != nil {
		return nil, err
	}
	defer cache.Close()
	x, err := cache.OpenName(id.Name())
	if errors.Is(err, indexdb.ErrNotBuilt) {
		return nil, nil //nolint:nilnil // there is none
	}
	if err == nil && x.Info().Stale != "" {
		return nil, x.Close()
	}
	return x, err
}

func fsckHint(w mountopt.Word) string {
	if h := mountopt.Hint(w); h != "" {
		return h
	}
	return "the options are those of plyfs mount"
}

// fsckPrinter prints findings as they come, as lines or as the elements of one JSON object.
type fsckPrinter struct {
	w      *bufio.Writer
	json   bool
	quiet  bool
	repair bool
	any    bool
}

func newFsckPrinter(w *bufio.Writer, c *cli.Context) *fsckPrinter {
	p := &fsckPrinter{w: w, json: c.Bool("json"), quiet: c.Bool("quiet"), repair: c.Bool("repair")}
	if p.json {
		fmt.Fprint(w, `{"findings":[`)
	}
	return p
}

// fsckFinding is a finding in the output of --json.
type fsckFinding struct {
	Severity fsck.Severity `json:"severity"`
	Class    fsck.Class    `json:"class"`
	Layer    string        `json:"layer"`
	Path     string        `json:"path"`
	// PathBytes is the path where it is not UTF-8, in base64.
	PathBytes   []byte `json:"path_bytes,omitempty"`
	Explanation string `json:"explanation"`
	Repair      string `json:"repair,omitempty"`
	Remedy      string `json:"remedy,omitempty"`
	Repaired    bool   `json:"repaired"`
	Failure     string `json:"failure,omitempty"`
}

func (p *fsckPrinter) finding(f fsck.Finding) {
	switch {
	case p.quiet && f.Severity == fsck.Note:
		return
	case p.json:
		p.findingJSON(f)
	default:
		fmt.Fprintf(p.w, "%s %s %s %s%s\n",
			f.Severity, f.Class, printable(f.Layer+":"+f.Path), oneLine(f.Explanation), p.tail(f))
	}
	p.any = true
}

// tail is what a line says of the repair.
func (p *fsckPrinter) tail(f fsck.Finding) string {
	switch {
	case f.Repaired:
		return "; repaired: " + oneLine(f.Repair)
	case f.Failure != nil:
		return "; NOT repaired: " + oneLine(f.Failure.Error())
	case f.Repair != "":
		return "; --repair " + oneLine(f.Repair)
	case f.Remedy != "":
		return "; not repairable here: " + oneLine(f.Remedy)
	}
	return ""
}

func (p *fsckPrinter) findingJSON(f fsck.Finding) {
	out := fsckFinding{
		Severity: f.Severity, Class: f.Class, Layer: f.Layer, Path: f.Path, Explanation: f.Explanation, Repair: f.Repair,
		Remedy: f.Remedy, Repaired: f.Repaired,
	}
	if f.Failure != nil {
		out.Failure = f.Failure.Error()
	}
	if !utf8.ValidString(f.Path) {
		out.PathBytes = []byte(f.Path)
	}
	if p.any {
		fmt.Fprint(p.w, ",")
	}
	fmt.Fprint(p.w, "\n", jsonOf(out))
}

// fsckSummary is the summary in the output of --json.
type fsckSummary struct {
	Objects        uint64   `json:"objects"`
	Directories    uint64   `json:"directories"`
	Errors         uint64   `json:"errors"`
	RepairedErrors uint64   `json:"repaired_errors"`
	Notes          uint64   `json:"notes"`
	RepairedNotes  uint64   `json:"repaired_notes"`
	Skipped        []string `json:"skipped"`
}

// end prints what follows the findings: the summary, and the error that ended the check early, if any.
func (p *fsckPrinter) end(s fsck.Summary, err error) {
	if p.json {
		sum := fsckSummary{
			s.Objects, s.Directories, s.Errors, s.RepairedErrors, s.Notes, s.RepairedNotes, append([]string{}, s.Skipped...),
		}
		fmt.Fprint(p.w, "\n],\"summary\":", jsonOf(sum))
		if err != nil {
			fmt.Fprint(p.w, ",\"failure\":", jsonOf(err.Error()))
		}
		fmt.Fprintln(p.w, "}")
		return
	}
	for _, skipped := range s.Skipped {
		fmt.Fprintf(p.w, "not checked: %s\n", oneLine(skipped))
	}
	if err != nil {
		return
	}
	fmt.Fprintf(p.w, "%s in %s: %s, %s\n",
		plural(s.Objects, "object", "objects"), plural(s.Directories, "directory", "directories"),
		counted(s.Errors, s.RepairedErrors, "error", p.repair), counted(s.Notes, s.RepairedNotes, "note", p.repair))
}

func counted(n, repaired uint64, what string, repair bool) string {
	text := fmt.Sprintf("%d %ss", n, what)
	if n == 1 {
		text = "1 " + what
	}
	if repair && n > 0 {
		text += fmt.Sprintf(" (%d repaired)", repaired)
	}
	return text
}

// jsonOf is v, a value of plain fields that always has an encoding, in JSON.
func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "null"
	}
	return string(b)
}

// printable is a path that can stand in a line: quoted if a terminal or a script would stumble over it.
func printable(path string) string {
	q := strconv.Quote(path)
	if q != `"`+path+`"` || strings.ContainsRune(path, ' ') {
		return q
	}
	return path
}

// oneLine is text that may hold names of files, without characters that would end the line or move a cursor.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// progressEvery is how often a terminal is told how far a check is; the first time after as long.
const progressEvery = time.Second

// fsckProgress reports progress of long checks to a terminal; nil if f is none.
func fsckProgress(f *os.File) func(fsck.Progress) {
	if !isTerminal(f) {
		return nil
	}
	return everySoOften(f, func(w io.Writer, p fsck.Progress) {
		fmt.Fprintf(w, "plyfs fsck: %s, %d objects, %s\n", p.Step, p.Objects, printable(p.Path))
	})
}
