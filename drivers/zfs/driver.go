package zfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	zfs "github.com/mistifyio/go-zfs/v4"

	"plyfs/drivers"
)

// name is that of the driver in the registry.
const name = "zfs"

// Names in a driver's home and in its dataset; see the package doc.
const (
	graphDir    = "graph"
	unfilledDir = "unfilled"

	imageGroup     = "image"
	containerGroup = "container"

	storePrefix    = "plyfs-"
	imageSnapshot  = "plyfs"
	snapshotPrefix = "plyfs-"
	storeProperty  = "plyfs:store"
)

// optionFSName is the driver's only option.
const optionFSName = "zfs.fsname"

// Factory returns the driver's entry for a registry. It takes one option:
//
//	zfs.fsname  the dataset beneath which the store keeps its own; that on which the store's directory lies if not given
func Factory() drivers.Factory {
	return drivers.Factory{
		Name:    name,
		Summary: "datasets, snapshots and clones; compression and checksums, for a store in a zfs pool",
		Probe:   probe,
		Open: func(ctx context.Context, o drivers.Options) (drivers.Driver, error) {
			return open(ctx, o, realMounter{})
		},
	}
}

// Driver keeps layers as datasets. It implements drivers.Driver and drivers.Filler.
type Driver struct {
	home   string
	base   string // the dataset of the store
	log    *slog.Logger
	mnt    mounter
	locks  drivers.Locks
	mounts *drivers.Mounts
	// busyWait bounds how long a dataset that is busy is waited for.
	busyWait time.Duration

	changing sync.RWMutex // read: the pool and the table are being changed alike; written: the table is read anew

	mu    sync.Mutex
	table map[string]dataset // the layers by id; guarded by mu
	held  map[string]bool    // snapshots that children are being made of; guarded by mu
}

// dataset is a layer in the pool.
type dataset struct {
	name     string
	parent   string // id, "" for none
	writable bool
	snapshot bool // of an image layer: there is one for children
}

// defaultBusyWait is for what keeps a dataset busy for a moment: a mount that another namespace copied, a scan of new devices.
const defaultBusyWait = 10 * time.Second

func open(ctx context.Context, o drivers.Options, m mounter) (*Driver, error) {
	fsname, err := parseOptions(o.Options)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(o.Home) || !filepath.IsAbs(o.Run) {
		return nil, fmt.Errorf("directories %q and %q of the driver zfs: not absolute: %w", o.Home, o.Run, drivers.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkTools(); err != nil {
		return nil, err
	}
	for _, dir := range []string{o.Home, o.Run, filepath.Join(o.Home, graphDir), filepath.Join(o.Home, unfilledDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	d := &Driver{home: o.Home, log: o.Log, mnt: m, busyWait: defaultBusyWait, held: make(map[string]bool)}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.base, err = openStore(o.Home, fsname); err != nil {
		return nil, err
	}
	if d.mounts, err = drivers.OpenMounts(filepath.Join(o.Run, "mounts")); err != nil {
		return nil, err
	}
	return d, d.load()
}

func parseOptions(options map[string]string) (fsname string, err error) {
	for key, value := range options {
		if key != optionFSName {
			return "", fmt.Errorf("option %s: the driver zfs has only %s: %w", key, optionFSName, drivers.ErrInvalid)
		}
		if value == "" || strings.ContainsAny(value, "@#") || strings.HasPrefix(value, "-") || strings.HasPrefix(value, "/") {
			return "", fmt.Errorf("option %s=%s: not the name of a dataset: %w", key, value, drivers.ErrInvalid)
		}
		fsname = value
	}
	return fsname, nil
}

// load reads the table of layers anew.
func (d *Driver) load() error {
	d.changing.Lock()
	defer d.changing.Unlock()
	list, err := zfs.Filesystems(d.base)
	if err != nil {
		return fmt.Errorf("list the layers in %s: %w", d.base, explain(err))
	}
	table := make(map[string]dataset, len(list))
	for _, ds := range list {
		if id, l, ok := d.layerOf(ds); ok {
			table[id] = l
		}
	}
	snapshots, err := zfs.Snapshots(d.base)
	if err != nil {
		return fmt.Errorf("list the snapshots in %s: %w", d.base, explain(err))
	}
	for _, s := range snapshots {
		ds, snapshot, _ := strings.Cut(s.Name, "@")
		_, id, ok := d.split(ds)
		if l, known := table[id]; ok && known && snapshot == imageSnapshot {
			l.snapshot = true
			table[id] = l
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.table = table
	return nil
}

// layerOf tells which layer a dataset is.
func (d *Driver) layerOf(ds *zfs.Dataset) (id string, l dataset, ok bool) {
	group, id, ok := d.split(ds.Name)
	if !ok {
		return "", l, false
	}
	l = dataset{name: ds.Name, writable: group == containerGroup}
	if origin, _, isClone := strings.Cut(ds.Origin, "@"); isClone {
		_, l.parent, _ = d.split(origin)
	}
	return id, l, true
}

// split takes the name of a dataset apart; ok is false if it is not of a layer.
func (d *Driver) split(dataset string) (group, id string, ok bool) {
	rest, below := strings.CutPrefix(dataset, d.base+"/")
	group, id, found := strings.Cut(rest, "/")
	ok = below && found && (group == imageGroup || group == containerGroup) && drivers.ValidID(id) == nil
	return group, id, ok
}

func (d *Driver) datasetName(id string, writable bool) string {
	group := imageGroup
	if writable {
		group = containerGroup
	}
	return d.base + "/" + group + "/" + id
}

// lookup returns a layer. The error wraps ErrNotFound if there is none.
func (d *Driver) lookup(id string) (dataset, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, ok := d.table[id]
	if !ok {
		return l, fmt.Errorf("layer %s: %w", id, drivers.ErrNotFound)
	}
	return l, nil
}

// lookupWhole is lookup for those who want the content: of a layer whose unpacking did not end well there is none.
func (d *Driver) lookupWhole(id string) (dataset, error) {
	l, err := d.lookup(id)
	if err != nil {
		return l, err
	}
	unfilled, err := d.unfilled(id)
	if err != nil {
		return l, err
	}
	if unfilled {
		return l, fmt.Errorf("layer %s was not unpacked to its end, remove it: %w", id, drivers.ErrDamaged)
	}
	return l, nil
}

func (d *Driver) unfilled(id string) (bool, error) {
	_, err := os.Lstat(d.markPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (d *Driver) markPath(id string) string { return filepath.Join(d.home, unfilledDir, id) }

func (d *Driver) mountPath(id string) string { return filepath.Join(d.home, graphDir, id) }

// hasChild says whether some layer is a clone of id.
func (d *Driver) hasChild(id string) (child string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c, l := range d.table {
		if l.parent == id {
			return c, true
		}
	}
	return "", false
}

// Name implements drivers.Driver.
func (d *Driver) Name() string { return name }

// Close implements drivers.Driver.
func (d *Driver) Close() error { return nil }
