package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/layerdb"
)

// PullOptions say how an image is pulled.
type PullOptions struct {
	Registry RegistryOptions
	// Platform chooses from an index; the zero value is this machine's.
	Platform ocispec.Platform
	Blobs    BlobPolicy
	// Parallel is the number of layers downloaded at once; zero means 3.
	Parallel int
	Report   Report
}

// Pull brings an image in from its registry and gives it the name. Layers that the store has are not downloaded. If the
// download breaks off, what was received is kept, and the next Pull goes on there; of the image nothing is there until all
// is. The error wraps drivers.ErrNotFound if the registry does not know the image or has none for the platform,
// ErrUnauthorized, ErrBrokenOff, layerdb.ErrDigest or ErrMalformed.
func (s *Store) Pull(ctx context.Context, n Name, o PullOptions) (Image, error) {
	img, err := s.pull(ctx, n, o)
	if err != nil {
		return img, fmt.Errorf("pull %s: %w", n.Familiar(), err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, n Name, o PullOptions) (img Image, err error) {
	if o.Platform.OS == "" {
		o.Platform = hostPlatform()
	}
	if o.Parallel <= 0 {
		o.Parallel = 3
	}
	c, err := dial(ctx, n, transport.PullScope, o.Registry)
	if err != nil {
		return img, err
	}
	defer c.close()
	in, err := c.resolve(ctx, n, o.Platform)
	if err != nil {
		return img, err
	}
	if n.Tag != "" {
		in.names = []Name{n}
	}
	img, err = s.receive(ctx, c, in, o)
	return img, errors.Join(err, s.tidy(ctx, in, o.Blobs, err))
}

// receive downloads the layers and adds the image as they come.
func (s *Store) receive(ctx context.Context, c *client, in incoming, o PullOptions) (Image, error) {
	config, err := parseConfig(in.config)
	if err != nil {
		return Image{}, err
	}
	s.adding.RLock()
	defer s.adding.RUnlock()
	ctx, cancel := context.WithCancel(ctx)
	d := &downloads{c: c, b: s.blobs, report: o.Report, slots: make(chan struct{}, o.Parallel), byDigest: make(map[digest.Digest]*download)}
	// In this order: what still downloads has to hear that nobody wants it any more.
	defer d.wg.Wait()
	defer cancel()
	for i := range in.layers {
		l := &in.layers[i]
		l.open = d.opener(l.desc)
		if o.Blobs == KeepBlobs || i >= len(config.RootFS.DiffIDs) || !s.has(ctx, config.RootFS.DiffIDs[:i+1]) {
			d.start(ctx, l.desc)
		}
	}
	return s.addLocked(ctx, in, addOptions{keep: o.Blobs, report: o.Report})
}

// has says whether the store has the topmost of the layers.
func (s *Store) has(ctx context.Context, diffIDs []digest.Digest) bool {
	_, err := s.layers.Layer(ctx, layerdb.ChainOf(diffIDs...))
	return err == nil
}

// resolve fetches the documents of the image that a name stands for on a platform.
func (c *client) resolve(ctx context.Context, n Name, p ocispec.Platform) (in incoming, err error) {
	ref := n.Tag
	if n.Digest != "" {
		ref = n.Digest.String()
	}
	doc, err := c.manifest(ctx, ref)
	if err != nil {
		return in, err
	}
	in.origin = n.Repository() + "@" + doc.desc.Digest.String()
	for depth := 0; isIndex(doc.desc.MediaType); depth++ {
		if depth > maxNesting {
			return in, fmt.Errorf("indexes are nested deeper than %d: %w", maxNesting, ErrMalformed)
		}
		index, err := parseIndex(doc.raw)
		if err != nil {
			return in, err
		}
		fits, err := choosePlatform(index.Manifests, p)
		if err != nil {
			return in, err
		}
		if doc, err = c.manifest(ctx, fits[0].Digest.String()); err != nil {
			return in, err
		}
	}
	in.manifest = doc
	m, err := parseManifest(doc.raw)
	if err != nil {
		return in, err
	}
	if in.config, err = c.document(ctx, m.Config); err != nil {
		return in, fmt.Errorf("config: %w", err)
	}
	for _, d := range m.Layers {
		in.layers = append(in.layers, incomingLayer{desc: d})
	}
	return in, nil
}

// downloads are the blobs of one image on their way, some at once, the lowest layer first.
type downloads struct {
	c      *client
	b      *blobs
	report Report
	slots  chan struct{}
	wg     sync.WaitGroup

	mu       sync.Mutex
	byDigest map[digest.Digest]*download // guarded by mu
}

// download is one of them; done is closed when err is final.
type download struct {
	done chan struct{}
	err  error
}

// start begins a download, unless it has begun.
func (d *downloads) start(ctx context.Context, desc ocispec.Descriptor) *download {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.byDigest[desc.Digest]; l != nil {
		return l
	}
	l := &download{done: make(chan struct{})}
	d.byDigest[desc.Digest] = l
	d.wg.Go(func() {
		defer close(l.done)
		select {
		case d.slots <- struct{}{}:
			defer func() { <-d.slots }()
			l.err = d.c.fetch(ctx, d.b, desc, d.report)
		case <-ctx.Done():
			l.err = ctx.Err()
		}
	})
	return l
}

// opener waits for a download and opens what it brought. It was compared with its digest on the way.
func (d *downloads) opener(desc ocispec.Descriptor) opener {
	return func(ctx context.Context) (io.ReadCloser, error) {
		l := d.start(ctx, desc)
		select {
		case <-l.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if l.err != nil {
			return nil, l.err
		}
		f, err := d.b.open(desc.Digest)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("layer %s was removed while it was pulled: %w", desc.Digest, ErrBrokenOff), err)
		}
		return f, nil
	}
}
