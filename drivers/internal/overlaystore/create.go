package overlaystore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/ovl"
	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Create implements drivers.Driver.
func (s *Store) Create(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	if o != nil && !o.Quota.IsZero() {
		return fmt.Errorf("create layer %s: a quota is for writable layers: %w", id, drivers.ErrInvalid)
	}
	return s.create(ctx, id, parent, record{Parent: parent}, o)
}

// CreateReadWrite implements drivers.Driver.
func (s *Store) CreateReadWrite(ctx context.Context, id, parent string, o *drivers.CreateOptions) error {
	return s.create(ctx, id, parent, record{Parent: parent, Writable: true}, o)
}

func (s *Store) create(ctx context.Context, id, parent string, r record, o *drivers.CreateOptions) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create layer %s: %w", id, err)
		}
	}()
	if err := errors.Join(begin(ctx, id), s.mayChange()); err != nil {
		return err
	}
	if o != nil {
		if len(o.Options) > 0 {
			return fmt.Errorf("options %s of the layer: driver %s has none: %w",
				strings.Join(slices.Sorted(maps.Keys(o.Options)), ", "), s.name, drivers.ErrInvalid)
		}
		r.Label, r.Quota = o.MountLabel, o.Quota
	}
	if r.Quota.Bytes < 0 || r.Quota.Inodes < 0 {
		return fmt.Errorf("quota %+v is negative: %w", r.Quota, drivers.ErrInvalid)
	}
	if !r.Quota.IsZero() {
		if err := s.quotas.Check(r.Quota); err != nil {
			return err
		}
	}
	if parent != "" {
		if err := drivers.ValidID(parent); err != nil {
			return err
		}
	}
	defer s.locks.Lock(id)()
	if err := s.reserve(id, r); err != nil {
		return err
	}
	l := &layer{record: r, id: id, link: newLink()}
	orphans, err := s.adopt(id)
	if err == nil && len(orphans) > 0 {
		l.restoring = true
		l.link, err = s.linkWantedBy(orphans)
	}
	if err == nil {
		err = s.build(ctx, l)
	}
	s.settle(id, err == nil)
	return err
}

// adopt returns the layers whose parent is the one that is being made. If there are any, the layer was lost, and is restored now.
func (s *Store) adopt(id string) (orphans []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, e := range s.table {
		if e.parent == id {
			orphans = append(orphans, name)
		}
	}
	e := s.table[id]
	if e.writable && len(orphans) > 0 {
		return nil, fmt.Errorf("layer %s has it as its parent: %w", orphans[0], drivers.ErrInUse)
	}
	e.children, e.restoring = len(orphans), len(orphans) > 0
	return orphans, nil
}

