package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/layerdb"
)

// Packing says in which form layers go out.
type Packing string

// The forms. The zero value is the one in which a layer came where its bytes are kept, else gzip.
const (
	PackAsCame Packing = ""
	PackPlain  Packing = "none"
	PackGzip   Packing = "gzip"
	PackZstd   Packing = "zstd"
)

// compression is the form as tarlayer knows it; the error wraps drivers.ErrInvalid.
func (p Packing) compression() (tarlayer.Compression, error) {
	switch p {
	case PackAsCame, PackGzip:
		return tarlayer.Gzip, nil
	case PackPlain:
		return tarlayer.Plain, nil
	case PackZstd:
		return tarlayer.Zstd, nil
	}
	return tarlayer.Plain, fmt.Errorf("compression %q: %w; there are none, gzip and zstd", string(p), drivers.ErrInvalid)
}

// Result is what went out.
type Result struct {
	Image    digest.Digest `json:"image"`
	Manifest digest.Digest `json:"manifest,omitempty"`
	// Rewritten says that the manifest is not the one that came with the image, since its layers are compressed anew.
	Rewritten bool `json:"rewritten"`
}

// outgoing is an image on its way out. It has files open until close.
type outgoing struct {
	manifest  document
	config    []byte
	layers    []outgoingLayer
	rewritten bool
	scratch   []*os.File
}

// outgoingLayer is a layer in the form in which it goes out.
type outgoingLayer struct {
	desc ocispec.Descriptor
	open opener
}

func (o *outgoing) close() {
	for _, f := range o.scratch {
		f.Close()
	}
}

// pack puts an image together for going out: as it came if that can be had and is wanted, else compressed anew.
func (s *Store) pack(ctx context.Context, img Image, p Packing, report Report) (o *outgoing, err error) {
	c, err := p.compression()
	if err != nil {
		return nil, err
	}
	o = &outgoing{}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	if o.config, _, err = s.Config(ctx, img); err != nil {
		return nil, err
	}
	exact := img.Manifest != nil
	for i, l := range img.Layers {
		top := img.chain(i)
		if out, ok := s.asCame(top, l); ok && (p == PackAsCame || isPacked(l.Blob.MediaType, c)) {
			o.layers = append(o.layers, out)
			continue
		}
		exact = false
		out, err := s.packLayer(ctx, o, top, l, c, report)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.DiffID, err)
		}
		o.layers = append(o.layers, out)
	}
	if exact {
		raw, err := s.Manifest(ctx, img)
		o.manifest = document{desc: *img.Manifest, raw: raw}
		return o, err
	}
	o.rewritten = img.Manifest != nil
	return o, s.writeManifest(ctx, img, o)
}

// chain is the ChainID of the i-th layer.
func (i Image) chain(n int) layerdb.ChainID {
	ids := make([]digest.Digest, 0, n+1)
	for _, l := range i.Layers[:n+1] {
		ids = append(ids, l.DiffID)
	}
	return layerdb.ChainOf(ids...)
}

// asCame is a layer in the form in which it came in, if its bytes can be had.
func (s *Store) asCame(id layerdb.ChainID, l Layer) (out outgoingLayer, ok bool) {
	switch {
	case l.Blob == nil:
		return out, false
	case l.Blob.Digest == l.DiffID:
		return outgoingLayer{desc: *l.Blob, open: s.exporter(id)}, true
	}
	if size, ok := s.blobs.size(l.Blob.Digest); !ok || size != l.Blob.Size {
		return out, false
	}
	return outgoingLayer{desc: *l.Blob, open: func(ctx context.Context) (io.ReadCloser, error) {
		f, err := s.blobs.open(l.Blob.Digest)
		if err != nil {
			return nil, err
		}
		return verified(ctx, f, l.Blob.Digest, l.Blob.Size), nil
	}}, true
}

