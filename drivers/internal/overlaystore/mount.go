package overlaystore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/drivers"
)

// Stack is one layer as it is to be mounted. Relative paths are relative to Home.
type Stack struct {
	ID, Home string
	// Lowers are the read-only layers, topmost first; there is at least one. Empty is a directory that may be added below.
	Lowers []string
	Empty  string
	// Upper and Work are those of a writable layer, else empty.
	Upper, Work string
	// ReadOnly says that nothing must be written to Upper.
	ReadOnly bool
	// Alone is that of drivers.GetOptions.
	Alone bool
	Label string
	Quota drivers.Quota
}

// Path makes one of the Stack's paths absolute.
func (k Stack) Path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(k.Home, p)
}

// Mounter is how a driver mounts. Calls for one layer are serialised.
type Mounter interface {
	// Plan says how the stack would be mounted. It does no I/O.
	Plan(k Stack) drivers.Mount
	// Mount mounts the stack on target, an empty directory. After an error nothing is mounted.
	Mount(ctx context.Context, k Stack, target string) error
	// Unmount undoes Mount, and returns when all that was written is in the upper. The error wraps drivers.ErrInUse,
	// and the mount stays, if something in it is in use.
	Unmount(ctx context.Context, id, target string) error
	// Flush has a mount begin to write to its upper what it caches, so that a difference can be read there.
	Flush(target string) error
}

// Get implements drivers.Driver.
func (s *Store) Get(ctx context.Context, id string, o *drivers.GetOptions) (string, error) {
	if err := begin(ctx, id); err != nil {
		return "", err
	}
	if o == nil {
		o = &drivers.GetOptions{}
	}
	defer s.locks.Lock(id)()
	done, err := s.reading(id)
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	defer done()
	k, err := s.stack(id, *o)
	if err != nil {
		return "", err
	}
	target := s.target(id)
	if err := detachDead(target); err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	// What counts is how it is mounted, not how that was asked for.
	k.Alone = o.Alone
	effective := drivers.GetOptions{MountLabel: k.Label, ReadOnly: k.ReadOnly || k.Upper == "", Any: o.Any}
	err = s.mounts.Get(id, target, effective, func() error { return s.mount(ctx, k, target) })
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	return target, nil
}

func (s *Store) mount(ctx context.Context, k Stack, target string) error {
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	if drivers.IsMountPoint(target) {
		// Nobody knows of it: the records of mounts were lost, and two mounts would write to one upper.
		if err := s.mounter.Unmount(ctx, k.ID, target); err != nil {
			return fmt.Errorf("it is mounted already, by whom is not known: %w", err)
		}
	}
	if !s.selinux {
		k.Label = "" // the kernel knows no such option
	}
	if err := s.beforeMount(k); err != nil {
		return err
	}
	if err := s.mounter.Mount(ctx, k, target); err != nil {
		return errors.Join(err, removeEmpty(target))
	}
	return nil
}

// Put implements drivers.Driver.
func (s *Store) Put(ctx context.Context, id string) error {
	if err := begin(ctx, id); err != nil {
		return err
	}
	defer s.locks.Lock(id)()
	if _, there := s.lookup(id); !there {
		return notFound(id)
	}
	err := s.mounts.Put(id, func(target string) error {
		return s.mounter.Unmount(ctx, id, target)
	})
	if err != nil {
		return fmt.Errorf("unmount layer %s: %w", id, err)
	}
	if s.mounts.Count(id) > 0 {
		return nil
	}
	err = errors.Join(detachDead(s.target(id)), removeEmpty(s.target(id)), s.afterUnmount(id))
	if err != nil {
		s.log.Warn("something of a mount is left", "layer", id, "error", err)
	}
	return nil
}

// Plan implements drivers.Planner.
func (s *Store) Plan(ctx context.Context, id string, o *drivers.GetOptions) (drivers.Mount, error) {
	if err := begin(ctx, id); err != nil {
		return drivers.Mount{}, err
	}
	if o == nil {
		o = &drivers.GetOptions{}
	}
	defer s.locks.Lock(id)()
	done, err := s.reading(id)
	if err != nil {
		return drivers.Mount{}, err
	}
	defer done()
	k, err := s.stack(id, *o)
	if err != nil {
		return drivers.Mount{}, err
	}
	return s.mounter.Plan(k), nil
}

// stack reads what is to be mounted for a layer, and checks that it is there.
func (s *Store) stack(id string, o drivers.GetOptions) (Stack, error) {
	if _, there := s.lookup(id); !there {
		return Stack{}, notFound(id)
	}
	l, err := s.readLayer(id)
	if err != nil {
		return Stack{}, err
	}
	k := Stack{
		ID: id, Home: s.home, Empty: s.emptyLower(), ReadOnly: o.ReadOnly || s.readOnly, Label: l.Label, Quota: l.Quota,
	}
	if k.Label == "" {
		k.Label = o.MountLabel
	}
	links := l.below
	if l.Writable {
		k.Upper, k.Work = filepath.Join(dirName(id), diffDir), filepath.Join(dirName(id), workDir)
	} else {
		links = append([]string{l.link}, l.below...)
	}
	for _, link := range links {
		path := s.linkPath(link)
		switch st, err := os.Stat(path); {
		case err != nil:
			return Stack{}, damaged(path, fmt.Errorf("it leads to no layer: %w", err))
		case !st.IsDir():
			return Stack{}, damaged(path, errors.New("it leads to no layer, but to a file"))
		}
		k.Lowers = append(k.Lowers, filepath.Join(linksDir, link))
		// The kernel does not look whether the root of a lower layer is opaque.
		opaque, err := s.isOpaque(path)
		if err != nil {
			return Stack{}, damaged(path, err)
		}
		if opaque {
			break
		}
	}
	if len(k.Lowers) == 0 {
		k.Lowers = []string{k.Empty}
	}
	return k, nil
}

// isOpaque says whether the root of a layer hides all layers below it.
func (s *Store) isOpaque(dir string) (bool, error) {
	if s.form.Names == nil {
		return false, nil
	}
	var v [8]byte
	n, err := unix.Getxattr(dir, s.form.Names.Opaque, v[:])
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM), errors.Is(err, unix.ERANGE):
		return false, nil
	case err != nil:
		return false, err
	}
	return ovl.IsOpaque(v[:n]), nil
}

// target is where a layer is mounted.
func (s *Store) target(id string) string {
	if s.readOnly {
		return filepath.Join(s.run, "merged", id)
	}
	return s.dir(id, mergedDir)
}

// mounted says whether anything is mounted on target, a file system whose server is gone included.
func mounted(target string) bool { return drivers.IsDead(target) || drivers.IsMountPoint(target) }

// detachDead unmounts file systems on target whose server is gone.
func detachDead(target string) error {
	for drivers.IsDead(target) {
		if err := Detach(target); err != nil {
			return err
		}
	}
	return nil
}
