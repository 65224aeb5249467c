package union

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/internal/sys"
	"plyfs/metadata"
)

// StackSink takes what Describe finds.
type StackSink interface {
	// Put takes the record of a directory; it is not kept.
	Put(view string, r *metadata.Record) error
	// PutDigests takes the digests of the regular files of a directory.
	PutDigests(view string, ds []metadata.Digest) error
}

// DescribeOptions say what Describe gives to its sink besides records.
type DescribeOptions struct {
	// Digests adds those of the files' contents, which are all read for it.
	Digests bool
}

// Describe walks the merged lowers of u and gives a record of each directory to sink, children first. u must have neither an
// upper nor an index, and must not be used otherwise. A directory that cannot be read is left out, and one that changes meanwhile
// gives a record that does not fit it, which is found out when it is used. As many directories are held in memory as the tree is
// deep. It blocks until it is through or ctx ends.
func (u *Union) Describe(ctx context.Context, sink StackSink, o DescribeOptions) error {
	if u.upper != nil || u.opt.StackIndex != nil {
		return fmt.Errorf("only a union of lowers without an index can be described: %w", unix.EINVAL)
	}
	d := &describer{u: u, ctx: ctx, sink: sink, digests: o.Digests}
	u.describer = d
	if o.Digests {
		d.buf = make([]byte, 1<<20)
	}
	return d.walk()
}

// parallelMin is the number of entries below which a further goroutine is not worth its start.
const parallelMin = 32

// describer is one run of Describe.
type describer struct {
	u       *Union
	ctx     context.Context //nolint:containedctx // it lives as long as the call that it was given to
	sink    StackSink
	digests bool
	buf     []byte
	sum     xxhash.Digest
	levels  []*level
	spare   []*level
	// stamps are those of the lower directories that were resolved last, taken before anything in them was read: a change
	// while they are read must show.
	stamps []metadata.Stamp
	// redirected says that one of them carries a redirect.
	redirected bool
}

// level is a directory that is being described, between the root and the current one.
type level struct {
	n    *Node
	view string
	rec  metadata.Record
	sums []metadata.Digest
	next int // entry to descend into
	subs int32
	// unsure says that a redirect led to a part of it: no stamp would tell of a change on the way, so it gets no record, nor
	// does what is below it.
	unsure bool
}

func (d *describer) walk() error {
	root, err := d.enter(d.u.root, "")
	if err != nil {
		return err
	}
	d.levels = append(d.levels, root)
	defer func() {
		for _, l := range d.levels {
			d.leave(l)
		}
	}()
	for len(d.levels) > 0 {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		l := d.levels[len(d.levels)-1]
		child, err := d.descend(l)
		if err != nil {
			return err
		}
		if child != nil {
			d.levels = append(d.levels, child)
			continue
		}
		if err := d.finish(l); err != nil {
			return err
		}
	}
	return nil
}

// descend enters the next subdirectory of l; nil when there is none left.
func (d *describer) descend(l *level) (*level, error) {
	for l.next < len(l.rec.Entries) {
		e := &l.rec.Entries[l.next]
		l.next++
		if e.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		view := joinPath(l.view, e.Name)
		n, err := d.u.find(l.n, e.Name)
		if err == nil {
			var child *level
			if child, err = d.enter(n, view); err == nil {
				return child, nil
			}
		}
		if d.ctx.Err() != nil {
			return nil, d.ctx.Err()
		}
		d.u.log.Warn("directory left out of the stack index", "path", "/"+view, "error", err)
	}
	return nil, nil //nolint:nilnil // the end
}

// finish hands l over, and its number of subdirectories to its parent.
func (d *describer) finish(l *level) error {
	if !l.unsure {
		if err := d.sink.Put(l.view, &l.rec); err != nil {
			return fmt.Errorf("/%s: %w", l.view, err)
		}
	}
	if d.digests {
		if err := d.sink.PutDigests(l.view, l.sums); err != nil {
			return fmt.Errorf("/%s: %w", l.view, err)
		}
	}
	d.levels = d.levels[:len(d.levels)-1]
	if k := len(d.levels); k > 0 {
		up := d.levels[k-1]
		up.rec.Entries[up.next-1].Subdirs = l.subs + 1
	}
	d.leave(l)
	return nil
}

