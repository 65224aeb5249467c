package tarlayer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// Apply unpacks the uncompressed tar stream of a layer into the directory root and reads r to its end, whatever follows
// the end mark included, so that a hash of r's bytes covers all of them.
//
// It blocks for as long as r and the disk take. Other goroutines read r and fill files; they have ended when Apply
// returns. An r that can block for ever must end when ctx does. Errors name the member. They wrap io.ErrUnexpectedEOF for a stream
// that breaks off, ErrLimit, ErrInvalid, ErrUnmapped, ErrDevice, the error of r, the errno of the file system, or the
// cause of ctx's end. After an error the tree is in an unknown state between the old and the new one, for the caller to
// discard. Nobody else may change the tree meanwhile; whoever does can't make Apply touch anything that was not beneath
// root.
func Apply(ctx context.Context, root *layer.Layer, r io.Reader, o ApplyOptions) (ApplyResult, error) {
	a, err := newApplier(root, o)
	if err != nil {
		return ApplyResult{}, err
	}
	defer a.dirs.close()
	if err := a.run(ctx, r); err != nil {
		return a.res, fmt.Errorf("layer in %s: %w", root.Path, err)
	}
	a.res.Sum = a.left.sum()
	if o.Left != nil {
		a.left.each(o.Left)
	}
	return a.res, nil
}

// applier is the state of one Apply. Paths in its maps are clean, and relative to the root.
type applier struct {
	o      ApplyOptions
	limits Limits
	m      *sys.Mutator
	root   *layer.Layer
	names  *ovl.Names
	// stacked says that the tree is a layer of an overlay, in which names and attributes have meanings.
	stacked bool
	// override is the attribute that keeps owners, "" for none.
	override string
	// uid, gid and umask are those of this process, with which the kernel makes files.
	uid, gid, umask uint32

	in   *items
	dirs dirCache
	// late is what directories get at the end, by path.
	late map[string]*lateDir
	// left is what the stream left in the tree so far, for the sum.
	left leftPaths
	// opaques are the directories that this stream made opaque.
	opaques map[string]bool
	// alone are directories that were made here and that the layers below do not have; nil for none.
	alone map[string]bool
	// followed are the paths of symlinks of the layers below that were followed; nil for none.
	followed map[string]bool
	// rootSeen is set when a member described the root.
	rootSeen bool
	// ob is the member that is being made; describe fills it, so that a member costs no allocation.
	ob object
	// name and when are name and time of the current member.
	name string
	when unix.Timespec
	res  ApplyResult
}

func newApplier(root *layer.Layer, o ApplyOptions) (*applier, error) {
	a := &applier{
		o: o, limits: o.Limits.withDefaults(), m: o.Mutator, root: root, names: o.Names,
		stacked: o.Whiteouts != WhiteoutRemove,
		uid:     uint32(os.Geteuid()), gid: uint32(os.Getegid()),
		late: make(map[string]*lateDir),
		dirs: newDirCache(),
		left: newLeftPaths(o), opaques: make(map[string]bool),
	}
	if a.names == nil {
		a.names = ovl.Trusted()
	}
	if o.Owner == OwnerXattr {
		if a.override = root.Override(); a.override == "" {
			a.override = ovl.OverrideNames()[1]
		}
	}
	var err error
	if a.umask, err = processUmask(); err != nil {
		return nil, err
	}
	return a, nil
}

// processUmask reads the umask, which umask(2) can only tell by changing it for all threads.
func processUmask() (uint32, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			return uint32(mask), err
		}
	}
	return 0o7777, nil // Linux before 4.7 does not tell: no mode is taken for right, and all are set
}

// run moves the stream through three goroutines: a scanner takes it apart, this one makes names, and a finisher fills
// small files.
func (a *applier) run(ctx context.Context, r io.Reader) error {
	in := newScanner(r, a.limits, a.o.Sum)
	defer in.stop()
	f := newFinisher(a, in.free)
	a.in = &items{s: in, ctx: ctx, release: f.take}
	err := a.members(ctx, f)
	if err != nil {
		f.failed.Store(true)
	}
	if a.in.cur != nil {
		f.take(a.in.cur)
	}
	// An error of the finisher is about an earlier member than that of this goroutine.
	if earlier := f.end(); earlier != nil {
		err = earlier
	}
	if err != nil {
		return err
	}
	if err := a.inheritRoot(); err != nil {
		return pathError("finish", "", err)
	}
	if err := a.finishDirs(); err != nil {
		return err
	}
	return a.markRoot()
}

// members unpacks the stream, but for what can only be done at its end. It returns early, without an error, when f has
// failed.
func (a *applier) members(ctx context.Context, f *finisher) error {
	last := ""
	for !f.failed.Load() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		it, err := a.nextMember()
		if err != nil {
			return fmt.Errorf("after %s: %w", quoteShort(last), err)
		}
		if it.kind == itemEnd {
			if it.cut && !a.o.AcceptUnterminated {
				return fmt.Errorf("no end mark after %s: %w", quoteShort(last), io.ErrUnexpectedEOF)
			}
			break
		}
		hdr := &it.hdr
		a.when = timespec(hdr.ModTime)
		last, a.name = hdr.Name, hdr.Name
		if hdr.Typeflag == tar.TypeXGlobalHeader {
			continue // comments of git archive and others; no unpacker of layers gives them a meaning
		}
		if err := a.count(hdr); err != nil {
			return fmt.Errorf("%s: %w", quoteShort(last), err)
		}
		if err := a.member(hdr); err != nil {
			return fmt.Errorf("%s: %w", quoteShort(last), err)
		}
		if a.o.Progress != nil {
			a.o.Progress(Progress{Path: last, Entries: a.res.Entries, Bytes: a.res.Bytes})
		}
	}
	if err := a.drain(); err != nil {
		return fmt.Errorf("padding: %w", err)
	}
	return nil
}

