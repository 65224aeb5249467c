// Package layerdir keeps the layers of a driver as directories of its home, one each, named by the layer's id.
//
// A layer appears and disappears by one rename. What is being made is in a directory .tmp-*, what is being deleted in
// one .removing-*; no id begins with a dot, so neither is ever taken for a layer, and after a crash Sweep deletes both.
//
// A Home is safe for concurrent use; operations on one id are serialised by the caller.
package layerdir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/drivers"
	"plyfs/internal/sys"
)

const (
	stagePrefix    = ".tmp-"
	removingPrefix = ".removing-"
)

// Home is the directory of a driver.
type Home struct {
	path string
	fd   int

	mu     sync.Mutex
	active map[string]bool // entries that this process is making or deleting; guarded by mu
}

// Open opens the directory path, which it makes with mode 0700 together with those above it. path is absolute. The
// caller closes the Home.
func Open(path string) (*Home, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("home %q: not an absolute path: %w", path, drivers.ErrInvalid)
	}
	fd, err := mkdirAll(filepath.Clean(path))
	if err != nil {
		return nil, fmt.Errorf("home %s: %w", path, err)
	}
	spread(fd)
	return &Home{path: filepath.Clean(path), fd: fd, active: make(map[string]bool)}, nil
}

// spread has ext4 put each layer into a block group of its own choice, as it does with the directories of its root: layers are
// unrelated trees. ext4 gives no inode out again for minutes after it was deleted, and looks at all of them one by one on its way to
// a free one, so that in a group from which an image was removed every new file takes a millisecond (cf. chattr(1), attribute T;
// ext4 ialloc.c find_group_orlov, recently_deleted). It is a hint: nothing depends on it.
func spread(fd int) {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil || st.Type != unix.EXT4_SUPER_MAGIC {
		return
	}
	if flags, err := sys.GetFlags(fd); err == nil && flags&sys.FlagTopDir == 0 {
		var m *sys.Mutator
		_ = m.SetFlags(fd, flags|sys.FlagTopDir)
	}
}

func mkdirAll(path string) (int, error) {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if name == "" {
			break
		}
		if err := unix.Mkdirat(fd, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EROFS) {
			// What exists may be on a directory in which nothing may be made.
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, 0) != nil {
				unix.Close(fd)
				return -1, fmt.Errorf("make %s: %w", name, err)
			}
		}
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		if err != nil {
			return -1, fmt.Errorf("open %s: %w", name, err)
		}
		fd = next
	}
	defer unix.Close(fd)
	return sys.Reopen(fd, unix.O_RDONLY|unix.O_DIRECTORY)
}

// Close ends the use of the home; layers stay.
func (h *Home) Close() error { return unix.Close(h.fd) }

// Path is the home's path.
func (h *Home) Path() string { return h.path }

// FD is the home's directory. It belongs to the Home.
func (h *Home) FD() int { return h.fd }

// Layer is the path of a layer's directory, whether it exists or not.
func (h *Home) Layer(id string) string { return filepath.Join(h.path, id) }

// Has says whether there is a layer. The error wraps drivers.ErrInvalid for what is no id.
func (h *Home) Has(id string) (bool, error) {
	if err := drivers.ValidID(id); err != nil {
		return false, err
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(h.fd, id, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("layer %s: %w", id, err)
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// Need returns an error that wraps drivers.ErrNotFound if there is no such layer.
func (h *Home) Need(id string) error {
	switch ok, err := h.Has(id); {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("layer %s: %w", id, drivers.ErrNotFound)
	}
	return nil
}

// IDs lists the layers, in no particular order.
func (h *Home) IDs() (ids []string, err error) {
	err = layer.List(h.fd, func(e layer.RawDirent) error {
		ok, err := h.Has(e.Name)
		if ok {
			ids = append(ids, e.Name)
		}
		if errors.Is(err, drivers.ErrInvalid) {
			return nil // no layer
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", h.path, err)
	}
	return ids, nil
}

// Create makes a layer of what fill puts into a new directory of mode 0700, whose path it is given. After an error, such as one of
// fill, nothing is left. The error wraps drivers.ErrExists if there is such a layer; it does not name the layer.
func (h *Home) Create(ctx context.Context, id string, fill func(dir string) error) (err error) {
	switch ok, err := h.Has(id); {
	case err != nil:
		return err
	case ok:
		return drivers.ErrExists
	}
	stage := stagePrefix + rand.Text()
	defer h.hold(stage)()
	if err := unix.Mkdirat(h.fd, stage, 0o700); err != nil {
		return fmt.Errorf("make a directory in %s: %w", h.path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, RemoveTree(context.WithoutCancel(ctx), h.fd, stage))
		}
	}()
	if err := fill(filepath.Join(h.path, stage)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	switch err := (*sys.Mutator)(nil).Rename(h.fd, stage, h.fd, id, unix.RENAME_NOREPLACE); {
	case errors.Is(err, unix.EEXIST):
		return drivers.ErrExists
	case err != nil:
		return fmt.Errorf("publish it in %s: %w", h.path, err)
	}
	return nil
}

// Remove deletes a layer; one that is not there is no error. First the layer is renamed away, durably. Then release, when not nil,
// is called with the new path, to give back what belongs to the layer outside of its directory: so a crash leaves a layer with all
// that belongs to it, or none. If release fails, or ctx ends while files are deleted, Sweep deletes the rest.
//
// The error wraps drivers.ErrInUse if something is mounted on the layer's directory; it does not name the layer.
func (h *Home) Remove(ctx context.Context, id string, release func(dir string) error) error {
	if err := drivers.ValidID(id); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	trash := removingPrefix + rand.Text()
	defer h.hold(trash)()
	switch err := (*sys.Mutator)(nil).Rename(h.fd, id, h.fd, trash, unix.RENAME_NOREPLACE); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("something is mounted on it: %w", drivers.ErrInUse)
	case err != nil:
		return fmt.Errorf("rename it away in %s: %w", h.path, err)
	}
	if err := sys.Retry(func() error { return unix.Fsync(h.fd) }); err != nil {
		return fmt.Errorf("sync %s: %w", h.path, err)
	}
	if release != nil {
		if err := release(filepath.Join(h.path, trash)); err != nil {
			return err
		}
	}
	return RemoveTree(ctx, h.fd, trash)
}

// Sweep deletes what interrupted operations left behind. What this process is making or deleting stays. release, when
// not nil, is told the path of each entry before it is deleted.
func (h *Home) Sweep(ctx context.Context, release func(dir string) error) error {
	var left []string
	err := layer.List(h.fd, func(e layer.RawDirent) error {
		if strings.HasPrefix(e.Name, stagePrefix) || strings.HasPrefix(e.Name, removingPrefix) {
			left = append(left, e.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list %s: %w", h.path, err)
	}
	var errs []error
	for _, name := range left {
		if h.isActive(name) {
			continue
		}
		if release != nil {
			errs = append(errs, release(filepath.Join(h.path, name)))
		}
		errs = append(errs, RemoveTree(ctx, h.fd, name))
	}
	return errors.Join(errs...)
}

// Sync makes everything on the home's file system durable.
func (h *Home) Sync() error {
	if err := sys.Retry(func() error { return unix.Syncfs(h.fd) }); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", h.path, err)
	}
	return nil
}

func (h *Home) hold(name string) (release func()) {
	h.mu.Lock()
	h.active[name] = true
	h.mu.Unlock()
	return func() {
		h.mu.Lock()
		delete(h.active, name)
		h.mu.Unlock()
	}
}

func (h *Home) isActive(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.active[name]
}