func (d *describer) leave(l *level) {
	if l.n != d.u.root {
		d.u.Forget(l.n, 1)
	}
	clear(l.rec.Entries)
	*l = level{rec: metadata.Record{Lowers: l.rec.Lowers[:0], Entries: l.rec.Entries[:0]}, sums: l.sums[:0]}
	d.spare = append(d.spare, l)
}

// enter describes what is in the directory n, all but what is below its subdirectories. It takes over the reference to n.
func (d *describer) enter(n *Node, view string) (*level, error) {
	var l *level
	if k := len(d.spare); k > 0 {
		l, d.spare = d.spare[k-1], d.spare[:k-1]
	} else {
		l = &level{}
	}
	l.n, l.view = n, view
	if err := d.read(l); err != nil {
		d.leave(l)
		return nil, fmt.Errorf("/%s: %w", view, err)
	}
	return l, nil
}

func (d *describer) read(l *level) error {
	u, n := d.u, l.n
	u.renameMu.RLock()
	defer u.renameMu.RUnlock()
	n.dir.mu.Lock()
	defer n.dir.mu.Unlock()
	d.stamps, d.redirected = d.stamps[:0], false
	if err := u.resolveLocked(n); err != nil {
		return err
	}
	if err := d.awaitTick(); err != nil {
		return err
	}
	k := len(d.levels)
	l.unsure = d.redirected || k > 0 && d.levels[k-1].unsure
	d.noteLowers(l)
	if err := d.list(l); err != nil {
		return err
	}
	for i, es := 0, l.rec.Entries; i < len(es); i++ {
		if es[i].Mode&unix.S_IFMT == unix.S_IFDIR {
			l.subs++
		}
	}
	return d.describeAll(l)
}

// How long two changes of a directory may have the same times: file systems with whole seconds, such as ext4 with small inodes, and
// others, of kernels that take the time once a tick.
const (
	secondsTick = 2 * time.Second
	shortTick   = 20 * time.Millisecond
)

// awaitTick waits until a further change of the directories in d.stamps would show in their times.
func (d *describer) awaitTick() error {
	now, wait := time.Now(), time.Duration(0)
	for _, s := range d.stamps {
		tick := shortTick
		if s.Mtime.Nsec == 0 && s.Ctime.Nsec == 0 {
			tick = secondsTick
		}
		for _, t := range [...]metadata.Time{s.Mtime, s.Ctime} {
			if age := now.Sub(time.Unix(t.Sec, int64(t.Nsec))); age < tick {
				wait = max(wait, tick-max(age, 0))
			}
		}
	}
	if wait == 0 {
		return nil
	}
	select {
	case <-d.ctx.Done():
		return d.ctx.Err()
	case <-time.After(wait):
		return nil
	}
}

// describeAll describes the entries of l, by several goroutines where that pays.
func (d *describer) describeAll(l *level) error {
	es := l.rec.Entries
	workers := max(1, min(runtime.GOMAXPROCS(0), len(es)/parallelMin))
	if d.digests { // one buffer
		workers = 1
	}
	var group sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		part := func() {
			for i := w * len(es) / workers; i < (w+1)*len(es)/workers && errs[w] == nil; i++ {
				errs[w] = d.describe(l, &es[i])
			}
		}
		if w == workers-1 {
			part()
		} else {
			group.Go(part)
		}
	}
	group.Wait()
	return errors.Join(errs...)
}

// noteLowers notes which lower directories take part, and their stamps.
func (d *describer) noteLowers(l *level) {
	for i := range l.n.dir.lowers {
		low := &l.n.dir.lowers[i]
		l.rec.Lowers = append(l.rec.Lowers, metadata.Lower{
			Layer: low.layer, Path: low.path, XWhiteouts: low.marks.xwhiteouts, Specials: low.marks.specials, Stamp: d.stamps[i],
		})
	}
}

// list notes the names. Preconditions: renameMu and l.n.dir.mu are held, l.n is resolved.
func (d *describer) list(l *level) error {
	dir := l.n.dir
	if len(dir.lowers) > 1 {
		if err := d.u.keepNamesLocked(dir); err != nil {
			return err
		}
		for name, ln := range dir.names {
			if ln.first < 0 {
				continue
			}
			e := metadata.Entry{Name: name, First: int32(ln.first), Mode: typeMode(ln.typ), Ino: ln.ino}
			for _, k := range ln.dirs {
				e.Below = append(e.Below, int32(k))
			}
			l.rec.Entries = append(l.rec.Entries, e)
		}
		return nil
	}
	low := &dir.lowers[0]
	f, err := d.u.openLower(low)
	if err != nil {
		return err
	}
	defer f.Close()
	return layer.List(f.FD(), func(r layer.RawDirent) error {
		typ, hidden, err := d.u.listedType(d.u.lowers[low.layer], f.FD(), r, low.marks)
		if err != nil || hidden {
			return err
		}
		e := metadata.Entry{Name: r.Name, Mode: typeMode(typ), Ino: r.Ino}
		if typ == unix.DT_DIR {
			e.Below = []int32{0}
		}
		l.rec.Entries = append(l.rec.Entries, e)
		return nil
	})
}

