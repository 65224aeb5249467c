package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// Differ makes layers of containerd's content store of snapshots, and snapshots of layers. It implements diff.Comparer and
// diff.Applier, with their errors, and may be used by any number of goroutines.
type Differ struct {
	store   *layerdb.Store
	content content.Store
	log     *slog.Logger
	walking diff.Comparer
	mounted diff.Applier
}

var (
	_ diff.Comparer = (*Differ)(nil)
	_ diff.Applier  = (*Differ)(nil)
)

// NewDiffer returns a differ for the snapshots of s, with the content store that layers are read from and written to.
func NewDiffer(s *Snapshotter, c content.Store) *Differ {
	return &Differ{
		store: s.store, content: c, log: s.log, walking: walking.NewWalkingDiff(c), mounted: apply.NewFileSystemApplier(c),
	}
}

// side is what mounts were recognised as: a snapshot, and the layers that show it.
type side struct {
	snapshot layerdb.Snapshot
	// top is the driver's id of the topmost layer that is mounted, "" for an empty tree.
	top string
}

// recognise finds the snapshot whose mounts these are; ok is false for others'. Nothing is locked afterwards: containerd keeps a
// snapshot of which it wants something.
func (d *Differ) recognise(ctx context.Context, mounts []mount.Mount) (s side, ok bool, err error) {
	if len(mounts) != 1 {
		return s, false, nil
	}
	id, ok := d.layerAt(topmost(mounts[0]))
	if !ok {
		return s, false, nil
	}
	name, err := d.store.SnapshotOf(ctx, id)
	if err != nil || name == "" {
		return s, false, err
	}
	s.snapshot, err = d.store.Snapshot(ctx, name)
	if errors.Is(err, drivers.ErrNotFound) {
		return s, false, nil
	}
	s.top = id
	if s.snapshot.Kind == layerdb.SnapshotView {
		// One that has a layer of its own has no parent, and shows nothing.
		s.top = ""
	}
	return s, err == nil, err
}

// topmost is the path of the topmost layer of a mount, "" for mounts that are none of ours.
func topmost(m mount.Mount) string {
	if m.Type == typeBind {
		return m.Source
	}
	path := ""
	for _, o := range m.Options {
		if upper, ok := strings.CutPrefix(o, upperOption); ok {
			return upper
		}
		if lowers, ok := strings.CutPrefix(o, lowerOption); ok {
			path, _, _ = strings.Cut(lowers, ":")
		}
	}
	return path
}

// layerAt returns the driver's id of the layer that a path leads to: the part of it below the driver's directory that names a
// snapshot's layer.
func (d *Differ) layerAt(path string) (id string, ok bool) {
	if !filepath.IsAbs(path) {
		return "", false
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", false
	}
	home, err := filepath.EvalSymlinks(d.store.DriverDir())
	if err != nil {
		return "", false
	}
	rest, ok := strings.CutPrefix(real, home+"/")
	if !ok {
		return "", false
	}
	for part := range strings.SplitSeq(rest, "/") {
		if layerdb.IsSnapshotID(part) {
			return part, true
		}
	}
	return "", false
}

// Compare implements diff.Comparer: it writes what upper has and lower has not to the content store, as a layer.
func (d *Differ) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	var c diff.Config
	for _, opt := range opts {
		if err := opt(&c); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	newer, ok, err := d.recognise(ctx, upper)
	if err != nil {
		return ocispec.Descriptor{}, classified(err)
	}
	var older side
	if ok {
		if older, ok, err = d.recognise(ctx, lower); err != nil {
			return ocispec.Descriptor{}, classified(err)
		}
	}
	// Times are only changed by containerd's own way.
	if !ok || c.SourceDateEpoch != nil || c.Compressor != nil || newer.top == "" {
		d.log.Debug("a difference is made by mounting and walking", "lower", lower, "upper", upper)
		return d.walking.Compare(ctx, lower, upper, opts...)
	}
	desc, err := d.write(ctx, c, func() (io.ReadCloser, error) {
		return drivers.DifferOf(d.store.Driver()).Diff(ctx, newer.top, older.top, &drivers.DiffOptions{Note: func(path, reason string) {
			d.log.Warn("left out of a difference", "snapshot", newer.snapshot.Name, "path", "/"+path, "reason", reason)
		}})
	})
	if err != nil {
		return ocispec.Descriptor{}, classified(fmt.Errorf("difference of snapshot %s: %w", newer.snapshot.Name, err))
	}
	return desc, nil
}

