package overlaystore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"plyfs/drivers"
)

// Remove implements drivers.Driver. The layer is gone as soon as its directory is renamed; what cannot be deleted then
// is left to Cleanup.
func (s *Store) Remove(ctx context.Context, id string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("remove layer %s: %w", id, err)
		}
	}()
	if err := errors.Join(begin(ctx, id), s.mayChange()); err != nil {
		return err
	}
	defer s.locks.Lock(id)()
	if there, err := s.condemn(id); !there || err != nil {
		return err
	}
	if s.mounts.Count(id) > 0 || mounted(s.target(id)) {
		s.settle(id, true)
		return fmt.Errorf("it is mounted: %w", drivers.ErrInUse)
	}
	links := s.linksTo(id)
	// The limits go with the directory, behind the rename: a layer that is there is bounded.
	err = s.dirs.Remove(ctx, dirName(id), s.release)
	if there, _ := s.dirs.Has(dirName(id)); there {
		s.settle(id, true)
		return err
	}
	s.settle(id, false)
	if err != nil {
		s.log.Warn("what is left of a removed layer will be deleted later", "layer", id, "error", err)
	}
	for _, link := range links {
		if err := os.Remove(s.linkPath(link)); err != nil {
			s.log.Warn("the link of a removed layer is left", "layer", id, "error", err)
		}
	}
	return nil
}

// release takes the limits of a layer's directory away, which may be a half-made one.
func (s *Store) release(dir string) error {
	diff := filepath.Join(dir, diffDir)
	if _, err := os.Lstat(diff); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return s.quotas.Release(diff)
}

// condemn marks a layer as pending, since it is about to be deleted. The error wraps drivers.ErrInUse if anybody needs it. there says
// whether there is such a layer.
func (s *Store) condemn(id string) (there bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.table[id]
	switch {
	case e == nil:
		return false, nil
	case e.children > 0 && !e.restoring:
		return true, fmt.Errorf("%d layers have it as their parent: %w", e.children, drivers.ErrInUse)
	case e.readers > 0:
		return true, fmt.Errorf("its difference is being read: %w", drivers.ErrInUse)
	}
	e.pending = true
	return true, nil
}

// linksTo finds the link of a layer: by its file or, if that is damaged, among all.
func (s *Store) linksTo(id string) []string {
	if link, err := s.readLink(id); err == nil {
		if owner, err := s.ownerOf(link); err == nil && owner == id {
			return []string{link}
		}
	}
	var links []string
	names, _ := os.ReadDir(filepath.Join(s.home, linksDir)) // what is left, Cleanup finds
	for _, e := range names {
		if owner, err := s.ownerOf(e.Name()); err == nil && owner == id {
			links = append(links, e.Name())
		}
	}
	return links
}

// escapeGlob makes a path a pattern that matches it alone.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