// describe fills in what the object of e is.
func (d *describer) describe(l *level, e *metadata.Entry) error {
	u, low := d.u, &l.n.dir.lowers[e.First]
	lay := u.lowers[low.layer]
	if lay.Override() != "" {
		e.Ask = true
		return nil
	}
	f, err := u.openLower(low)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statx_t
	if err := lay.Stat(f.FD(), e.Name, &st); err != nil {
		return fmt.Errorf("%s: %w", e.Name, err)
	}
	if uint32(st.Mode)&unix.S_IFMT != e.Mode&unix.S_IFMT {
		return fmt.Errorf("%s changed while the layers were read: %w", e.Name, unix.EAGAIN)
	}
	if sys.Dev(&st) != lay.Dev { // something is mounted there
		e.Ask = true
		return nil
	}
	e.Mode, e.UID, e.GID, e.Nlink, e.Blksize = uint32(st.Mode), st.Uid, st.Gid, st.Nlink, st.Blksize
	e.Ino, e.Size, e.Blocks, e.Rdev = st.Ino, st.Size, st.Blocks, sys.Rdev(&st)
	e.Atime, e.Mtime, e.Ctime = stampTime(st.Atime), stampTime(st.Mtime), stampTime(st.Ctime)
	if st.Mask&unix.STATX_BTIME != 0 {
		e.Btime = stampTime(st.Btime)
	}
	e.Special = low.marks.specials && u.isSpecial(f.FD(), e.Name, &st)
	if e.Xattrs, err = recordXattrs(f.FD(), e.Name); err == nil && e.Mode&unix.S_IFMT == unix.S_IFLNK {
		e.Target, err = sys.Readlinkat(f.FD(), e.Name)
	}
	if kept(err) {
		e.Ask = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.Name, err)
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if d.digests {
			return d.digest(l, e)
		}
	}
	return nil
}

// kept says whether an error keeps something of an object from this process, which another one may get: such as the capabilities that
// another user namespace gave a file (EOVERFLOW). Who asks for it is told by the layer.
func kept(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOVERFLOW) || errors.Is(err, unix.EOPNOTSUPP)
}

// recordXattrs reads the attributes of an object as they are on disk. Of those that can't be read it records the names.
func recordXattrs(dirfd int, name string) ([]metadata.Xattr, error) {
	names, err := cow.ListXattrs(dirfd, name)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	slices.Sort(names)
	list := make([]metadata.Xattr, 0, len(names))
	for _, n := range names {
		v, err := cow.GetXattr(dirfd, name, n)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil && !kept(err) {
			return nil, err
		}
		switch {
		case err != nil || len(v) > metadata.MaxXattrValue:
			v = nil
		case v == nil:
			v = []byte{}
		}
		list = append(list, metadata.Xattr{Name: strings.Clone(n), Value: v})
	}
	return list, nil
}

// digest sums the content of a regular file up, as an application would read it. Precondition: l.n.dir.mu is held.
func (d *describer) digest(l *level, e *metadata.Entry) error {
	low := &l.n.dir.lowers[e.First]
	n := &Node{mode: unix.S_IFREG, lower: lowerRef{layer: low.layer, dir: low.path, name: e.Name, view: l.view}}
	fd, err := d.u.openLowerFD(n)
	if err != nil {
		return fmt.Errorf("%s: %w", e.Name, err)
	}
	defer unix.Close(fd)
	d.sum.Reset()
	size := uint64(0)
	for {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		k, err := unix.Read(fd, d.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("%s: %w", e.Name, err)
		}
		if k == 0 {
			break
		}
		size += uint64(k)
		_, _ = d.sum.Write(d.buf[:k])
	}
	l.sums = append(l.sums, metadata.Digest{Name: e.Name, Size: size, Sum: d.sum.Sum64()})
	return nil
}
