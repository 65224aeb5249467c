package btrfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Remove implements drivers.Driver. Space is given back in the background, unless the file system is nearly full: then it waits
// for it.
func (d *Driver) Remove(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if d.mounts.Count(id) > 0 {
		return fmt.Errorf("layer %s is mounted: %w", id, drivers.ErrInUse)
	}
	if err := d.remove(id); err != nil {
		return err
	}
	return d.awaitSpace(ctx)
}

const (
	// scarce is the part of a file system that has to be free for nobody to wait for space.
	scarce = 16
	// spaceWait bounds how long deleted subvolumes are waited for.
	spaceWait = 10 * time.Second
	spacePoll = 20 * time.Millisecond
)

// awaitSpace waits until what was deleted takes up no space any more, if there is little. Whoever removes a layer because the file
// system is full has use for the space at once, and btrfs gives it back with a later transaction.
func (d *Driver) awaitSpace(ctx context.Context) error {
	var st unix.Statfs_t
	if err := sys.Retry(func() error { return unix.Fstatfs(d.fd, &st) }); err != nil {
		return fmt.Errorf("free space of %s: %w", d.home, err)
	}
	if st.Bavail > st.Blocks/scarce {
		return nil
	}
	for deadline := time.Now().Add(spaceWait); time.Now().Before(deadline); {
		if err := sys.BtrfsSync(d.fd); err != nil {
			return fmt.Errorf("sync %s: %w", d.home, err)
		}
		// Kernels that do not tell delete with the transaction after the one just written.
		if n, err := sys.BtrfsDeleting(d.fd); err != nil || n == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil // the layer is gone
		case <-time.After(spacePoll):
		}
	}
	// What the deletion freed is free after one more transaction.
	if err := sys.BtrfsSync(d.fd); err != nil {
		return fmt.Errorf("sync %s: %w", d.home, err)
	}
	return nil
}

