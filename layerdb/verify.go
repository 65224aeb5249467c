package layerdb

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	splittar "github.com/vbatts/tar-split/archive/tar"
	"github.com/vbatts/tar-split/tar/asm"
	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Verify reads the layer's tree and compares it with what was unpacked: content and attributes of everything that the
// layer's stream has. The error wraps drivers.ErrDamaged if they differ.
func (s *Store) Verify(ctx context.Context, id ChainID) error {
	return s.withLayer(id, func(r, below Record) error { return s.verify(ctx, s.drv, *r.Layer, below.cacheID()) })
}

// verify compares the tree that drv has of a pinned layer, over another one ("" for none).
func (s *Store) verify(ctx context.Context, drv drivers.Driver, l Layer, below string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("verify layer %s: %w", l.ID, err)
		}
	}()
	members, err := s.members(l)
	if err != nil {
		return err
	}
	return withTree(ctx, drv, l.CacheID, func(t *tree) (err error) {
		mounted := tarlayer.NewDirSource(t.root, tarlayer.DirOptions{})
		defer func() { err = errors.Join(err, mounted.Close()) }()
		src := shown{Source: mounted}
		if d, ok := drv.(drivers.Unmasker); ok {
			unmasked, done, err := d.Unmask(ctx, l.CacheID)
			if err != nil {
				return err
			}
			defer func() { _ = done() }() // nothing was written
			src.unmasked = unmasked
		}
		// The tree shows the layers below, too: what a whiteout hides is known by its absence.
		resolved, err := t.resolve(members)
		if err != nil {
			return err
		}
		sum, err := tarlayer.Sum(ctx, src, resolved)
		if err != nil {
			return err
		}
		if sum != l.Sum && !s.sameRetraced(ctx, drv, src, l, below) {
			return fmt.Errorf("the tree's sum is %016x, not %016x: %w", sum, l.Sum, drivers.ErrDamaged)
		}
		return nil
	})
}

// members lists the paths of the layer's stream, each once, by what the store keeps of it. Whiteouts beneath a directory that
// hides all of the layers below say nothing, and are left out.
func (s *Store) members(l Layer) (list []tarlayer.Change, err error) {
	seen := make(map[tarlayer.Change]bool)
	opaque := make(map[string]bool)
	err = s.withStream(l, func(r io.Reader) error {
		return eachName(l.Stream, r, func(name string) {
			c, ok := memberChange(name)
			switch {
			case path.Base(name) == ovl.AUFSOpaque:
				opaque[path.Dir(path.Clean("/"+name))] = true
			case ok && !seen[c]:
				seen[c] = true
				list = append(list, c)
			}
		})
	})
	if len(opaque) == 0 {
		return list, err
	}
	return slices.DeleteFunc(list, func(c tarlayer.Change) bool {
		return c.Kind == tarlayer.Delete && beneathAny(opaque, "/"+c.Path)
	}), err
}

// beneathAny says whether one of the directories holds the clean absolute path, at any depth.
func beneathAny(dirs map[string]bool, p string) bool {
	for p != "/" {
		p = path.Dir(p)
		if dirs[p] {
			return true
		}
	}
	return false
}

// eachName calls fn for each member of a stream that is kept in some form.
func eachName(form Stream, r io.Reader, fn func(name string)) error {
	return eachHeader(form, r, func(h tar.Header) error {
		fn(h.Name)
		return nil
	})
}

// eachHeader calls fn with name, type and link target of each member, up to its first error.
func eachHeader(form Stream, r io.Reader, fn func(h tar.Header) error) error {
	if form == StreamSplit {
		return asm.IterateHeaders(newEntries(r), func(h *splittar.Header) error {
			return fn(tar.Header{Name: h.Name, Typeflag: h.Typeflag, Linkname: h.Linkname})
		})
	}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := fn(tar.Header{Name: h.Name, Typeflag: h.Typeflag, Linkname: h.Linkname}); err != nil {
			return err
		}
	}
}

// memberChange is what a member of that name does to its path, which is "" for the root; ok is false for one that has no path
// of its own.
func memberChange(name string) (c tarlayer.Change, ok bool) {
	p := strings.TrimPrefix(path.Clean("/"+name), "/")
	dir, base := path.Split(p)
	if slices.ContainsFunc(strings.Split(p, "/"), ovl.IsAUFSBookkeeping) {
		return c, false
	}
	if victim, is := ovl.AUFSVictim(base); is {
		return tarlayer.Change{Path: dir + victim, Kind: tarlayer.Delete}, true
	}
	return tarlayer.Change{Path: p, Kind: tarlayer.Add}, true
}

// resolve returns the changes with the paths at which they are: as when the layer was unpacked, symlinks on the way to a member
// are followed as long as they stay inside.
func (t *tree) resolve(list []tarlayer.Change) ([]tarlayer.Change, error) {
	base, err := sys.Readlinkat(unix.AT_FDCWD, sys.ProcPath(t.root.FD()))
	if err != nil {
		return nil, err
	}
	dirs := make(map[string]string)
	seen := make(map[tarlayer.Change]bool, len(list))
	out := make([]tarlayer.Change, 0, len(list))
	for _, c := range list {
		dir, name := path.Split(c.Path)
		at, known := dirs[dir]
		if !known && dir != "" {
			at = t.resolveDir(base, dir)
			dirs[dir] = at
		}
		c.Path = path.Join(at, name)
		if !seen[c] {
			seen[c] = true
			out = append(out, c)
		}
	}
	return out, nil
}

// resolveDir returns where a directory is beneath the root, which is at base; a directory that is not there stays where it is.
func (t *tree) resolveDir(base, dir string) string {
	fd, err := unix.Openat2(t.root.FD(), dir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return dir
	}
	defer unix.Close(fd)
	at, err := sys.Readlinkat(unix.AT_FDCWD, sys.ProcPath(fd))
	rel, inside := strings.CutPrefix(at, base)
	if err != nil || !inside {
		return dir
	}
	return strings.TrimPrefix(rel, "/")
}

// shown is what a layer and those below it show.
type shown struct {
	tarlayer.Source
	// unmasked has what the driver can't show, nil for a driver that shows all.
	unmasked tarlayer.Source
}

// Lstat implements tarlayer.Source. What is beneath something that is no directory does not exist.
func (s shown) Lstat(path string) (tarlayer.Attr, error) {
	a, err := s.Source.Lstat(path)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		err = fmt.Errorf("%w: %w", unix.ENOENT, err)
	}
	if err != nil || s.unmasked == nil || a.Mode&unix.S_IFMT != unix.S_IFREG || a.Size != 0 {
		return a, err
	}
	was, err := s.unmasked.Lstat(path)
	if err == nil && was.Mode&unix.S_IFMT == unix.S_IFCHR {
		return was, nil
	}
	return a, err
}
