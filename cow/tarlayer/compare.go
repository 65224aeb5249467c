package tarlayer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// Compare returns what has to change in older to get newer, two plain trees, in the order of ComparePaths. A nil older
// is an empty tree.
//
// A file differs if type, mode, owner, device number, size, time, symlink target or extended attributes do, a directory
// if one of them but size and time does or something beneath it differs. Times are equal if their seconds are and one
// of them has no fraction: layers carry whole seconds. Content is read where only one has a fraction, where an inode of the
// same number was changed since, and for CompareOptions.Verify. A directory that is gone is one change; one that another
// type replaces is one Modify, and what was beneath it is not listed, since unpacking a file where a directory is replaces
// all of it. Mount points in newer are not looked at: what is mounted there, or was covered by it, is no change.
//
// newer may change meanwhile: what goes between its listing and the look at it is gone, and what becomes something else
// is looked at again.
//
// It blocks for as long as both walks take; memory grows with the changes and with the largest directories on one path,
// not with the trees. Errors name the path and wrap the errno, or the cause of ctx's end.
func Compare(ctx context.Context, older, newer *layer.Layer, o CompareOptions) ([]Change, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &comparison{
		ctx: ctx, cancel: cancel, o: o, older: older, newer: newer, helpers: make(chan struct{}, compareHelpers),
	}
	oldFD := -1
	if older != nil {
		oldFD = older.FD()
	}
	names, err := sortedNames(newer.FD())
	if err == nil {
		err = c.dirs(pair{older: oldFD, now: newer.FD(), names: names})
	}
	if err != nil {
		cancel(err)
	}
	c.running.Wait()
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	SortChanges(c.changes)
	return withParents(c.changes), nil
}

// compareHelpers is how many goroutines compare directories beside the caller's.
const compareHelpers = 1

// comparison is the state of one Compare.
type comparison struct {
	// ctx is as long as one Compare; the first error cancels it, so that the other goroutine ends too.
	ctx          context.Context
	cancel       context.CancelCauseFunc
	o            CompareOptions
	older, newer *layer.Layer
	helpers      chan struct{}
	running      sync.WaitGroup

	mu      sync.Mutex
	changes []Change // guarded by mu
}

func (c *comparison) add(path string, k Kind, typ uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes = append(c.changes, Change{Path: path, Kind: k, Type: typ})
}

// pair is a directory of newer, and the one of older at the same path.
type pair struct {
	path       string
	older, now int      // descriptors; older is -1 if there is no such directory
	names      []string // those in now, sorted
}

func (p pair) close() {
	if p.older >= 0 {
		unix.Close(p.older)
	}
	unix.Close(p.now)
}

// dirs compares what is in the directories of p and beneath them. The caller closes p.
func (c *comparison) dirs(p pair) error {
	if err := context.Cause(c.ctx); err != nil {
		return err
	}
	old, err := sortedNames(p.older)
	if err != nil {
		return pathError("compare", p.path, err)
	}
	now := p.names
	for len(old) > 0 || len(now) > 0 {
		if len(now) == 0 || len(old) > 0 && old[0] < now[0] {
			c.add(join(p.path, old[0]), Delete, 0)
			old = old[1:]
			continue
		}
		name := now[0]
		now = now[1:]
		inOlder := len(old) > 0 && old[0] == name
		if inOlder {
			old = old[1:]
		}
		if err := c.entry(p, name, inOlder); err != nil {
			return pathError("compare", join(p.path, name), err)
		}
	}
	return nil
}

func sortedNames(fd int) ([]string, error) {
	if fd < 0 {
		return nil, nil
	}
	var names []string
	err := layer.List(fd, func(e layer.RawDirent) error {
		names = append(names, e.Name)
		return nil
	})
	slices.Sort(names)
	return names, err
}

// entry compares one name that newer had when it was listed. inOlder says whether older has it, too.
func (c *comparison) entry(p pair, name string, inOlder bool) error {
	path := join(p.path, name)
	for try := 1; ; try++ {
		var now, again unix.Statx_t
		err := c.newer.Stat(p.now, name, &now)
		if sys.Gone(err) {
			if inOlder {
				c.add(path, Delete, 0)
			}
			return nil
		}
		if err != nil || isMountPoint(&now) {
			return err
		}
		k, sub, err := c.look(p, name, inOlder, &now)
		if err == nil {
			return c.found(sub, k, uint32(now.Mode)&unix.S_IFMT)
		}
		// What went, or is another object by now, is no failure; the next look tells which.
		if try == lookTries || !sys.Gone(err) && c.newer.Stat(p.now, name, &again) == nil && sameObject(&now, &again) {
			return err
		}
	}
}

// found notes how an entry differs, and compares what is beneath a directory.
func (c *comparison) found(sub pair, k Kind, typ uint32) error {
	if k != 0 {
		c.add(sub.path, k, typ)
	}
	if sub.now < 0 {
		return nil
	}
	return c.descend(sub)
}

// sameObject says whether two looks at a name found the same thing.
func sameObject(x, y *unix.Statx_t) bool {
	return x.Ino == y.Ino && x.Dev_major == y.Dev_major && x.Dev_minor == y.Dev_minor && (x.Mode^y.Mode)&unix.S_IFMT == 0
}