// nextMember returns the next member, or the item that is the end. It skips content of the current member that was not read.
func (a *applier) nextMember() (*item, error) {
	if err := a.in.skip(); err != nil {
		return nil, err
	}
	it, err := a.in.next()
	if it == nil && err == nil {
		err = io.ErrUnexpectedEOF
	}
	return it, err
}

// drain reads what follows the end mark.
func (a *applier) drain() error {
	for total := a.res.Bytes; ; {
		it, err := a.in.next()
		if err != nil || it == nil {
			return err
		}
		if total += it.size; total > a.limits.Bytes {
			return limitError("Bytes", a.limits.Bytes)
		}
	}
}

func (a *applier) count(hdr *tar.Header) error {
	a.res.Entries++
	if a.res.Entries > a.limits.Entries {
		return limitError("Entries", a.limits.Entries)
	}
	if hdr.Size < 0 || hdr.Size > a.limits.Bytes-a.res.Bytes {
		return limitError("Bytes", a.limits.Bytes)
	}
	if int64(len(hdr.Linkname)) > a.limits.Name {
		return fmt.Errorf("link target: %w", limitError("Name", a.limits.Name))
	}
	return nil
}

func (a *applier) note(path, reason string) {
	a.res.Skipped++
	if a.o.Note != nil {
		a.o.Note(path, reason)
	}
}

func (a *applier) member(hdr *tar.Header) error {
	path, err := a.cleanName(hdr.Name)
	if err != nil {
		return err
	}
	parent, name := parentOf(path), baseOf(path)
	if strings.Contains(path, aufsMark) {
		switch skip, err := aufsParent(parent); {
		case err != nil:
			return err
		case skip:
			a.note(path, "bookkeeping of AUFS")
			return nil
		case ovl.IsAUFSName(name):
			return a.whiteout(parent, name)
		}
	}
	if hdr.Typeflag == tar.TypeLink {
		return a.hardLink(hdr, path)
	}
	ob, err := a.describe(hdr)
	if err != nil {
		return err
	}
	if path == "" {
		if ob.typ != unix.S_IFDIR {
			return fmt.Errorf("the root must be a directory: %w", ErrInvalid)
		}
		return a.mergeRoot(ob)
	}
	if ob.typ == unix.S_IFREG {
		a.res.Bytes += hdr.Size
	}
	if ob.isDevice() {
		switch a.o.Devices {
		case DeviceRefuse:
			return ErrDevice
		case DeviceSkip:
			if a.override == "" {
				a.note(path, "device node")
				return nil
			}
		}
	}
	d, err := a.dir(parent)
	if err != nil {
		return err
	}
	return a.put(d, name, ob)
}

// finishDirs gives directories their times, and modes that would have been in the way, when nothing changes in them any
// more: children first, since a parent's mode may forbid the way to them.
func (a *applier) finishDirs() error {
	paths := make([]string, 0, len(a.late))
	for p := range a.late {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, func(x, y string) int { return ComparePaths(y, x) })
	for _, p := range paths {
		if err := a.finishDir(p, a.late[p]); err != nil {
			return pathError("finish", p, err)
		}
	}
	return nil
}

func (a *applier) finishDir(path string, l *lateDir) error {
	dirfd, name := a.root.FD(), ""
	if path != "" {
		d, err := a.dir(parentOf(path))
		if err != nil {
			return err
		}
		dirfd, name = d.fd, baseOf(path)
	}
	if l.acl != nil {
		if err := a.setXattr(entry{at: dirfd, name: name, path: path}, l.acl); err != nil {
			return err
		}
	}
	if l.setMode {
		if err := a.m.Chmod(dirfd, name, l.mode); err != nil {
			return err
		}
	}
	return a.m.Utimes(dirfd, name, l.atime, l.mtime)
}

// inheritRoot gives a stacked root that the stream does not describe the attributes of the root below: its own would hide those.
func (a *applier) inheritRoot() error {
	if a.rootSeen || !a.stacked || a.o.Lower == nil {
		return nil
	}
	ob, err := a.describeLower("")
	if err != nil {
		return err
	}
	return a.mergeDir(entry{at: a.root.FD()}, ob)
}

// markRoot sees to it that the root has the override attribute, by which a mount finds out that owners are kept in attributes.
func (a *applier) markRoot() error {
	if a.override == "" {
		return nil
	}
	_, err := cow.GetXattr(a.root.FD(), "", a.override)
	if !errors.Is(err, unix.ENODATA) {
		return err
	}
	v := ovl.OverrideStat{Mode: unix.S_IFDIR | overrideMode, HasType: true}.Encode()
	return a.m.Setxattr(a.root.FD(), "", a.override, v, 0)
}
