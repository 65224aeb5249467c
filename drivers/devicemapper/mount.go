package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

func (d *Driver) mountPath(id string) string { return filepath.Join(d.home, mountDir, id) }

// Get implements drivers.Driver. Layers are mounted in the home; image layers read-only.
func (d *Driver) Get(ctx context.Context, id string, o *drivers.GetOptions) (root string, err error) {
	var opt drivers.GetOptions
	if o != nil {
		opt = *o
	}
	if err := checkLabel(opt.MountLabel); err != nil {
		return "", fmt.Errorf("layer %s: %w", id, err)
	}
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	r, err := d.lookupReady(id)
	if err != nil {
		return "", err
	}
	// However an image layer is asked for, the mount is the same.
	opt.ReadOnly = opt.ReadOnly || !r.Writable
	root = d.mountPath(id)
	if err := d.mounts.Get(id, root, opt, func() error { return d.mount(r, opt) }); err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	return root, nil
}

// Put implements drivers.Driver.
func (d *Driver) Put(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := d.lookup(id)
	if err != nil {
		return err
	}
	return d.mounts.Put(id, func(string) error { return d.unmount(r) })
}

// mount mounts a layer at its place.
func (d *Driver) mount(r *deviceRecord, o drivers.GetOptions) (err error) {
	target := d.mountPath(r.Layer)
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dev, err := d.activate(r)
	if err != nil {
		return errors.Join(err, os.Remove(target))
	}
	label := o.MountLabel
	if label == "" {
		label = r.Label
	}
	flags, data := splitOptions(d.fsOptions(r, label))
	if o.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := d.host.mount(dev, target, d.pool.FS, data, flags); err != nil {
		return errors.Join(err, d.retire(r), os.Remove(target))
	}
	return nil
}

// unmount undoes mount. When it returns, everything is in the pool, for good; an error that wraps ErrPoolFull says
// that something is not.
func (d *Driver) unmount(r *deviceRecord) error {
	target := d.mountPath(r.Layer)
	// Unmounting would not say what could not be written.
	written := syncFS(target)
	err := d.host.unmount(target)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount layer %s: %w: %w", r.Layer, err, drivers.ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("unmount layer %s: %w", r.Layer, err)
	}
	info, err := d.dm.stat(d.deviceName(r.id))
	if err == nil {
		err = d.host.flush(info.Dev)
	}
	if err = errors.Join(written, ignore(err, unix.ENXIO)); err != nil {
		err = fmt.Errorf("write what is left of layer %s: %w", r.Layer, d.explain(err))
	}
	// With the directory go mounts on it that other namespaces copied, cf. the kernel's detach_mounts; then the
	// device is free.
	err = errors.Join(err, ignore(os.Remove(target), fs.ErrNotExist))
	return errors.Join(err, d.retire(r))
}

// syncFS writes what was written to the file system at dir. A directory that is not there has nothing to write.
func syncFS(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sys.Retry(func() error { return unix.Syncfs(fd) })
}

// fsOptions are the options of all mounts of a layer.
func (d *Driver) fsOptions(r *deviceRecord, label string) string {
	var list []string
	if d.opts.mountOptions != "" {
		list = append(list, d.opts.mountOptions)
	}
	if d.pool.FS == fsXFS {
		// A snapshot has the UUID of its origin.
		list = append(list, "nouuid")
	}
	if r.Projects {
		// Always: what is not counted at some mount is counted from scratch at the next.
		list = append(list, "prjquota")
	}
	if label != "" {
		// Quoted, since categories are separated by commas.
		list = append(list, `context="`+label+`"`)
	}
	return strings.Join(list, ",")
}

func checkLabel(label string) error {
	if strings.ContainsAny(label, "\"\\\x00\n") {
		return fmt.Errorf("mount label %q: %w", label, drivers.ErrInvalid)
	}
	return nil
}

// splitOptions takes from mount options those that are flags of mount(2). They come first, before any label.
func splitOptions(options string) (flags uintptr, data string) {
	known := map[string]uintptr{
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
		"strictatime": unix.MS_STRICTATIME, "lazytime": unix.MS_LAZYTIME, "sync": unix.MS_SYNCHRONOUS,
		"dirsync": unix.MS_DIRSYNC, "nodev": unix.MS_NODEV, "nosuid": unix.MS_NOSUID, "noexec": unix.MS_NOEXEC,
		"defaults": 0,
	}
	label := ""
	if at := strings.Index(options, `context="`); at >= 0 {
		options, label = strings.TrimSuffix(options[:at], ","), options[at:]
	}
	var rest []string
	for o := range strings.SplitSeq(options, ",") {
		if flag, ok := known[o]; ok {
			flags |= flag
		} else if o != "" {
			rest = append(rest, o)
		}
	}
	if label != "" {
		rest = slices.Concat(rest, []string{label})
	}
	return flags, strings.Join(rest, ",")
}
