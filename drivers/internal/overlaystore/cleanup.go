package overlaystore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"plyfs/drivers"
)

// Cleanup implements drivers.Driver: it deletes what was being made or deleted, makes links anew that a crash lost, and
// detaches mounts whose server is gone.
func (s *Store) Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.readOnly {
		return s.mounts.Refresh()
	}
	errs := []error{s.dirs.Sweep(ctx, s.release)}
	ids, err := s.dirs.IDs()
	errs = append(errs, err)
	for _, name := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		if id, ok := idOf(name); ok {
			errs = append(errs, s.cleanLayer(ctx, id))
		}
	}
	errs = append(errs, s.cleanLinks(), s.mounts.Refresh())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up %s: %w", s.home, err)
	}
	return nil
}

// cleanLayer puts one layer's directory in order.
func (s *Store) cleanLayer(ctx context.Context, id string) error {
	defer s.locks.Lock(id)()
	e, there := s.lookup(id)
	if !there {
		if s.isRestoring(id) {
			// Those above it are as they were: without it.
			if err := s.dirs.Remove(ctx, dirName(id), s.release); err != nil {
				return fmt.Errorf("remove layer %s, which was made anew and not unpacked: %w", id, err)
			}
		}
		return nil
	}
	var errs []error
	left, err := filepath.Glob(filepath.Join(escapeGlob(s.dir(id)), unpackPrefix+"*"))
	for _, dir := range left {
		errs = append(errs, os.RemoveAll(dir))
	}
	errs = append(errs, err)
	errs = append(errs, detachDead(s.target(id)))
	if s.mounts.Count(id) == 0 {
		errs = append(errs, s.cleanTarget(ctx, id))
	}
	// A crash of the machine may have lost the link, and kept the layer.
	link, err := s.readLink(id)
	if err != nil {
		return errors.Join(append(errs, s.reportDamage(id, e, err))...)
	}
	if _, err := os.Lstat(s.linkPath(link)); errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, os.Symlink(linkTarget(id), s.linkPath(link)))
	}
	return errors.Join(errs...)
}

// cleanTarget removes the mount point of a layer to which nobody has a reference. A mount that is in use all the same
// stays.
func (s *Store) cleanTarget(ctx context.Context, id string) error {
	target := s.target(id)
	if drivers.IsMountPoint(target) {
		err := s.mounter.Unmount(ctx, id, target)
		if errors.Is(err, drivers.ErrInUse) {
			s.log.Warn("a mount to which nobody has a reference is in use", "layer", id, "error", err)
			return nil
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(removeEmpty(target), s.afterUnmount(id))
}

// reportDamage logs what is wrong with a layer: it must not keep the others from being cleaned up.
func (s *Store) reportDamage(id string, e entry, err error) error {
	if !errors.Is(err, drivers.ErrDamaged) {
		return err
	}
	s.log.Error("a layer is damaged", "layer", id, "children", e.children, "error", err)
	return nil
}

// cleanLinks removes links that lead to no layer, or that are not the link of the layer that they lead to.
func (s *Store) cleanLinks() error {
	names, err := os.ReadDir(filepath.Join(s.home, linksDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range names {
		id, err := s.ownerOf(e.Name())
		if err == nil {
			errs = append(errs, s.cleanLink(e.Name(), id))
			continue
		}
		s.log.Warn("a link of the store leads nowhere", "link", e.Name(), "error", err)
	}
	return errors.Join(errs...)
}

func (s *Store) cleanLink(link, id string) error {
	defer s.locks.Lock(id)()
	if _, err := os.Lstat(s.dir(id)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Remove(s.linkPath(link))
}

// removeEmpty removes a directory that may not exist.
func removeEmpty(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
