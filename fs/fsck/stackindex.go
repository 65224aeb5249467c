package fsck

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
	"plyfs/metadata"
	"plyfs/metadata/indexdb"
)

// IndexOptions say what of a stack index is checked. Everything in it belongs to the caller and is not used after
// VerifyIndex.
type IndexOptions struct {
	Index *indexdb.Index
	// Lowers are the layers that the index was built from, topmost first.
	Lowers []*layer.Layer
	// Content reads every file that the index has a digest of, from the disk where the file system can be made to.
	Content bool
	// Report and Progress are called from the goroutine of VerifyIndex; nil for nobody.
	Report   func(IndexFinding)
	Progress func(IndexSummary)
}

// IndexKind is what is wrong, as a word that stays the same over releases: scripts may depend on it.
type IndexKind string

// The kinds of findings.
const (
	// IndexDirectoryChanged: names were added to a directory of a layer or taken from it, or its attributes changed.
	IndexDirectoryChanged IndexKind = "directory-changed"
	// IndexDirectoryGone: a layer has no such directory any more.
	IndexDirectoryGone IndexKind = "directory-gone"
	// IndexEdited: the object is not the one that was recorded, or was changed since: its inode number, size or times
	// differ.
	IndexEdited IndexKind = "edited"
	// IndexGone: the layer has no such name any more.
	IndexGone IndexKind = "gone"
	// IndexUnrecorded: the layers show a name that the index does not have, or show it from another layer.
	IndexUnrecorded IndexKind = "unrecorded"
	// IndexWrong: what is recorded does not describe the object, although nothing says that it changed.
	IndexWrong IndexKind = "wrong"
	// IndexBitRot: the content of the file is not what it was, and nothing says that it was changed: the disk lost it, or
	// somebody wrote to the disk below the file system. The index is right.
	IndexBitRot IndexKind = "bit-rot"
	// IndexUnreadable: an object of a layer can't be read. The index may be right.
	IndexUnreadable IndexKind = "unreadable"
	// IndexDamaged: bytes of the index are not what was written. The check ends there.
	IndexDamaged IndexKind = "damaged"
)

// IndexFinding is one difference between a stack index and its layers.
type IndexFinding struct {
	Kind IndexKind
	// View is the path in the merged lowers, "." for the root.
	View string
	// Layer is the path of the layer, "" if it is in none.
	Layer string
	// Explanation says what differs, in one line.
	Explanation string
}

// OfIndex says that the index must not be used any more. Otherwise it is the layer that is not good.
func (f *IndexFinding) OfIndex() bool { return f.Kind != IndexBitRot && f.Kind != IndexUnreadable }

// IndexSummary is how much was checked.
type IndexSummary struct {
	// Directories and Entries were compared.
	Directories, Entries uint64
	// Files were read, Bytes in all.
	Files, Bytes uint64
	// Stale counts the findings because of which the index must not be used, Rotten the others.
	Stale, Rotten uint64
}

// indexWorkers is how many directories are compared at once, at most.
const indexWorkers = 4