// Apply implements diff.Applier: it unpacks a layer of the content store into the snapshot whose mounts these are.
func (d *Differ) Apply(
	ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt,
) (ocispec.Descriptor, error) {
	s, ok, err := d.recognise(ctx, mounts)
	if err != nil {
		return ocispec.Descriptor{}, classified(err)
	}
	if !ok || !s.snapshot.Unpacked || s.snapshot.Kind != layerdb.SnapshotActive {
		return d.mounted.Apply(ctx, desc, mounts, opts...)
	}
	var c diff.ApplyConfig
	for _, opt := range opts {
		if err := opt(ctx, desc, &c); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	res, err := d.unpack(ctx, desc, s.top, c)
	if err != nil {
		return ocispec.Descriptor{}, classified(fmt.Errorf("unpack %s into snapshot %s: %w", desc.Digest, s.snapshot.Name, err))
	}
	return res, nil
}

// unpack unpacks a layer of the content store into the driver's layer id, and returns the descriptor of the stream.
func (d *Differ) unpack(ctx context.Context, desc ocispec.Descriptor, id string, c diff.ApplyConfig) (ocispec.Descriptor, error) {
	ra, err := d.content.ReaderAt(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer ra.Close()
	stream, failed, closeAll, err := processed(ctx, desc.MediaType, content.NewReader(ra), c)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer closeAll()
	sum := digest.Canonical.Digester()
	counted := &counter{r: io.TeeReader(stream, sum.Hash())}
	_, err = drivers.DifferOf(d.store.Driver()).ApplyDiff(ctx, id, counted, &drivers.ApplyOptions{
		// containerd compares the digest.
		AcceptUnterminated: true,
		Progress:           c.Progress,
		Note: func(path, reason string) {
			d.log.Warn("left out while unpacking", "layer", desc.Digest, "path", path, "reason", reason)
		},
	})
	if err == nil {
		_, err = io.Copy(io.Discard, counted)
	}
	if err = errors.Join(err, failed()); err != nil {
		return ocispec.Descriptor{}, err
	}
	if c.SyncFs {
		if err := d.store.Driver().Sync(ctx, id); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: counted.n, Digest: sum.Digest()}, nil
}

// processed returns a stream as it is after all of containerd's processors for its media type: decompression, decryption. failed
// tells what went wrong in them when the stream was read.
func processed(
	ctx context.Context, mediaType string, r io.Reader, c diff.ApplyConfig,
) (stream io.Reader, failed func() error, closeAll func(), err error) {
	var chain []diff.StreamProcessor
	closeAll = func() {
		for _, p := range chain {
			_ = p.Close() // what it could not do, failed tells
		}
	}
	p := diff.NewProcessorChain(mediaType, r)
	for chain = append(chain, p); p.MediaType() != ocispec.MediaTypeImageLayer; chain = append(chain, p) {
		if p, err = diff.GetProcessor(ctx, p, c.ProcessorPayloads); err != nil {
			closeAll()
			return nil, nil, nil, fmt.Errorf("media type %s: %w", mediaType, err)
		}
	}
	return p, func() error {
		var errs []error
		for _, p := range chain {
			if e, ok := p.(interface{ Err() error }); ok {
				errs = append(errs, e.Err())
			}
		}
		return errors.Join(errs...)
	}, closeAll, nil
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
