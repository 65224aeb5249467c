package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	v1partial "github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// PushOptions say how an image is pushed.
type PushOptions struct {
	Registry RegistryOptions
	Packing  Packing
	Report   Report
}

// Push uploads an image under a name, but for the layers that the registry has. If the blobs were kept, or the layers are
// not compressed, what arrives is byte for byte what was pulled; else Result.Rewritten says that the manifest, and so its
// digest, is new. The error wraps ErrUnauthorized, or drivers.ErrInvalid for a name without a tag.
func (s *Store) Push(ctx context.Context, img Image, to Name, o PushOptions) (r Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("push %s: %w", to.Familiar(), err)
		}
	}()
	if to.Tag == "" || to.Digest != "" {
		return r, fmt.Errorf("the name to push to is one with a tag, and without a digest: %w", drivers.ErrInvalid)
	}
	c, err := dial(ctx, to, transport.PushScope, o.Registry)
	if err != nil {
		return r, err
	}
	defer c.close()
	out, err := s.pack(ctx, img, o.Packing, o.Report)
	if err != nil {
		return r, err
	}
	defer out.close()
	p := &pushed{out: out}
	for _, l := range out.layers {
		p.layers = append(p.layers, &pushedLayer{ctx: ctx, l: l, report: o.Report})
	}
	ref := c.repo.Tag(to.Tag)
	if err := remote.Write(ref, p, remote.WithTransport(c.rt), remote.WithContext(ctx), remote.WithNondistributable); err != nil {
		return r, registryError(ref.String(), err)
	}
	r = Result{Image: img.ID, Manifest: out.manifest.desc.Digest, Rewritten: out.rewritten}
	return r, s.remember(ctx, img.ID, to.Repository()+"@"+r.Manifest.String())
}

// remember records that a registry has the image.
func (s *Store) remember(ctx context.Context, id digest.Digest, at string) error {
	s.records.Lock()
	defer s.records.Unlock()
	img, err := s.get(ctx, id)
	if err != nil || slices.Contains(img.Digests, at) {
		return err
	}
	img.Digests = append(img.Digests, at)
	h, err := img.holder()
	if err != nil {
		return err
	}
	return s.layers.Change(ctx, layerdb.Update{Hold: []layerdb.Holder{h}})
}

// pushed is an image as the library uploads it.
type pushed struct {
	out    *outgoing
	layers []v1.Layer
}

var _ v1.Image = (*pushed)(nil)

// Layers implements v1.Image.
func (p *pushed) Layers() ([]v1.Layer, error) { return p.layers, nil }

// MediaType implements v1.Image.
func (p *pushed) MediaType() (types.MediaType, error) {
	return types.MediaType(p.out.manifest.desc.MediaType), nil
}

// Size implements v1.Image.
func (p *pushed) Size() (int64, error) { return p.out.manifest.desc.Size, nil }

// ConfigName implements v1.Image.
func (p *pushed) ConfigName() (v1.Hash, error) {
	return v1.NewHash(digest.FromBytes(p.out.config).String())
}

// ConfigFile implements v1.Image.
func (p *pushed) ConfigFile() (*v1.ConfigFile, error) { return v1partial.ConfigFile(p) }

// RawConfigFile implements v1.Image.
func (p *pushed) RawConfigFile() ([]byte, error) { return p.out.config, nil }

// Digest implements v1.Image.
func (p *pushed) Digest() (v1.Hash, error) { return v1.NewHash(p.out.manifest.desc.Digest.String()) }

// Manifest implements v1.Image.
func (p *pushed) Manifest() (*v1.Manifest, error) {
	return v1.ParseManifest(bytes.NewReader(p.out.manifest.raw))
}

// RawManifest implements v1.Image.
func (p *pushed) RawManifest() ([]byte, error) { return p.out.manifest.raw, nil }

// LayerByDigest implements v1.Image.
func (p *pushed) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	for _, l := range p.layers {
		if d, err := l.Digest(); err == nil && d == h {
			return l, nil
		}
	}
	if h.String() == digest.FromBytes(p.out.config).String() {
		return v1partial.ConfigLayer(p)
	}
	return nil, fmt.Errorf("layer %s: %w", h, drivers.ErrNotFound)
}

// LayerByDiffID implements v1.Image.
func (p *pushed) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	return nil, fmt.Errorf("layer by DiffID %s: %w", h, drivers.ErrNotSupported)
}

// pushedLayer is a layer as the library uploads it.
type pushedLayer struct {
	ctx    context.Context //nolint:containedctx // the library's interface passes none
	l      outgoingLayer
	report Report
}

var _ v1.Layer = (*pushedLayer)(nil)

// Digest implements v1.Layer.
func (p *pushedLayer) Digest() (v1.Hash, error) { return v1.NewHash(p.l.desc.Digest.String()) }

// DiffID implements v1.Layer.
func (p *pushedLayer) DiffID() (v1.Hash, error) {
	return v1.Hash{}, fmt.Errorf("DiffID of an uploaded layer: %w", drivers.ErrNotSupported)
}

// Compressed implements v1.Layer.
func (p *pushedLayer) Compressed() (io.ReadCloser, error) {
	r, err := p.l.open(p.ctx)
	if err != nil {
		return nil, err
	}
	state := Progress{Layer: p.l.desc.Digest.String(), Phase: PhaseUpload, Total: p.l.desc.Size}
	return closing{p.report.counted(r, state), r.Close}, nil
}

// Uncompressed implements v1.Layer.
func (p *pushedLayer) Uncompressed() (io.ReadCloser, error) {
	return nil, fmt.Errorf("content of an uploaded layer: %w", drivers.ErrNotSupported)
}

// Size implements v1.Layer.
func (p *pushedLayer) Size() (int64, error) { return p.l.desc.Size, nil }

// MediaType implements v1.Layer.
func (p *pushedLayer) MediaType() (types.MediaType, error) {
	return types.MediaType(p.l.desc.MediaType), nil
}