// VerifyIndex compares every directory and entry of a stack index with the layers. It holds a few directories in memory
// at a time, and blocks for as long as looking at every object of the layers takes; with Content, as long as reading
// them. Findings are no error: an error says that the check could not be completed. It wraps context.Canceled, or what
// a layer answered.
func VerifyIndex(ctx context.Context, o IndexOptions) (IndexSummary, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work, done := make(chan indexedDir), make(chan *indexCheck)
	var workers sync.WaitGroup
	for range min(indexWorkers, max(2, runtime.GOMAXPROCS(0))) {
		workers.Go(func() {
			v := indexVerifier{opt: &o, ctx: ctx, ls: o.Lowers}
			for d := range work {
				select {
				case done <- v.check(d):
				case <-ctx.Done():
				}
			}
		})
	}
	var walkErr error
	go func() {
		walkErr = o.Index.Walk(ctx, func(view string, d *metadata.Dir) error {
			select {
			case work <- indexedDir{view, d}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		close(work)
		workers.Wait()
		close(done)
	}()
	var sum IndexSummary
	var failure error
	for c := range done {
		if c.err != nil && failure == nil {
			failure = c.err
			cancel()
		}
		sum.add(c, &o)
	}
	switch {
	case failure != nil:
		return sum, failure
	case errors.Is(walkErr, metadata.ErrDamaged):
		sum.add(&indexCheck{findings: []IndexFinding{{Kind: IndexDamaged, View: ".", Explanation: walkErr.Error()}}}, &o)
		return sum, nil
	case walkErr != nil:
		return sum, fmt.Errorf("check of index %s: %w", o.Index.Info().Path, walkErr)
	}
	return sum, nil
}

// add counts and hands on what was found in a directory.
func (s *IndexSummary) add(c *indexCheck, o *IndexOptions) {
	s.Directories += c.directories
	s.Entries += c.entries
	s.Files += c.files
	s.Bytes += c.bytes
	for i := range c.findings {
		if c.findings[i].OfIndex() {
			s.Stale++
		} else {
			s.Rotten++
		}
		if o.Report != nil {
			o.Report(c.findings[i])
		}
	}
	if o.Progress != nil {
		o.Progress(*s)
	}
}

// indexedDir is a directory that is to be checked.
type indexedDir struct {
	view string
	dir  *metadata.Dir
}

// indexCheck is what was found in a directory.
type indexCheck struct {
	directories, entries, files, bytes uint64

	findings []IndexFinding
	err      error
}

// indexVerifier compares one directory after the other. It has buffers of its own.
type indexVerifier struct {
	opt *IndexOptions
	ctx context.Context //nolint:containedctx // of one call, which made this value
	ls  lowers
	buf []byte
	sum xxhash.Digest

	// Of the directory at hand:
	view string
	rec  *metadata.Dir
	at   *mergedDir
	out  *indexCheck
}

func (v *indexVerifier) check(d indexedDir) *indexCheck {
	v.view, v.rec, v.out = d.view, d.dir, &indexCheck{directories: 1}
	v.out.err = v.directory()
	return v.out
}

// find reports something about name in the directory at hand, or about the directory itself.
func (v *indexVerifier) find(kind IndexKind, in int32, name, format string, args ...any) {
	f := IndexFinding{Kind: kind, View: pathOrRoot(joined(v.view, name)), Explanation: fmt.Sprintf(format, args...)}
	if name == "" {
		f.View = pathOrRoot(v.view)
	}
	if in >= 0 {
		f.Layer = v.ls[in].Path
	}
	v.out.findings = append(v.out.findings, f)
}

// unreadable reports what can't be looked at. Only what says that the program lacks something is an error.
func (v *indexVerifier) unreadable(in int32, name string, err error) error {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) || v.ctx.Err() != nil {
		return err
	}
	v.find(IndexUnreadable, in, name, "cannot be read: %v", err)
	return nil
}

// directory compares the directory at hand and what is in it.
func (v *indexVerifier) directory() error {
	v.at = &mergedDir{ls: v.ls}
	defer v.at.close()
	for i := range v.rec.Lowers {
		if ok, err := v.lower(&v.rec.Lowers[i]); err != nil || !ok {
			return err
		}
	}
	if err := v.recorded(); err != nil {
		return err
	}
	if err := v.listed(); err != nil {
		return err
	}
	if v.opt.Content {
		return v.contents()
	}
	return nil
}

// lower opens and compares one lower directory of the one at hand; false says that it can't be looked into.
func (v *indexVerifier) lower(l *metadata.Lower) (ok bool, err error) {
	if int(l.Layer) >= len(v.ls) {
		v.find(IndexWrong, -1, "", "is recorded in layer %d of %d", l.Layer+1, len(v.ls))
		return false, nil
	}
	fd, err := v.ls[l.Layer].OpenDir(l.Path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		v.find(IndexDirectoryGone, l.Layer, "", "%s is no directory any more", pathOrRoot(l.Path))
		return false, nil
	}
	if err != nil {
		return false, v.unreadable(l.Layer, "", err)
	}
	v.at.fds = append(v.at.fds, fd)
	v.at.dirs = append(v.at.dirs, lowerDir{layer: int(l.Layer), at: placeAt(l.Path), xwhiteouts: l.XWhiteouts})
	var st unix.Statx_t
	if err := sys.Statx(fd, "", &st); err != nil {
		return false, v.unreadable(l.Layer, "", err)
	}
	if now := stampOf(&st); now.Ino != l.Stamp.Ino || now.Mtime != l.Stamp.Mtime || now.Ctime != l.Stamp.Ctime {
		v.find(IndexDirectoryChanged, l.Layer, "", "%s", changeOf(l.Stamp, now))
	}
	return true, nil
}

// checkStackIndex compares the index of the lowers with them.
func (c *checker) checkStackIndex() error {
	x := c.opt.StackIndex
	if x == nil || !c.withLowers() {
		return nil
	}
	var cancelled error
	_, err := VerifyIndex(c.ctx, IndexOptions{
		Index: x, Lowers: c.opt.Lowers,
		Report: func(f IndexFinding) {
			if !f.OfIndex() {
				c.report(Finding{
					Severity: Error, Class: StackIndexUnreadable, Layer: InIndex, Path: f.View,
					Explanation: f.Explanation + " in layer " + f.Layer,
					Remedy:      "run as the user who mounts; if it is an input/output error, restore the layer",
				}, nil)
				return
			}
			what := f.Explanation
			if f.Layer != "" {
				what += " in layer " + f.Layer
			}
			c.report(Finding{
				Severity: Error, Class: StackIndexDiffers, Layer: InIndex, Path: f.View, Explanation: what,
				Repair: "marks the index stale, so that it is built anew",
			}, func() error {
				x.MarkStale("plyfs fsck: " + f.View + " " + what)
				return nil
			})
		},
		Progress: func(IndexSummary) {
			if cancelled == nil {
				cancelled = c.progress("stack index", "")
			}
		},
	})
	if err == nil {
		err = cancelled
	}
	return err
}

// placeAt is the place at a path.
func placeAt(path string) *place {
	var p *place
	for path != "" {
		name, rest, _ := strings.Cut(path, "/")
		p, path = &place{parent: p, name: name}, rest
	}
	return p
}

func stampOf(st *unix.Statx_t) metadata.Stamp {
	return metadata.Stamp{Ino: st.Ino, Size: st.Size, Mtime: timeOf(st.Mtime), Ctime: timeOf(st.Ctime)}
}

func timeOf(t unix.StatxTimestamp) metadata.Time { return metadata.Time{Sec: t.Sec, Nsec: t.Nsec} }

// changeOf says how an object differs from what was recorded.
func changeOf(was, now metadata.Stamp) string {
	at := func(t metadata.Time) string { return time.Unix(t.Sec, int64(t.Nsec)).UTC().Format(time.RFC3339Nano) }
	switch {
	case was.Ino != now.Ino:
		return fmt.Sprintf("is another object: inode %d, recorded was %d", now.Ino, was.Ino)
	case was.Mtime != now.Mtime:
		return fmt.Sprintf("was modified at %s, recorded was %s", at(now.Mtime), at(was.Mtime))
	case was.Ctime != now.Ctime:
		return fmt.Sprintf("was changed at %s, recorded was %s", at(now.Ctime), at(was.Ctime))
	}
	return fmt.Sprintf("has %d bytes, recorded were %d", now.Size, was.Size)
}
