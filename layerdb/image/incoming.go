package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// incoming is an image on its way into the store.
type incoming struct {
	names []Name
	// origin is where a registry has it, by digest; empty if it comes from elsewhere.
	origin string
	// manifest has no bytes if none came with the image.
	manifest document
	config   []byte
	layers   []incomingLayer // the lowest first
}

// opener returns a blob or a document from its beginning, each time that it is called. The caller closes it.
type opener func(ctx context.Context) (io.ReadCloser, error)

// incomingLayer is a layer in whatever compression.
type incomingLayer struct {
	// desc is of the blob; without a digest where none is known.
	desc ocispec.Descriptor
	// open gives the blob. Reading to the end, or closing, fails if it is not what desc says.
	open opener
}

// blobs are the digests of all that belongs to the image.
func (in *incoming) blobs() []digest.Digest {
	all := []digest.Digest{digest.FromBytes(in.config)}
	if in.manifest.raw != nil {
		all = append(all, in.manifest.desc.Digest)
	}
	for _, l := range in.layers {
		if l.desc.Digest != "" {
			all = append(all, l.desc.Digest)
		}
	}
	return all
}

// verifiedBlob compares a blob with its descriptor, at the end of its reading or at the latest when it is closed: who
// unpacks it may not read what is behind the end of the tar file.
type verifiedBlob struct {
	*verifier
	c   io.Closer
	err error
}

func verified(ctx context.Context, r io.ReadCloser, d digest.Digest, size int64) *verifiedBlob {
	return &verifiedBlob{verifier: newVerifier(d, size, contextReader{ctx, r}), c: r}
}

// Read implements io.Reader.
func (v *verifiedBlob) Read(p []byte) (int, error) {
	n, err := v.verifier.Read(p)
	if err != nil {
		v.err = err
	}
	return n, err
}

// Close reads the rest.
func (v *verifiedBlob) Close() error {
	if v.err == nil {
		_, _ = io.Copy(io.Discard, v)
	}
	err := v.err
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, v.c.Close())
}

// leaseTime is how long layers that an interrupted import or pull unpacked are kept, unless a GC of this package drops the lease before.
const leaseTime = 24 * time.Hour

// leasePrefix tells the leases of this package from those of others.
const leasePrefix = "image-"

// lease is a holder for layers of an image that is not there yet.
func lease() layerdb.Holder {
	return layerdb.Holder{Kind: kindLease, Key: leasePrefix + randomKey(), Expires: time.Now().Add(leaseTime)}
}

// addOptions say how an image is added.
type addOptions struct {
	keep   BlobPolicy
	report Report
}

// add unpacks the layers that the store does not have, and publishes the image. After an error no image is there; see tidy for blobs,
// and forget for layers.
func (s *Store) add(ctx context.Context, in incoming, o addOptions) (Image, error) {
	s.adding.RLock()
	img, err := s.addLocked(ctx, in, o)
	s.adding.RUnlock()
	return img, errors.Join(err, s.tidy(ctx, in, o.keep, err))
}

// tidy removes the blobs that nobody needs after an addition, which ended with err.
func (s *Store) tidy(ctx context.Context, in incoming, keep BlobPolicy, err error) error {
	if err != nil && in.origin != "" || err == nil && keep == KeepBlobs {
		// What was downloaded serves the next try.
		return nil
	}
	return s.collectBlobs(context.WithoutCancel(ctx), in.blobs())
}

// addLocked is add without tidy.
//
// Precondition: s.adding is held for reading.
func (s *Store) addLocked(ctx context.Context, in incoming, o addOptions) (img Image, err error) {
	config, err := parseConfig(in.config)
	if err != nil {
		return img, err
	}
	if got, want := len(in.layers), len(config.RootFS.DiffIDs); got != want {
		return img, fmt.Errorf("%d layers, and %d DiffIDs in the config: %w", got, want, ErrMalformed)
	}
	hold := lease()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.drop(ctx, hold.Ref()))
		}
	}()
	if err := s.unpack(ctx, in, config.RootFS.DiffIDs, &hold, o); err != nil {
		if in.origin == "" {
			err = errors.Join(err, s.forget(context.WithoutCancel(ctx), config.RootFS.DiffIDs))
		}
		return img, err
	}
	if img, err = s.describe(ctx, in, config); err != nil {
		return img, err
	}
	img.KeepsBlobs = o.keep == KeepBlobs
	return s.publish(ctx, img, in, hold.Ref())
}

// forget removes layers that an import unpacked before it failed, and that nobody else uses. A pull leaves them, as it leaves
// what it downloaded: the next one goes on from there.
func (s *Store) forget(ctx context.Context, diffIDs []digest.Digest) error {
	for n := len(diffIDs); n > 0; n-- {
		id := layerdb.ChainOf(diffIDs[:n]...)
		if _, err := s.layers.Layer(ctx, id); errors.Is(err, drivers.ErrNotFound) {
			continue
		}
		// A layer goes with its last user, so it has to have one.
		hold := lease()
		hold.Layers = []layerdb.ChainID{id}
		err := s.layers.Hold(ctx, hold)
		if errors.Is(err, drivers.ErrNotFound) {
			return nil
		}
		return errors.Join(err, s.drop(ctx, hold.Ref()))
	}
	return nil
}