// isPacked says whether a media type stands for the compression.
func isPacked(mediaType string, c tarlayer.Compression) bool {
	switch c {
	case tarlayer.Gzip:
		return strings.HasSuffix(mediaType, "gzip")
	case tarlayer.Zstd:
		return strings.HasSuffix(mediaType, "zstd")
	case tarlayer.Plain:
		return strings.HasSuffix(mediaType, "tar")
	}
	return false
}

// exporter gives the exact tar stream of a layer. Closing it waits until the store has given back what it needed for that.
func (s *Store) exporter(id layerdb.ChainID) opener {
	return func(ctx context.Context) (io.ReadCloser, error) {
		export := func(ctx context.Context, w io.Writer) error { return s.layers.Export(ctx, id, w) }
		return drivers.Stream(ctx, export, func() error { return nil }), nil
	}
}

// packLayer compresses a layer into a file without a name, since its digest has to be known before it goes out.
func (s *Store) packLayer(ctx context.Context, o *outgoing, id layerdb.ChainID, l Layer, c tarlayer.Compression,
	report Report,
) (out outgoingLayer, err error) {
	mediaType, err := layerType(ocispec.MediaTypeImageManifest, c)
	if err != nil {
		return out, err
	}
	if c == tarlayer.Plain {
		out.desc = ocispec.Descriptor{MediaType: mediaType, Digest: l.DiffID, Size: l.Size}
		out.open = s.exporter(id)
		return out, nil
	}
	f, err := s.blobs.scratch()
	if err != nil {
		return out, err
	}
	o.scratch = append(o.scratch, f)
	sum := digest.SHA256.Digester()
	z, err := tarlayer.Compress(io.MultiWriter(f, sum.Hash()), c, 0)
	if err != nil {
		return out, err
	}
	r, err := s.exporter(id)(ctx)
	if err != nil {
		return out, err
	}
	defer r.Close()
	if _, err := io.Copy(z, report.counted(r, Progress{Layer: l.DiffID.String(), Phase: PhasePack, Total: l.Size})); err != nil {
		return out, errors.Join(err, z.Close())
	}
	if err := z.Close(); err != nil {
		return out, err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return out, err
	}
	out.desc = ocispec.Descriptor{MediaType: mediaType, Digest: sum.Digest(), Size: size}
	out.open = func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, 0, size)), nil
	}
	return out, nil
}

// writeManifest makes a manifest for layers in a new form. Annotations of the old one stay.
func (s *Store) writeManifest(ctx context.Context, img Image, o *outgoing) error {
	layers := make([]ocispec.Descriptor, 0, len(o.layers))
	for i, l := range o.layers {
		d := ocispec.Descriptor{MediaType: l.desc.MediaType, Digest: l.desc.Digest, Size: l.desc.Size}
		if d.MediaType == "" || strings.HasPrefix(d.MediaType, "application/vnd.docker.") {
			d.MediaType = ociLayerType(d.MediaType)
		}
		o.layers[i].desc = d
		layers = append(layers, d)
	}
	doc, err := newManifest(o.config, layers)
	if err != nil || img.Manifest == nil {
		o.manifest = doc
		return err
	}
	raw, err := s.Manifest(ctx, img)
	if err != nil {
		return err
	}
	old, err := parseManifest(raw)
	if err != nil || len(old.Annotations) == 0 {
		o.manifest = doc
		return err
	}
	m, err := parseManifest(doc.raw)
	if err != nil {
		return err
	}
	m.Annotations = maps.Clone(old.Annotations)
	if doc.raw, err = json.Marshal(m); err != nil {
		return err
	}
	doc.desc.Digest, doc.desc.Size = digest.FromBytes(doc.raw), int64(len(doc.raw))
	o.manifest = doc
	return nil
}

// ociLayerType is OCI's name for the type of a layer.
func ociLayerType(docker string) string {
	switch {
	case strings.HasSuffix(docker, "zstd"):
		return ocispec.MediaTypeImageLayerZstd
	case strings.HasSuffix(docker, "gzip"):
		return ocispec.MediaTypeImageLayerGzip
	}
	return ocispec.MediaTypeImageLayer
}

// documentOpener gives bytes in memory.
func documentOpener(raw []byte) opener {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
}
