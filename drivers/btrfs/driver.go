package btrfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// name is that of the driver in the registry.
const name = "btrfs"

// Names in a driver's home; see the package doc.
const (
	layersDir   = "layers"
	mountsDir   = "mnt"
	stagePrefix = "tmp-"

	rootName     = "root"
	recordName   = "layer.json"
	unfilledName = "unfilled"
)

// Factory returns the driver's entry for a registry. It takes one option:
//
//	btrfs.quota  how space is counted once the first limit is asked for: "simple" (the default; Linux 6.7 or newer, else full),
//	             "full", or "off" to refuse limits. Where accounting is on already, it stays as it is.
func Factory() drivers.Factory {
	return drivers.Factory{
		Name:    name,
		Summary: "subvolumes and snapshots; native speed at any depth, for a store on btrfs",
		Probe:   probe,
		Open: func(ctx context.Context, o drivers.Options) (drivers.Driver, error) {
			return open(ctx, o)
		},
	}
}

// Driver keeps layers as subvolumes. It implements drivers.Driver and drivers.Filler.
type Driver struct {
	home   string
	fd     int // of home, for what concerns the whole file system
	log    *slog.Logger
	quota  string // the option btrfs.quota
	locks  drivers.Locks
	mounts *drivers.Mounts

	quotaMu sync.Mutex // held while accounting is turned on

	heldMu sync.Mutex
	held   map[string]bool // what this process is making; guarded by heldMu
}

// The values of btrfs.quota.
const (
	quotaSimple = "simple"
	quotaFull   = "full"
	quotaOff    = "off"
)

func parseOptions(options map[string]string) (quota string, err error) {
	quota = quotaSimple
	for key, value := range options {
		if key != "btrfs.quota" {
			return "", fmt.Errorf("option %s: the driver btrfs has only btrfs.quota: %w", key, drivers.ErrInvalid)
		}
		switch value {
		case quotaSimple, quotaFull, quotaOff:
			quota = value
		default:
			return "", fmt.Errorf("option btrfs.quota=%s: not one of simple, full, off: %w", value, drivers.ErrInvalid)
		}
	}
	return quota, nil
}

func open(ctx context.Context, o drivers.Options) (d *Driver, err error) {
	quota, err := parseOptions(o.Options)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(o.Home) || !filepath.IsAbs(o.Run) {
		return nil, fmt.Errorf("directories %q and %q of the driver btrfs: not absolute: %w", o.Home, o.Run, drivers.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{o.Home, o.Run, filepath.Join(o.Home, layersDir), filepath.Join(o.Home, mountsDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	d = &Driver{home: o.Home, log: log, quota: quota, held: make(map[string]bool)}
	if d.fd, err = openDir(unix.AT_FDCWD, o.Home); err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Home, err)
	}
	if err := d.prepare(o); err != nil {
		return nil, errors.Join(err, unix.Close(d.fd))
	}
	return d, nil
}

func (d *Driver) prepare(o drivers.Options) (err error) {
	if err := onBtrfs(d.fd, d.home); err != nil {
		return err
	}
	d.mounts, err = drivers.OpenMounts(filepath.Join(o.Run, "mounts"))
	return err
}

// onBtrfs returns an error that wraps ErrIncompatibleFS if the open directory is on another file system.
func onBtrfs(fd int, path string) error {
	var st unix.Statfs_t
	if err := sys.Retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return fmt.Errorf("file system of %s: %w", path, err)
	}
	if st.Type != unix.BTRFS_SUPER_MAGIC {
		return fmt.Errorf("%s is not on btrfs (its file system is of type %#x): %w", path, st.Type, drivers.ErrIncompatibleFS)
	}
	return nil
}

// Name implements drivers.Driver.
func (d *Driver) Name() string { return name }

// Close implements drivers.Driver.
func (d *Driver) Close() error { return unix.Close(d.fd) }

func (d *Driver) layerPath(id string) string { return filepath.Join(d.home, layersDir, id) }

func (d *Driver) rootPath(id string) string { return filepath.Join(d.layerPath(id), rootName) }

func (d *Driver) mountPath(id string) string { return filepath.Join(d.home, mountsDir, id) }

// openDir opens a directory so that ioctls accept it. The last component is not followed if it is a symlink.
func openDir(dirfd int, path string) (int, error) {
	var fd int
	err := sys.Retry(func() (err error) {
		fd, err = unix.Openat(dirfd, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}