// look says how what newer has at name differs; k is 0 if it does not. A directory it also opens and lists, as sub, so that nothing
// that follows fails because the directory goes. In sub, older is -1 unless older has a directory there as well.
func (c *comparison) look(p pair, name string, inOlder bool, now *unix.Statx_t) (k Kind, sub pair, err error) {
	sub = pair{path: join(p.path, name), older: -1, now: -1}
	k = Add
	bothDirs := false
	if inOlder {
		var old unix.Statx_t
		if err := c.older.Stat(p.older, name, &old); err != nil {
			return 0, sub, err
		}
		k = Modify
		if old.Mode&unix.S_IFMT == now.Mode&unix.S_IFMT {
			bothDirs = now.Mode&unix.S_IFMT == unix.S_IFDIR
			same, err := c.same(p, name, &old, now)
			if err != nil {
				return 0, sub, err
			}
			if same {
				k = 0
			}
		}
	}
	if now.Mode&unix.S_IFMT != unix.S_IFDIR {
		return k, sub, nil
	}
	if sub.now, err = openForList(p.now, name); err != nil {
		return 0, sub, err
	}
	if sub.names, err = sortedNames(sub.now); err == nil && bothDirs {
		sub.older, err = openForList(p.older, name)
	}
	if err != nil {
		unix.Close(sub.now)
	}
	return k, sub, err
}

// descend compares what is in a directory, in a helper's goroutine if one is free, and closes sub. The errors of helpers are the cause
// of ctx's end.
func (c *comparison) descend(sub pair) error {
	select {
	case c.helpers <- struct{}{}:
		c.running.Go(func() {
			defer func() { <-c.helpers }()
			defer sub.close()
			if err := c.dirs(sub); err != nil {
				c.cancel(err)
			}
		})
		return nil
	default:
	}
	defer sub.close()
	return c.dirs(sub)
}

// same says whether an entry of the same type in both trees is equal.
func (c *comparison) same(p pair, name string, old, now *unix.Statx_t) (bool, error) {
	if old.Mode != now.Mode || old.Uid != now.Uid || old.Gid != now.Gid {
		return false, nil
	}
	switch now.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if old.Size != now.Size || !sameTime(old.Mtime, now.Mtime) {
			return false, nil
		}
	case unix.S_IFLNK:
		if !sameTime(old.Mtime, now.Mtime) {
			return false, nil
		}
		x, err := sys.Readlinkat(p.older, name)
		if err != nil {
			return false, err
		}
		if y, err := sys.Readlinkat(p.now, name); err != nil || x != y {
			return false, err
		}
	case unix.S_IFDIR:
	default:
		if sys.Rdev(old) != sys.Rdev(now) || !sameTime(old.Mtime, now.Mtime) {
			return false, nil
		}
	}
	if same, err := c.sameXattrs(p, name); err != nil || !same {
		return false, err
	}
	if now.Mode&unix.S_IFMT == unix.S_IFREG && (c.o.Verify || doubtful(old, now)) {
		return sameContent(p, name)
	}
	return true, nil
}

// doubtful says whether the content of files of equal size and time may differ all the same. First, times are equal here if one has no
// fraction, as those from a layer's stream: a write within the same second goes unnoticed. Second, in a snapshot of a file system,
// where inode numbers are equal, another ctime may come from a write after which mtime was set back.
func doubtful(old, now *unix.Statx_t) bool {
	return old.Mtime.Nsec != now.Mtime.Nsec || old.Ino == now.Ino && old.Ctime != now.Ctime
}

func sameTime(x, y unix.StatxTimestamp) bool {
	return x.Sec == y.Sec && (x.Nsec == y.Nsec || x.Nsec == 0 || y.Nsec == 0)
}

func (c *comparison) sameXattrs(p pair, name string) (bool, error) {
	x, err := readXattrs(p.older, name, DirOptions{}, c.older.Override() != "", 0)
	if err != nil {
		return false, err
	}
	y, err := readXattrs(p.now, name, DirOptions{}, c.newer.Override() != "", 0)
	if err != nil {
		return false, err
	}
	foreign := func(name, _ string) bool { return !layerXattr(name) }
	maps.DeleteFunc(x, foreign)
	maps.DeleteFunc(y, foreign)
	return maps.Equal(x, y), nil
}

func sameContent(p pair, name string) (bool, error) {
	x, err := openFile(p.older, name)
	if err != nil {
		return false, err
	}
	xf := os.NewFile(uintptr(x), name)
	defer xf.Close()
	y, err := openFile(p.now, name)
	if err != nil {
		return false, err
	}
	yf := os.NewFile(uintptr(y), name)
	defer yf.Close()
	xb, yb := make([]byte, readBuffer), make([]byte, readBuffer)
	for {
		n, xerr := io.ReadFull(xf, xb)
		m, yerr := io.ReadFull(yf, yb)
		if !bytes.Equal(xb[:n], yb[:m]) {
			return false, nil
		}
		if atEnd(xerr) && atEnd(yerr) {
			return true, nil
		}
		if err := errors.Join(xerr, yerr); err != nil {
			return false, fmt.Errorf("read: %w", err)
		}
	}
}

func atEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// withParents adds the parents of what changed, which changed by that, to changes in their order.
func withParents(changes []Change) []Change {
	all := make([]Change, 0, len(changes))
	last := ""
	for _, ch := range changes {
		for _, p := range newParents(last, ch.Path) {
			all = append(all, Change{Path: p, Kind: Modify, Type: unix.S_IFDIR})
		}
		all = append(all, ch)
		last = ch.Path
	}
	return all
}

// newParents are the parents of path that are neither last nor parents of it: those that a walk has not met yet.
func newParents(last, path string) []string {
	var missing []string
	for p := parentOf(path); p != "" && p != last && !isBeneath(last, p); p = parentOf(p) {
		missing = append(missing, p)
	}
	slices.Reverse(missing)
	return missing
}

// isBeneath says whether path is beneath dir.
func isBeneath(path, dir string) bool {
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}
