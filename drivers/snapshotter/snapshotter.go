package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// Options are options of a Snapshotter; the zero value stands for none.
type Options struct {
	// Durable says what is on disk when Commit returns.
	Durable layerdb.Durability
	// Served has Mounts mount a snapshot of the driver plyfs in this process, and return a bind mount of that, for callers that see the
	// mounts of this process. Others mount it themselves.
	Served bool
	// Log takes what is worth knowing; nil discards.
	Log *slog.Logger
}

// Snapshotter keeps containerd's snapshots in a store. It implements snapshots.Snapshotter and snapshots.Cleaner, with their errors,
// and may be used by any number of goroutines.
type Snapshotter struct {
	store  *layerdb.Store
	opt    Options
	log    *slog.Logger
	mounts mounter
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New returns a snapshotter on an open store, which Close closes. The error wraps drivers.ErrNotSupported for a driver of which
// containerd cannot mount layers, and drivers.ErrInvalid for a store whose path cannot stand in mount options.
func New(store *layerdb.Store, o Options) (*Snapshotter, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m, err := newMounter(store)
	if err != nil {
		return nil, err
	}
	return &Snapshotter{store: store, opt: o, log: o.Log, mounts: m}, nil
}

// Close implements snapshots.Snapshotter: it closes the store. Mounts stay.
func (s *Snapshotter) Close() error { return s.store.Close() }

// Stat implements snapshots.Snapshotter.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	n, err := s.store.Snapshot(ctx, key)
	if err != nil {
		return snapshots.Info{}, classified(err)
	}
	return infoOf(n), nil
}

func infoOf(n layerdb.Snapshot) snapshots.Info {
	return snapshots.Info{
		Kind: snapshots.ParseKind(string(n.Kind)), Name: n.Name, Parent: n.Parent, Labels: n.Labels,
		Created: n.Created, Updated: n.Updated,
	}
}

// Update implements snapshots.Snapshotter. Of a snapshot only the labels can be changed.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	n, err := s.store.RelabelSnapshot(ctx, info.Name, func(has map[string]string) (map[string]string, error) {
		return relabel(has, info.Labels, fieldpaths)
	})
	if err != nil {
		return snapshots.Info{}, classified(err)
	}
	return infoOf(n), nil
}

// relabel returns the labels has with those that paths name taken from wanted; an empty one is taken away. Without paths all count.
func relabel(has, wanted map[string]string, paths []string) (map[string]string, error) {
	if len(paths) == 0 {
		paths = []string{"labels"}
	}
	for _, path := range paths {
		if path == "labels" {
			has = maps.Clone(wanted)
			continue
		}
		label, ok := strings.CutPrefix(path, "labels.")
		if !ok {
			return nil, fmt.Errorf("field %s cannot be changed, only labels can: %w", path, drivers.ErrInvalid)
		}
		if has == nil {
			has = make(map[string]string)
		}
		has[label] = wanted[label]
	}
	maps.DeleteFunc(has, func(_, value string) bool { return value == "" })
	return has, nil
}

// Usage implements snapshots.Snapshotter. Only that of an active snapshot is counted when it is asked for.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	u, err := s.store.SnapshotUsage(ctx, key)
	if err != nil {
		return snapshots.Usage{}, classified(err)
	}
	return snapshots.Usage{Inodes: u.Inodes, Size: u.Bytes}, nil
}

// Prepare implements snapshots.Snapshotter. The label containerd.io/snapshot/max-size becomes a quota where the driver has any.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	labels, _, err := optionsOf(opts)
	if err != nil {
		return nil, classified(err)
	}
	o := layerdb.SnapshotOptions{Kind: layerdb.SnapshotActive, Labels: labels}
	if isUnpack(key) && s.mounts.unpacks {
		o.Content = layerdb.SnapshotUnpacked
	} else if o.Quota, err = quotaOf(labels); err != nil {
		return nil, classified(err)
	}
	return s.create(ctx, key, parent, o)
}

// View implements snapshots.Snapshotter.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	labels, _, err := optionsOf(opts)
	if err != nil {
		return nil, classified(err)
	}
	return s.create(ctx, key, parent, layerdb.SnapshotOptions{Kind: layerdb.SnapshotView, Labels: labels})
}

func (s *Snapshotter) create(ctx context.Context, key, parent string, o layerdb.SnapshotOptions) ([]mount.Mount, error) {
	_, err := s.store.CreateSnapshot(ctx, key, parent, o)
	if errors.Is(err, drivers.ErrNotSupported) && !o.Quota.IsZero() {
		s.log.Info("a snapshot's size is not bounded", "snapshot", key, "error", err)
		o.Quota = drivers.Quota{}
		_, err = s.store.CreateSnapshot(ctx, key, parent, o)
	}
	if err != nil {
		return nil, classified(err)
	}
	// Nothing is mounted yet, even with Options.Served: containerd calls Mounts when it starts a container, if it ever does.
	mounts, err := s.plan(ctx, key)
	if err != nil {
		// containerd takes it that there is no snapshot, and would never remove it.
		return nil, errors.Join(classified(err), s.store.RemoveSnapshot(context.WithoutCancel(ctx), key))
	}
	return mounts, nil
}

// optionsOf returns what the options say.
func optionsOf(opts []snapshots.Opt) (labels map[string]string, parent string, err error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, "", err
		}
	}
	maps.DeleteFunc(info.Labels, func(_, value string) bool { return value == "" })
	return info.Labels, info.Parent, nil
}