// linkWantedBy returns the link by which the layers above a lost one refer to it.
func (s *Store) linkWantedBy(children []string) (string, error) {
	var errs []error
	for _, id := range children {
		links, err := s.readLower(id)
		if err == nil && len(links) > 0 {
			return links[0], nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("no layer above it tells its link: %w: %w", drivers.ErrDamaged, errors.Join(errs...))
}

// reserve enters a layer that is about to be made into the table, as pending. That keeps its parent from being removed.
func (s *Store) reserve(id string, r record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table[id] != nil {
		return drivers.ErrExists
	}
	if r.Parent != "" {
		p := s.table[r.Parent]
		if p == nil || p.pending {
			return fmt.Errorf("parent: %w", notFound(r.Parent))
		}
		if p.filling && r.Writable {
			return fmt.Errorf("parent: layer %s is being unpacked: %w", r.Parent, drivers.ErrInUse)
		}
		p.children++
	}
	s.table[id] = &entry{parent: r.Parent, writable: r.Writable, pending: true}
	return nil
}

// settle ends the pending state in which reserve or condemn left a layer. there says whether the layer exists now.
func (s *Store) settle(id string, there bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.table[id]
	if there {
		e.pending = false
		return
	}
	delete(s.table, id)
	if p := s.table[e.parent]; p != nil {
		p.children--
	}
}

// build makes the directory of a layer, by renaming a complete one to its place.
func (s *Store) build(ctx context.Context, l *layer) error {
	root := s.empty()
	if l.Parent != "" {
		p, err := s.readLayer(l.Parent)
		if err != nil {
			return fmt.Errorf("parent: %w", err)
		}
		l.below = append([]string{p.link}, p.below...)
		root = s.dir(p.id, diffDir)
		if err := l.checkDepth(); err != nil {
			return err
		}
	}
	// The link is made first: a crash before the layer is there leaves a link that leads nowhere, which Cleanup removes.
	if err := s.makeLink(l); err != nil {
		return err
	}
	err := s.dirs.Create(ctx, dirName(l.id), func(dir string) error {
		return s.fill(dir, root, l)
	})
	if err != nil {
		return errors.Join(err, os.Remove(s.linkPath(l.link)))
	}
	return nil
}

// makeLink makes the link of a layer; that of one that was lost may still be there.
func (s *Store) makeLink(l *layer) error {
	err := os.Symlink(linkTarget(l.id), s.linkPath(l.link))
	if l.restoring && errors.Is(err, fs.ErrExist) {
		if owner, err := s.ownerOf(l.link); err != nil || owner != l.id {
			return damaged(s.linkPath(l.link), errors.Join(fmt.Errorf("it is not the link of layer %s", l.id), err))
		}
		return nil
	}
	return err
}

// checkDepth refuses a layer that could not be mounted, or whose writable layers could not be.
func (l *layer) checkDepth() error {
	n := len(l.below)
	if !l.Writable {
		n++
	}
	if n > maxLowers {
		return fmt.Errorf("it would be layer %d of a stack; at most %d can be mounted: make one layer of several: %w",
			n, maxLowers, drivers.ErrNotSupported)
	}
	return nil
}

// fill makes the content of a layer's directory in dir. root is the directory whose attributes the layer's root takes
// over, so that it looks as its parent's.
func (s *Store) fill(dir, root string, l *layer) (err error) {
	diff := filepath.Join(dir, diffDir)
	subdirs := []string{diff}
	if l.Writable {
		subdirs = append(subdirs, filepath.Join(dir, workDir))
	}
	for _, d := range subdirs {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	if !l.Quota.IsZero() {
		if err := s.quotas.Set(l.Quota, subdirs...); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, s.quotas.Release(diff))
			}
		}()
	}
	if err := s.copyRoot(diff, root); err != nil {
		return err
	}
	b, err := json.Marshal(l.record)
	if err != nil {
		return err
	}
	files := map[string]string{linkFile: l.link, recordFile: string(b)}
	if len(l.below) > 0 {
		files[lowerFile] = lowerOf(l.below)
	}
	if l.restoring {
		files[restoringFile] = ""
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// copyRoot gives the directory dst the attributes of src.
func (s *Store) copyRoot(dst, src string) error {
	from, err := unix.Open(src, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: src, Err: err}
	}
	defer unix.Close(from)
	to, err := unix.Open(dst, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dst, Err: err}
	}
	defer unix.Close(to)
	if err := copyAttributes(s.form.Reads, to, from); err != nil {
		return fmt.Errorf("copy the attributes of %s to %s: %w", src, dst, err)
	}
	return nil
}

func copyAttributes(forms ovl.Forms, to, from int) error {
	var st unix.Statx_t
	if err := sys.Statx(from, "", &st); err != nil {
		return err
	}
	m := &sys.Mutator{}
	// The owner first: a change takes capabilities and set-id bits away.
	if err := m.Chown(to, "", int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := cow.CopyXattrsOf(forms, m, from, "", to, "", nil); err != nil {
		return err
	}
	if err := m.Chmod(to, "", uint32(st.Mode)&0o7777); err != nil {
		return err
	}
	return m.Utimes(to, "", sys.TimeOf(st.Atime).Timespec(), sys.TimeOf(st.Mtime).Timespec())
}
