package snapshotter

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// Names of mount types, options and drivers.
const (
	typeBind    = "bind"
	typeOverlay = "overlay"

	lowerOption = "lowerdir="
	upperOption = "upperdir="
	workOption  = "workdir="
	readOnly    = "ro"

	driverPlyfs = "plyfs"
)

// mounter makes the mounts by which containerd mounts the layers of a driver.
type mounter struct {
	drv drivers.Driver
	// planner is the driver if it stacks directories; nil if each layer shows all of its tree by itself.
	planner drivers.Planner
	// unpacks says that containerd may unpack a layer by writing the layer's directory, as it does for the mount type overlay. It needs
	// a planner.
	unpacks bool
	// sourceKey is the key of the driver's metadata that holds the source of a mount, and mountType is its type. They are set without a
	// planner.
	sourceKey, mountType string
}

// newMounter finds out how layers of the store's driver are mounted. The errors are those of New.
func newMounter(store *layerdb.Store) (m mounter, err error) {
	if strings.ContainsAny(store.Root(), ":,\\\"") || strings.ContainsFunc(store.Root(), func(r rune) bool { return r <= ' ' }) {
		return m, fmt.Errorf("store %q: a path that stands in mount options must not have colons, commas, quotes, backslashes or spaces; "+
			"choose another --root: %w", store.Root(), drivers.ErrInvalid)
	}
	m.drv = store.Driver()
	if p, ok := m.drv.(drivers.Planner); ok {
		m.planner = p
		m.unpacks, err = mayUnpack(store)
		return m, err
	}
	switch m.drv.Name() {
	case "vfs":
		m.sourceKey, m.mountType = "Dir", typeBind
	case "btrfs":
		m.sourceKey, m.mountType = "root", typeBind
	case "zfs":
		m.sourceKey, m.mountType = "dataset", "zfs"
	default:
		return m, fmt.Errorf("containerd cannot mount layers of the driver %s; use plyfs, overlay2, btrfs, zfs or vfs: %w",
			m.drv.Name(), drivers.ErrNotSupported)
	}
	return m, nil
}

// mounts returns the mounts of a snapshot.
func (m mounter) mounts(ctx context.Context, n layerdb.Snapshot, l layerdb.SnapshotLayers) ([]mount.Mount, error) {
	if m.planner == nil {
		return m.single(ctx, n, l)
	}
	p, err := m.plan(ctx, n, l)
	if err != nil {
		return nil, err
	}
	return p.mounts(n, m.drv.Name() == driverPlyfs)
}

// servable says whether this process may mount the snapshot once for all callers: its driver's mounts are served by a process, and it
// looks the same to everybody. Views are left out: their mounts are short-lived, and their layer is that of the parent.
func (m mounter) servable(n layerdb.Snapshot) bool {
	return m.drv.Name() == driverPlyfs && n.Kind == layerdb.SnapshotActive && !n.Unpacked && n.Parent != "" &&
		len(servedMaps(n.Labels)) == 0
}

// single returns the mount of a layer that shows all of its tree by itself.
func (m mounter) single(ctx context.Context, n layerdb.Snapshot, l layerdb.SnapshotLayers) ([]mount.Mount, error) {
	meta, err := m.drv.Metadata(ctx, l.Top)
	if err != nil {
		return nil, err
	}
	source := meta[m.sourceKey]
	if source == "" {
		return nil, fmt.Errorf("driver %s does not say where layer %s is: %w", m.drv.Name(), l.Top, drivers.ErrDamaged)
	}
	mode := "rw"
	if n.Kind == layerdb.SnapshotView {
		mode = readOnly
	}
	options := []string{mode}
	if m.mountType == typeBind {
		options = append(idMaps(n.Labels), mode, "rbind")
	}
	return []mount.Mount{{Type: m.mountType, Source: source, Options: options}}, nil
}

// stack is how the layers of a snapshot are mounted together.
type stack struct {
	kind        string
	upper, work string
	lowers      []string // topmost first
	options     []string // others
	// bare says that there is nothing below: one directory, upper or the only lower, shows everything.
	bare bool
}