// isUnpack says whether containerd is about to unpack a layer into the snapshot: the last part of its key begins with extract-. In
// front of that a proxy plugin gets the namespace and a number.
func isUnpack(key string) bool {
	return strings.HasPrefix(key[strings.LastIndexByte(key, '/')+1:], snapshots.UnpackKeyPrefix+"-")
}

func quotaOf(labels map[string]string) (q drivers.Quota, err error) {
	size, ok := labels[snapshots.LabelSnapshotMaxSize]
	if !ok {
		return q, nil
	}
	if q.Bytes, err = strconv.ParseInt(size, 10, 64); err != nil || q.Bytes < 0 {
		return q, fmt.Errorf("label %s=%q is no number of bytes: %w", snapshots.LabelSnapshotMaxSize, size, drivers.ErrInvalid)
	}
	return q, nil
}

// Mounts implements snapshots.Snapshotter. It may be called as often as one likes, and what it says stays true until the snapshot is
// committed or removed.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := s.serve(ctx, key)
	if mounts != nil || err != nil {
		return mounts, classified(err)
	}
	mounts, err = s.plan(ctx, key)
	return mounts, classified(err)
}

// serve mounts a snapshot in this process and returns a bind mount of it, if Options.Served and mounter.servable allow that and the
// caller sees it. Without Options.Served it does so, too, if the snapshot is mounted here already: a second server of the same upper
// would show old content. Else mounts is nil, and the caller has to mount by itself.
func (s *Snapshotter) serve(ctx context.Context, key string) (mounts []mount.Mount, err error) {
	servable, mounted := false, false
	err = s.store.UseSnapshot(ctx, key, func(n layerdb.Snapshot, _ layerdb.SnapshotLayers) error {
		servable, mounted = s.mounts.servable(n), s.store.SnapshotIsMounted(n)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !servable || !(s.opt.Served || mounted) || !callerSees(ctx) {
		if mounted {
			err = s.store.UnmountSnapshot(ctx, key)
		}
		return nil, err
	}
	root, err := s.store.MountSnapshot(ctx, key)
	switch {
	case err == nil:
		return []mount.Mount{{Type: typeBind, Source: root, Options: []string{"rbind", "rw"}}}, nil
	case ctx.Err() != nil || errors.Is(err, drivers.ErrNotFound):
		return nil, err
	case errors.Is(err, drivers.ErrInUse):
		s.log.Info("a snapshot that is mounted by others is not mounted here", "snapshot", key, "error", err)
	default: // it may be that only containerd may mount; if not, it says why
		s.log.Warn("containerd has to mount a snapshot", "snapshot", key, "error", err)
	}
	return nil, nil
}

// plan says how a snapshot is mounted.
func (s *Snapshotter) plan(ctx context.Context, key string) (mounts []mount.Mount, err error) {
	err = s.store.UseSnapshot(ctx, key, func(n layerdb.Snapshot, l layerdb.SnapshotLayers) error {
		if n.Kind == layerdb.SnapshotCommitted {
			return fmt.Errorf("snapshot %s is committed, and not to be mounted; make a view of it: %w", key, drivers.ErrInUse)
		}
		mounts, err = s.mounts.mounts(ctx, n, l)
		return err
	})
	return mounts, err
}

// Commit implements snapshots.Snapshotter. It does not take a parent: it does not have the capability rebase.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	labels, parent, err := optionsOf(opts)
	if err != nil {
		return classified(err)
	}
	if parent != "" {
		n, err := s.store.Snapshot(ctx, key)
		if err == nil && n.Parent != parent {
			err = fmt.Errorf("commit snapshot %s as %s: its parent is %q and cannot become %s: %w", key, name, n.Parent, parent,
				drivers.ErrInvalid)
		}
		if err != nil {
			return classified(err)
		}
	}
	_, err = s.store.CommitSnapshot(ctx, name, key, layerdb.SnapshotCommit{Labels: labels, Durable: s.opt.Durable})
	return classified(err)
}

// Remove implements snapshots.Snapshotter.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	return classified(s.store.RemoveSnapshot(ctx, key))
}

// Walk implements snapshots.Snapshotter. fn may use the snapshotter.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filter ...string) error {
	wanted, err := filters.ParseAll(filter...)
	if err != nil {
		return classified(fmt.Errorf("filter: %w: %w", err, drivers.ErrInvalid))
	}
	all, err := s.store.Snapshots(ctx)
	if err != nil {
		return classified(err)
	}
	for _, n := range all {
		if !wanted.Match(fields(n)) {
			continue
		}
		if err := fn(ctx, infoOf(n)); err != nil {
			return err
		}
	}
	return nil
}

// fields are what filters see of a snapshot.
func fields(n layerdb.Snapshot) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "kind":
			return string(n.Kind), true
		case "name":
			return n.Name, true
		case "parent":
			return n.Parent, true
		case "labels":
			value, ok := n.Labels[strings.Join(path[1:], ".")]
			return value, ok
		}
		return "", false
	})
}

// Cleanup implements snapshots.Cleaner: it removes what is left of snapshots that were being made or removed when a process
// died, or that could not be removed.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	n, err := s.store.CleanSnapshots(ctx)
	if n > 0 {
		s.log.Info("leftovers of snapshots are removed", "snapshots", n)
	}
	return classified(err)
}
