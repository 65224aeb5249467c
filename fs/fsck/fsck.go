package fsck

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/internal/sys"
	"plyfs/metadata/indexdb"
)

// ErrInUse says that a live mount uses the upper or the work directory.
var ErrInUse = errors.New("in use by a mount")

// Options say what is checked. The layers belong to the caller, stay open and are not used after Run.
type Options struct {
	// Upper is the upper layer, required.
	Upper *layer.Layer
	// Work is the work directory, nil to check the upper alone. Repair requires it: it tells whether a mount is alive.
	Work *layer.Layer
	// Lowers are those of the mounts of this upper, all of them, topmost first. Without any, what can't be judged without
	// them is left out, and Summary.Skipped says so.
	Lowers []*layer.Layer
	// StackIndex is the index of Lowers, nil for none. It is compared with them, but for the contents of files.
	StackIndex *indexdb.Index
	// Repair repairs what can be repaired.
	Repair bool
	// InUse checks although a mount is alive, whose changes may then show as findings. It excludes Repair.
	InUse bool
	// Report is called for each finding, from the goroutine of Run, after its repair. nil drops them.
	Report func(Finding)
	// Progress is called, from the goroutine of Run, at each directory; nil for nobody.
	Progress func(Progress)
	// Mutator makes the system calls of repairs; nil makes them directly.
	Mutator *sys.Mutator
}

// Progress is how far a check is.
type Progress struct {
	// Objects is how many were looked at.
	Objects uint64
	// Step is what is going on, such as "upper".
	Step string
	// Path is the directory that is looked at, relative to the upper.
	Path string
}

// Severity says whether something works less well than it should.
type Severity string

// The severities.
const (
	// Note is out of the ordinary, and does no harm.
	Note Severity = "note"
	// Error is wrong: some access fails, or shows something else than it should.
	Error Severity = "error"
)

// The layers that a Finding may be in.
const (
	InUpper = "upper"
	InWork  = "work"
	InIndex = "index"
)

// Finding is one thing that is out of order.
type Finding struct {
	Severity Severity
	Class    Class
	// Layer is InUpper, InWork or InIndex; Path is relative to it (of the index: to the merged lowers), "." for its root. Bytes
	// of names are as on disk.
	Layer, Path string
	// Explanation says what is wrong and what follows, in one line.
	Explanation string
	// Repair is what a repair does, "" where there is none: then Remedy is the way out.
	Repair, Remedy string
	// Repaired says that it was done; Failure why not.
	Repaired bool
	Failure  error
}

// Summary is the result of a check.
type Summary struct {
	// Objects is how many were looked at, Directories how many of them are directories of the upper.
	Objects, Directories uint64
	// Errors and Notes count the findings, RepairedErrors and RepairedNotes those that were repaired.
	Errors, Notes, RepairedErrors, RepairedNotes uint64
	// Skipped says in a line each what was not checked, and why.
	Skipped []string
}

// Left is how many errors are still there.
func (s Summary) Left() uint64 { return s.Errors - s.RepairedErrors }

// Run checks. It blocks for as long as reading the whole upper takes, and, if the hard-link index has entries, the
// whole merged tree. Findings are no error: an error says that the check could not be made or completed. It wraps
// ErrInUse, context.Canceled, or EINVAL for options that exclude each other.
func Run(ctx context.Context, o Options) (Summary, error) {
	switch {
	case o.Upper == nil:
		return Summary{}, fmt.Errorf("fsck needs an upper: %w", unix.EINVAL)
	case o.Repair && o.InUse:
		return Summary{}, fmt.Errorf("repair of %s excludes a check while it is in use: %w", o.Upper.Path, unix.EINVAL)
	case o.Repair && o.Work == nil:
		return Summary{}, fmt.Errorf("repair of %s needs its work directory, which tells whether it is mounted: %w",
			o.Upper.Path, unix.EINVAL)
	}
	layer.TellApart(o.Lowers)
	c := &checker{
		opt: o, ctx: ctx, m: o.Mutator, lowers: o.Lowers, boot: cow.BootID(), index: -1, links: map[linkKey]linkCount{},
	}
	if c.m == nil {
		c.m = &sys.Mutator{}
	}
	defer c.close()
	err := c.run()
	return c.sum, err
}