// plan asks the driver how it would mount the snapshot, and adapts that: the upper of a view becomes its topmost lower, and of a
// snapshot that is being unpacked the layer itself, a lower for the driver, becomes the upper.
func (m mounter) plan(ctx context.Context, n layerdb.Snapshot, l layerdb.SnapshotLayers) (k stack, err error) {
	view := n.Kind == layerdb.SnapshotView
	p, err := m.planner.Plan(ctx, l.Top, &drivers.GetOptions{ReadOnly: view})
	if err != nil {
		return k, err
	}
	k.kind = p.Type
	for _, o := range p.Options {
		switch {
		case strings.HasPrefix(o, lowerOption):
			k.lowers = strings.Split(strings.TrimPrefix(o, lowerOption), ":")
		case strings.HasPrefix(o, upperOption):
			k.upper = strings.TrimPrefix(o, upperOption)
		case strings.HasPrefix(o, workOption):
			k.work = strings.TrimPrefix(o, workOption)
		case o != readOnly:
			k.options = append(k.options, o)
		}
	}
	if len(k.lowers) == 0 {
		return k, fmt.Errorf("driver %s: the plan of layer %s has no lowers: %w", m.drv.Name(), l.Top, drivers.ErrDamaged)
	}
	info, err := m.drv.Metadata(ctx, l.Top)
	if err != nil {
		return k, err
	}
	own := info["UpperDir"]
	k.bare = info["LowerDir"] == ""
	switch {
	case view && k.upper != "":
		k.lowers = append([]string{k.upper}, k.lowers...)
		k.upper, k.work = "", ""
	case view && k.bare:
		k.lowers[0] = own
	case n.Unpacked:
		// Its own layer is the topmost lower in the plan of an image layer. It is written, and never mounted.
		k.kind, k.upper, k.lowers = typeOverlay, own, k.lowers[1:]
	}
	return k, nil
}

// mounts returns the stack as containerd takes it. served says that plyfs serves the mount and maps owners itself; else the kernel
// does both.
func (k stack) mounts(n layerdb.Snapshot, served bool) ([]mount.Mount, error) {
	maps := idMaps(n.Labels)
	if k.bare {
		source, mode := k.upper, "rw"
		if n.Kind == layerdb.SnapshotView {
			source, mode = k.lowers[0], readOnly
		} else if err := ownRoot(k.upper, n.Labels); err != nil {
			return nil, err
		}
		return []mount.Mount{{Type: typeBind, Source: source, Options: append(maps, mode, "rbind")}}, nil
	}
	var options []string
	switch {
	case k.upper == "":
		options = append(options, readOnly)
	case k.work != "":
		options = append(options, workOption+k.work, upperOption+k.upper)
	default:
		options = append(options, upperOption+k.upper)
	}
	options = append(options, lowerOption+strings.Join(k.lowers, ":"))
	options = append(options, k.options...)
	if served && !n.Unpacked {
		return []mount.Mount{{Type: k.kind, Source: typeOverlay, Options: append(options, servedMaps(n.Labels)...)}}, nil
	}
	if k.upper != "" {
		if err := ownRoot(k.upper, n.Labels); err != nil {
			return nil, err
		}
	}
	return []mount.Mount{{Type: k.kind, Source: typeOverlay, Options: append(maps, options...)}}, nil
}

// idMaps are the options that have containerd 2 make the kernel's idmapped mounts; none without labels.
func idMaps(labels map[string]string) (options []string) {
	if uid, gid := labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]; uid != "" && gid != "" {
		options = append(options, "uidmap="+uid, "gidmap="+gid)
	}
	return options
}

// servedMaps are the options by which plyfs maps the owners in a mount that it serves; none without labels.
func servedMaps(labels map[string]string) (options []string) {
	for _, o := range []struct{ label, option string }{
		{snapshots.LabelSnapshotUIDMapping, "uidmapping="}, {snapshots.LabelSnapshotGIDMapping, "gidmapping="},
	} {
		if v := labels[o.label]; v != "" {
			options = append(options, o.option+strings.ReplaceAll(v, ",", ":"))
		}
	}
	return options
}

// ownRoot gives the root of a layer that is written with mapped owners to the one who is root there: the kernel maps the lowers
// of an overlay, and not its upper (cf. containerd's overlay snapshotter).
func ownRoot(dir string, labels map[string]string) error {
	uid, err := mappedRoot(labels[snapshots.LabelSnapshotUIDMapping])
	if err != nil {
		return err
	}
	gid, err := mappedRoot(labels[snapshots.LabelSnapshotGIDMapping])
	if err != nil || uid < 0 || gid < 0 {
		return err
	}
	if err := os.Lchown(dir, uid, gid); err != nil {
		return fmt.Errorf("give the root of a layer to its user: %w", err)
	}
	return nil
}

// mappedRoot is the id outside that stands for 0 inside, -1 without a map.
func mappedRoot(mapping string) (int, error) {
	if mapping == "" {
		return -1, nil
	}
	for part := range strings.SplitSeq(mapping, ",") {
		fields := strings.Split(part, ":")
		if len(fields) != 3 {
			return -1, fmt.Errorf("id mapping %q: want container-id:host-id:size: %w", part, drivers.ErrInvalid)
		}
		var n [3]uint64
		for i, f := range fields {
			var err error
			if n[i], err = strconv.ParseUint(f, 10, 32); err != nil {
				return -1, fmt.Errorf("id mapping %q: %w: %w", part, err, drivers.ErrInvalid)
			}
		}
		if n[0] == 0 && n[2] > 0 {
			return int(n[1]), nil
		}
	}
	return -1, fmt.Errorf("id mapping %q has nothing for 0: %w", mapping, drivers.ErrInvalid)
}