// unpack registers the layers, and keeps their blobs if asked to.
func (s *Store) unpack(ctx context.Context, in incoming, diffIDs []digest.Digest, hold *layerdb.Holder, o addOptions) error {
	if len(diffIDs) == 0 {
		return nil
	}
	var mu sync.Mutex
	var bad []error // guarded by mu
	sources := make([]layerdb.Source, len(diffIDs))
	for i, l := range in.layers {
		label := diffIDs[i].String()
		if l.desc.Digest != "" {
			label = l.desc.Digest.String()
		}
		if o.keep == KeepBlobs && l.desc.Digest != "" {
			if err := s.keepBlob(ctx, l); err != nil {
				return fmt.Errorf("layer %d (%s): %w", i, diffIDs[i], err)
			}
		}
		if _, err := s.layers.Layer(ctx, layerdb.ChainOf(diffIDs[:i+1]...)); err == nil {
			o.report.say(Progress{Layer: label, Phase: PhaseExists})
		}
		sources[i] = layerdb.Source{
			DiffID: diffIDs[i],
			Open: func(ctx context.Context) (io.ReadCloser, error) {
				r, err := l.open(ctx)
				if err != nil {
					return nil, err
				}
				c := o.report.counted(r, Progress{Layer: label, Phase: PhaseUnpack, Total: l.desc.Size})
				return closing{c, func() error {
					err := r.Close()
					if err != nil {
						mu.Lock()
						bad = append(bad, err)
						mu.Unlock()
					}
					return err
				}}, nil
			},
		}
	}
	if _, err := s.layers.RegisterAll(ctx, sources, layerdb.RegisterAllOptions{Hold: hold}); err != nil {
		return err
	}
	// Layers that are what their DiffIDs promise may still have come in a blob that is not what its digest promises.
	mu.Lock()
	defer mu.Unlock()
	for i := range in.layers {
		o.report.say(Progress{Layer: sources[i].DiffID.String(), Phase: PhaseDone})
	}
	return errors.Join(bad...)
}

// closing is a reader that is closed by a function.
type closing struct {
	io.Reader
	close func() error
}

// Close implements io.Closer.
func (c closing) Close() error { return c.close() }

// keepBlob stores the compressed form of a layer.
func (s *Store) keepBlob(ctx context.Context, l incomingLayer) error {
	if _, ok := s.blobs.size(l.desc.Digest); ok {
		return nil
	}
	r, err := l.open(ctx)
	if err != nil {
		return err
	}
	if err := s.blobs.put(ctx, l.desc.Digest, l.desc.Size, r); err != nil {
		r.Close()
		return err
	}
	return r.Close()
}

// describe makes the record of an image, and stores its documents.
func (s *Store) describe(ctx context.Context, in incoming, config ocispec.Image) (img Image, err error) {
	img = Image{
		Top: layerdb.ChainOf(config.RootFS.DiffIDs...), Platform: platformString(config.Platform), Added: time.Now().UTC(),
	}
	if config.Created != nil {
		img.Created = config.Created.UTC()
	}
	if img.ID, err = s.blobs.putBytes(ctx, in.config); err != nil {
		return img, err
	}
	if in.manifest.raw != nil {
		desc := in.manifest.desc
		if err := s.blobs.put(ctx, desc.Digest, desc.Size, bytes.NewReader(in.manifest.raw)); err != nil {
			return img, err
		}
		img.Manifest = &desc
	}
	if in.origin != "" {
		img.Digests = []string{in.origin}
	}
	for i, d := range config.RootFS.DiffIDs {
		l, err := s.layers.Layer(ctx, layerdb.ChainOf(config.RootFS.DiffIDs[:i+1]...))
		if err != nil {
			return img, err
		}
		img.Size += l.Size
		il := Layer{DiffID: d, Size: l.Size}
		if in.layers[i].desc.Digest != "" {
			blob := in.layers[i].desc
			il.Blob = &ocispec.Descriptor{MediaType: blob.MediaType, Digest: blob.Digest, Size: blob.Size}
		}
		img.Layers = append(img.Layers, il)
	}
	return img, nil
}

// publish makes the image, its names, and the end of the lease one transaction.
func (s *Store) publish(ctx context.Context, img Image, in incoming, leased layerdb.Ref) (Image, error) {
	s.records.Lock()
	defer s.records.Unlock()
	old, err := s.get(ctx, img.ID)
	if err == nil {
		img = merge(old, img)
	}
	h, err := img.holder()
	if err != nil {
		return img, err
	}
	u := layerdb.Update{Hold: []layerdb.Holder{h}}
	for _, n := range in.names {
		u.Hold = append(u.Hold, nameHolder(n, img.ID))
	}
	if _, err := s.layers.Holder(ctx, leased); err == nil {
		u.Release = append(u.Release, leased)
	}
	if err := s.layers.Change(ctx, u); err != nil {
		return img, fmt.Errorf("image %s: %w", img.ID, err)
	}
	return s.get(ctx, img.ID)
}

// merge is an image that came in again: what the first coming told stays, unless the second tells better.
func merge(old, img Image) Image {
	for _, d := range old.Digests {
		if !slices.Contains(img.Digests, d) {
			img.Digests = append(img.Digests, d)
		}
	}
	if img.Manifest == nil {
		img.Manifest, img.Layers = old.Manifest, old.Layers
	}
	img.KeepsBlobs = img.KeepsBlobs || old.KeepsBlobs
	img.Added = old.Added
	return img
}
