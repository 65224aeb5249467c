package snapshotter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// compressionOf is how a layer of this media type is compressed.
func compressionOf(mediaType string) (compression.Compression, error) {
	switch mediaType {
	case ocispec.MediaTypeImageLayer:
		return compression.Uncompressed, nil
	case ocispec.MediaTypeImageLayerGzip:
		return compression.Gzip, nil
	case ocispec.MediaTypeImageLayerZstd:
		return compression.Zstd, nil
	}
	return compression.Unknown, fmt.Errorf("media type %s: a difference is written as %s, or with +gzip or +zstd: %w",
		mediaType, ocispec.MediaTypeImageLayer, errdefs.ErrNotImplemented)
}

// write writes a stream to the content store, in the media type that c wants (gzip if it wants none) and labelled with its digest, as
// containerd's walking differ does it. What was written is aborted if it fails, unless the caller named the upload.
func (d *Differ) write(ctx context.Context, c diff.Config, open func() (io.ReadCloser, error)) (_ ocispec.Descriptor, err error) {
	if c.MediaType == "" {
		c.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	form, err := compressionOf(c.MediaType)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	named := c.Reference != ""
	if !named {
		c.Reference = "plyfs-diff-" + rand.Text()
	}
	w, err := d.content.Writer(ctx, content.WithRef(c.Reference), content.WithDescriptor(ocispec.Descriptor{MediaType: c.MediaType}))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("begin to write to the content store: %w", err)
	}
	defer func() {
		cerr := w.Close()
		if err == nil || named {
			err = errors.Join(err, cerr)
			return
		}
		if aerr := d.content.Abort(context.WithoutCancel(ctx), c.Reference); aerr != nil && !errdefs.IsNotFound(aerr) {
			d.log.Warn("an unfinished upload stays in the content store", "ref", c.Reference, "error", aerr)
		}
	}()
	if named {
		// What an interrupted attempt of that name wrote.
		if err := w.Truncate(0); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	stream, err := open()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	sum, err := compressTo(w, stream, form)
	if err = errors.Join(err, stream.Close()); err != nil {
		return ocispec.Descriptor{}, err
	}
	return d.commit(ctx, w, c, sum)
}

// compressTo copies a stream to w, compressed, and returns the digest that it has uncompressed.
func compressTo(w io.Writer, stream io.Reader, form compression.Compression) (digest.Digest, error) {
	sum := digest.Canonical.Digester()
	if form == compression.Uncompressed {
		_, err := io.Copy(io.MultiWriter(w, sum.Hash()), stream)
		return sum.Digest(), err
	}
	z, err := compression.CompressStream(w, form)
	if err != nil {
		return "", fmt.Errorf("compress: %w", err)
	}
	_, err = io.Copy(io.MultiWriter(z, sum.Hash()), stream)
	return sum.Digest(), errors.Join(err, z.Close())
}

// commit ends an upload. The same content may be there already, and without the label.
func (d *Differ) commit(ctx context.Context, w content.Writer, c diff.Config, sum digest.Digest) (ocispec.Descriptor, error) {
	marks := maps.Clone(c.Labels)
	if marks == nil {
		marks = make(map[string]string)
	}
	marks[labels.LabelUncompressed] = sum.String()
	id := w.Digest()
	if err := w.Commit(ctx, 0, id, content.WithLabels(marks)); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, fmt.Errorf("commit %s to the content store: %w", id, err)
	}
	info, err := d.content.Info(ctx, id)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("look for %s in the content store: %w", id, err)
	}
	if info.Labels[labels.LabelUncompressed] == "" {
		if info.Labels == nil {
			info.Labels = make(map[string]string)
		}
		info.Labels[labels.LabelUncompressed] = sum.String()
		if _, err := d.content.Update(ctx, info, "labels."+labels.LabelUncompressed); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("label %s in the content store: %w", id, err)
		}
	}
	return ocispec.Descriptor{MediaType: c.MediaType, Size: info.Size, Digest: info.Digest}, nil
}
