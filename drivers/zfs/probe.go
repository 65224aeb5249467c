package zfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	zfs "github.com/mistifyio/go-zfs/v4"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

const device = "/dev/zfs"

// probe implements drivers.Factory.Probe.
func probe(ctx context.Context, o drivers.Options) drivers.Report {
	return prober{mounter: realMounter{}, device: device}.probe(ctx, o)
}

// prober is what a probe needs of the machine.
type prober struct {
	mounter mounter
	device  string
}

func (p prober) probe(ctx context.Context, o drivers.Options) drivers.Report {
	rep := drivers.Report{Driver: name}
	where, todo, err := p.try(ctx, o)
	if err != nil {
		rep.Why, rep.Todo = err.Error(), todo
		return rep
	}
	rep.Usable = true
	rep.Why = fmt.Sprintf("datasets can be made, mounted and destroyed in %s", where)
	return rep
}

// try does what the driver does, in a dataset of its own that it destroys. It returns the dataset that a store would be in, or
// what to do about the error.
func (p prober) try(ctx context.Context, o drivers.Options) (where, todo string, err error) {
	fsname, err := parseOptions(o.Options)
	if err != nil {
		return "", "", err
	}
	if err := checkTools(); err != nil {
		return "", "install the tools of OpenZFS, or choose another driver", err
	}
	if err := checkModule(p.device); err != nil {
		return "", "load the module and be root, or choose another driver", err
	}
	if err := ctx.Err(); err != nil {
		return "", "", err
	}
	dir, err := nearest(o.Home)
	if err != nil {
		return "", "", err
	}
	if fsname == "" {
		if fsname, err = datasetAt(dir); err != nil {
			return "", "put the store on a zfs dataset, or name one with " + optionFSName, err
		}
	}
	if _, err := zfs.GetDataset(fsname); err != nil {
		err = explain(err)
		if errors.Is(err, errNoDataset) {
			return "", "make it (zfs create " + fsname + "), or name another with " + optionFSName, err
		}
		return "", "", err
	}
	return fsname, "", p.tryDataset(fsname)
}

// nearest returns the nearest directory at or above path that exists.
func nearest(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return path, fmt.Errorf("directory %q: not absolute: %w", path, drivers.ErrInvalid)
	}
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		_, err := os.Stat(dir)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return dir, err
		}
	}
}

func (p prober) tryDataset(fsname string) (err error) {
	target, err := os.MkdirTemp("", "plyfs-probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(target)) }()
	ds := zfs.Dataset{Name: fsname + "/plyfs-probe-" + strings.ToLower(rand.Text())[:12]}
	d := &Driver{busyWait: defaultBusyWait}
	defer func() { err = errors.Join(err, d.destroy(context.Background(), ds.Name, zfs.DestroyDefault)) }()
	if _, err := zfs.CreateFilesystem(ds.Name, map[string]string{"mountpoint": "legacy"}); err != nil {
		return fmt.Errorf("make a dataset: %w", explain(err))
	}
	if err := p.mounter.mount(ds.Name, target, 0, ""); err != nil {
		return fmt.Errorf("mount a dataset: %w", err)
	}
	return sys.UnmountSoon(target)
}