// syncRemoval makes it durable that a layer has no record any more: without, it could come back with a power cut.
func (d *Driver) syncRemoval(id string) error {
	fd, err := unix.Open(d.layerPath(id), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if sys.Retry(func() error { return unix.Fsync(fd) }) == nil {
		return nil
	}
	// A full file system may have no room for the log, and has some for a transaction.
	return sys.BtrfsSync(d.fd)
}

// remove is Remove, but for the waiting.
//
// Precondition: id is locked and not mounted.
func (d *Driver) remove(id string) error {
	// From here on there is no such layer. It is not renamed: for that a file system that is full has no room.
	if err := os.Remove(d.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	if err := d.syncRemoval(id); err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	if err := d.destroy(d.layerPath(id)); err != nil {
		return fmt.Errorf("layer %s is removed, but takes up space until Cleanup succeeds: %w", id, err)
	}
	return nil
}

// Cleanup implements drivers.Driver.
func (d *Driver) Cleanup(ctx context.Context) error {
	errs := []error{d.mounts.Refresh()}
	entries, err := os.ReadDir(d.home)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		path := filepath.Join(d.home, e.Name())
		if strings.HasPrefix(e.Name(), stagePrefix) && !d.isHeld(path) {
			errs = append(errs, d.destroy(path))
		}
	}
	errs = append(errs, d.eachLayer(ctx, func(id string) error { return d.cleanupLayer(ctx, id) }), d.removeMountPoints())
	return errors.Join(errs...)
}

// cleanupLayer removes a layer whose unpacking or removal was interrupted.
func (d *Driver) cleanupLayer(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	has, err := d.has(id)
	if err != nil {
		return err
	}
	unfilled, err := d.unfilled(id)
	if err != nil || has && !unfilled {
		return err
	}
	d.log.Info("removing what was left of a layer", "layer", id)
	return d.remove(id)
}

// hold returns the path of a name in the home that nothing has, and keeps Cleanup from deleting it until release.
func (d *Driver) hold() (path string, release func()) {
	path = filepath.Join(d.home, stagePrefix+rand.Text())
	d.heldMu.Lock()
	d.held[path] = true
	d.heldMu.Unlock()
	return path, func() {
		d.heldMu.Lock()
		delete(d.held, path)
		d.heldMu.Unlock()
	}
}

func (d *Driver) isHeld(path string) bool {
	d.heldMu.Lock()
	defer d.heldMu.Unlock()
	return d.held[path]
}

// removeMountPoints removes the directories on which nothing is mounted.
func (d *Driver) removeMountPoints() error {
	entries, err := os.ReadDir(filepath.Join(d.home, mountsDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if p := d.mountPath(e.Name()); d.mounts.Count(e.Name()) == 0 && !drivers.IsMountPoint(p) {
			errs = append(errs, os.Remove(p))
		}
	}
	return errors.Join(errs...)
}

// destroy deletes a directory of a layer, under whatever name, with its subvolume. One that is not there is no error.
func (d *Driver) destroy(dir string) error {
	fd, err := openDir(unix.AT_FDCWD, dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", dir, err)
	}
	err = d.destroySubvolume(fd, rootName)
	unix.Close(fd)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete subvolume %s/%s: %w", dir, rootName, err)
	}
	// What is left are files of this package.
	return os.RemoveAll(dir)
}

// destroySubvolume deletes the subvolume name in the open directory dir, and those within.
func (d *Driver) destroySubvolume(dir int, name string) error {
	fd, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	info, err := sys.BtrfsSubvolume(fd)
	if err != nil {
		return err
	}
	if err := d.destroyNested(fd, info.ID); err != nil {
		return err
	}
	err = sys.BtrfsDestroy(dir, name)
	if errors.Is(err, unix.EROFS) {
		// Those without CAP_SYS_ADMIN may delete only what they may write to.
		if err = sys.BtrfsSetWritable(fd); err == nil {
			err = sys.BtrfsDestroy(dir, name)
		}
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (mount the file system with user_subvol_rm_allowed): %w", err, drivers.ErrNotSupported)
	}
	if err == nil {
		d.dropQgroup(info.ID)
	}
	return err
}

// destroyNested deletes the subvolumes within that of number id, the root of which is open as fd. It goes by number, and takes two
// descriptors: a container can make paths that are longer than any call takes, and nest more subvolumes than files can be open.
func (d *Driver) destroyNested(fd int, id uint64) error {
	within, err := d.descendants(id)
	if errors.Is(err, unix.EPERM) {
		return d.destroyNestedByPath(fd)
	}
	if err != nil {
		return err
	}
	for _, child := range slices.Backward(within) {
		if err := d.destroyChild(child); err != nil {
			return fmt.Errorf("subvolume %d within: %w", child.ID, err)
		}
	}
	return nil
}

// descendants lists the subvolumes within that of number id, outer before inner. It makes all that have others within writable: a
// container can have made them read-only, and then nothing in them could be deleted.
func (d *Driver) descendants(id uint64) (within []sys.BtrfsChild, err error) {
	for next := -1; next < len(within); next++ {
		if next >= 0 {
			id = within[next].ID
		}
		children, err := sys.BtrfsChildren(d.fd, id)
		if err != nil {
			return nil, err
		}
		if len(children) == 0 {
			continue
		}
		if err := d.makeWritable(id); err != nil {
			return nil, fmt.Errorf("make subvolume %d writable: %w", id, err)
		}
		within = append(within, children...)
	}
	return within, nil
}

func (d *Driver) makeWritable(id uint64) error {
	fd, err := sys.BtrfsOpen(d.fd, id)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	readOnly, err := sys.BtrfsReadOnly(fd)
	if err != nil || !readOnly {
		return err
	}
	return sys.BtrfsSetWritable(fd)
}

// destroyChild deletes a subvolume that has none within.
func (d *Driver) destroyChild(child sys.BtrfsChild) error {
	fd, err := sys.BtrfsOpen(d.fd, child.ID)
	if errors.Is(err, unix.ESTALE) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	dir, err := openDir(fd, "..")
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := sys.BtrfsDestroy(dir, child.Name); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	d.dropQgroup(child.ID)
	return nil
}

// destroyNestedByPath is destroyNested for those without CAP_SYS_ADMIN.
func (d *Driver) destroyNestedByPath(fd int) error {
	paths, err := sys.BtrfsNested(fd)
	if err != nil || len(paths) == 0 {
		return err
	}
	if err := sys.BtrfsSetWritable(fd); err != nil {
		return err
	}
	for _, p := range paths {
		if err := d.destroyBeneath(fd, p); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("subvolume %s within: %w", p, err)
		}
	}
	return nil
}

func (d *Driver) destroyBeneath(root int, p string) error {
	dir := path.Dir(p)
	if dir == "." {
		return d.destroySubvolume(root, p)
	}
	fd, err := sys.OpenBeneath(root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return d.destroySubvolume(fd, path.Base(p))
}
