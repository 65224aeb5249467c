package devicemapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"plyfs/drivers"
)

// minXFS is the smallest xfs that mkfs makes, in bytes.
const minXFS = 300 << 20

// chooseFS returns the file system of a new store.
func chooseFS(o options) (string, error) {
	if o.fs != "" {
		if o.fs == fsXFS && o.baseSize < minXFS {
			return "", fmt.Errorf("option %s=%d: an xfs has %d bytes or more; or %s=%s: %w", optBaseSize, o.baseSize,
				minXFS, optFS, fsExt4, drivers.ErrInvalid)
		}
		return o.fs, nil
	}
	if o.baseSize < minXFS || !kernelHas(fsXFS) {
		return fsExt4, nil
	}
	if hasProgram("mkfs.xfs") {
		return fsXFS, nil
	}
	return fsExt4, nil
}

func hasProgram(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}

// kernelHas says whether a file system is built in, or its module is loaded.
func kernelHas(fstype string) bool {
	text, err := os.ReadFile("/proc/filesystems")
	return err == nil && strings.Contains(string(text), "\t"+fstype+"\n")
}

// openBase makes sure that there is a base: an empty file system in a device of its own.
func (d *Driver) openBase(ctx context.Context) error {
	base, err := d.base()
	switch {
	case err == nil && base.State == stateReady:
		return nil
	case err == nil:
		// Whoever made it did not come to an end.
		if err := d.unmountBase(ctx, base); err != nil {
			return err
		}
		if err := d.bury(ctx, base); err != nil {
			return fmt.Errorf("make the base of all layers anew: %w", err)
		}
	}
	base = &deviceRecord{Layer: baseLayer, State: stateMaking, Size: d.opts.baseSize / sector * sector}
	d.poolMu.Lock()
	err = d.createDevice(ctx, base, nil)
	d.poolMu.Unlock()
	filled := *base
	if err == nil {
		filled.Projects, err = d.fillBase(ctx, base)
	}
	if err != nil {
		return fmt.Errorf("make the base of all layers, an empty %s: %w", d.pool.FS, err)
	}
	_, err = d.setState(ctx, &filled, stateReady)
	return err
}

func (d *Driver) base() (*deviceRecord, error) { return d.lookup(baseLayer) }

// baseMount is where the base is mounted while it is made; no id is like it.
func (d *Driver) baseMount() string { return filepath.Join(d.home, mountDir, ".base") }

// fillBase puts an empty file system on the base. projects says that it can bound what is in it.
func (d *Driver) fillBase(ctx context.Context, base *deviceRecord) (projects bool, err error) {
	dev, err := d.activate(base)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, d.deactivate(context.WithoutCancel(ctx), base)) }()
	if err := os.MkdirAll(d.baseMount(), 0o700); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.Remove(d.baseMount())) }()
	with := *base
	with.Projects = true
	err = d.formatBase(dev, &with)
	if err == nil {
		return true, nil
	}
	d.log.Info("no quotas below the size of a device: the kernel or its file system has no project quotas", "error",
		err)
	if drivers.IsMountPoint(d.baseMount()) {
		if err := d.host.unmount(d.baseMount()); err != nil {
			return false, err
		}
	}
	return false, d.formatBase(dev, base)
}

// formatBase makes the file system of the base.
func (d *Driver) formatBase(dev uint64, base *deviceRecord) error {
	features := ""
	if base.Projects {
		features = "quota,project"
	}
	if err := d.host.mkfs(dev, d.pool.FS, features, d.opts.mkfsArgs); err != nil {
		return err
	}
	flags, data := splitOptions(d.fsOptions(base, ""))
	if err := d.host.mount(dev, d.baseMount(), d.pool.FS, data, flags); err != nil {
		return err
	}
	// It would be in all containers, and e2fsck makes it when it needs it.
	err := ignore(os.Remove(filepath.Join(d.baseMount(), "lost+found")), os.ErrNotExist)
	if err == nil && base.Projects {
		err = d.host.adopt(d.baseMount())
	}
	if err = errors.Join(err, os.Chmod(d.baseMount(), 0o755), d.host.unmount(d.baseMount())); err != nil {
		return err
	}
	return d.host.flush(dev)
}

// unmountBase undoes what a process did that was killed while it made the base.
func (d *Driver) unmountBase(ctx context.Context, base *deviceRecord) error {
	if drivers.IsMountPoint(d.baseMount()) {
		if err := d.host.unmount(d.baseMount()); err != nil {
			return err
		}
	}
	if err := os.Remove(d.baseMount()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return d.deactivate(ctx, base)
}