// checker is one run.
type checker struct {
	opt    Options
	ctx    context.Context //nolint:containedctx // of one call, which made this value
	m      *sys.Mutator
	lowers lowers
	sum    Summary
	boot   string

	// live says that a mount uses the layers.
	live bool
	// index is the directory of the hard-link index, -1 for none.
	index int
	// links counts the names of what the index holds.
	links map[linkKey]linkCount
	// foreign says that the lowers are not those of the upper.
	foreign bool
	// incomplete says that something could not be read, so that what was not seen may still be there.
	incomplete bool
	// recorded says that the record of unsynced copy-ups is there; marks counts the marks that are left.
	recorded bool
	marks    uint64
	// synced says that the upper's file system was synced since the run began.
	synced bool
}

// run makes the checks, in an order in which none reports what the repair of one before it did.
func (c *checker) run() error {
	if err := c.checkUse(); err != nil {
		return err
	}
	c.skips()
	for _, step := range []func() error{
		c.checkLowers,  // are these the lowers of the upper?
		c.checkWork,    // leftovers and marks in the work directory
		c.checkIndex,   // entries of the hard-link index by themselves
		c.checkUpper,   // every object of the upper
		c.checkLinks,   // the names of what the index holds
		c.settleRecord, // the record of unsynced marks, now that all are known
		c.checkStackIndex,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// skips says what can't be checked.
func (c *checker) skips() {
	skip := func(s string) { c.sum.Skipped = append(c.sum.Skipped, s) }
	if len(c.lowers) == 0 {
		skip("without lowerdir: victims of whiteouts, targets of redirects, data of metadata-only copies, link counts")
	}
	if c.opt.Work == nil {
		skip("without workdir: staged leftovers, the hard-link index, marks of volatile mounts, whether a mount is alive")
	}
}

// withLowers says whether findings can be judged by what the lowers hold.
func (c *checker) withLowers() bool { return len(c.lowers) > 0 && !c.foreign }

func (c *checker) close() {
	if c.index >= 0 {
		unix.Close(c.index)
	}
}

// report counts and hands out a finding, after its repair if there is one and repairs are asked for.
func (c *checker) report(f Finding, repair func() error) {
	if c.opt.Repair && f.Repair != "" && repair != nil {
		if err := repair(); err != nil {
			f.Failure = err
		} else {
			f.Repaired = true
		}
	}
	all, done := &c.sum.Errors, &c.sum.RepairedErrors
	if f.Severity == Note {
		all, done = &c.sum.Notes, &c.sum.RepairedNotes
	}
	*all++
	if f.Repaired {
		*done++
	}
	if c.opt.Report != nil {
		c.opt.Report(f)
	}
}

// unreadable reports what could not be looked at.
func (c *checker) unreadable(in, path string, err error) {
	c.incomplete = true
	c.report(Finding{
		Severity: Error, Class: Unreadable, Layer: in, Path: path, Explanation: "cannot be read: " + err.Error(),
		Remedy: "run as the user who mounts; if it is an input/output error, copy what can be read to another disk",
	}, nil)
}

// progress tells how far the check is, and ends it when it was cancelled.
func (c *checker) progress(step, path string) error {
	if c.opt.Progress != nil {
		c.opt.Progress(Progress{Objects: c.sum.Objects, Step: step, Path: path})
	}
	if err := c.ctx.Err(); err != nil {
		return fmt.Errorf("check of %s interrupted: %w", c.opt.Upper.Path, err)
	}
	return nil
}
