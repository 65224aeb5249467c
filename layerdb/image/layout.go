package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
)

// containerdName is the annotation of an index in which containerd and docker put the whole name of an image; in the
// standard one docker puts the tag alone.
const containerdName = "io.containerd.image.name"

// maxNesting bounds indexes within indexes.
const maxNesting = 4

// layout is an OCI image layout in a bundle.
type layout struct {
	b        bundle
	platform ocispec.Platform
}

// isLayout says whether the bundle claims to be an OCI image layout of a known version.
func isLayout(b bundle) (bool, error) {
	raw, err := readDocument(b, ocispec.ImageLayoutFile)
	if errors.Is(err, drivers.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var l ocispec.ImageLayout
	if err := json.Unmarshal(raw, &l); err != nil {
		return false, fmt.Errorf("%s: %w: %w", ocispec.ImageLayoutFile, err, ErrMalformed)
	}
	if !strings.HasPrefix(l.Version, "1.") {
		return false, fmt.Errorf("%s: version %q of the layout is not known: %w", ocispec.ImageLayoutFile, l.Version,
			drivers.ErrNotSupported)
	}
	return true, nil
}

// images lists what the index has for the platform. Digests of documents are compared here, those of layers when they are
// unpacked.
func (l *layout) images() ([]incoming, error) {
	raw, err := readDocument(l.b, ocispec.ImageIndexFile)
	if err != nil {
		return nil, fmt.Errorf("OCI layout: %w: %w", err, ErrMalformed)
	}
	index, err := parseIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	// Only what is named alike is several platforms of one image.
	groups := make(map[string][]ocispec.Descriptor)
	var order []string
	for _, d := range index.Manifests {
		name := nameOf(d)
		if name == "" && d.Platform == nil {
			name = "\x00" + d.Digest.String()
		}
		if groups[name] == nil {
			order = append(order, name)
		}
		groups[name] = append(groups[name], d)
	}
	var all []incoming
	for _, name := range order {
		in, err := l.choose(groups[name], 0)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
		}
		if in.names, err = namesOf(name); err != nil {
			return nil, err
		}
		all = append(all, in)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: %w: %w", ocispec.ImageIndexFile, errNoImage, ErrMalformed)
	}
	return all, nil
}

// nameOf is the name that an entry of an index has for people; empty for none.
func nameOf(d ocispec.Descriptor) string {
	if name := d.Annotations[containerdName]; name != "" {
		return name
	}
	return d.Annotations[ocispec.AnnotationRefName]
}

// namesOf reads a name of an index. A tag alone, such as "latest", names no image.
func namesOf(name string) ([]Name, error) {
	if name == "" || strings.HasPrefix(name, "\x00") || !strings.ContainsAny(name, ":/") {
		return nil, nil
	}
	n, err := ParseName(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", ocispec.ImageIndexFile, err, ErrMalformed)
	}
	if n.Tag == "" {
		return nil, nil
	}
	n.Digest = ""
	return []Name{n}, nil
}

// choose reads the image for the platform among the entries of an index.
func (l *layout) choose(entries []ocispec.Descriptor, depth int) (in incoming, err error) {
	if depth > maxNesting {
		return in, fmt.Errorf("indexes are nested deeper than %d: %w", maxNesting, ErrMalformed)
	}
	fits, err := choosePlatform(entries, l.platform)
	if err != nil {
		return in, err
	}
	raw, err := l.blob(fits[0])
	if err != nil {
		return in, err
	}
	kind, err := kindOf(raw, fits[0].MediaType)
	if err != nil {
		return in, fmt.Errorf("manifest %s: %w", fits[0].Digest, err)
	}
	if isIndex(kind) {
		index, err := parseIndex(raw)
		if err != nil {
			return in, err
		}
		return l.choose(index.Manifests, depth+1)
	}
	in.manifest = document{raw: raw, desc: ocispec.Descriptor{MediaType: kind, Digest: fits[0].Digest, Size: int64(len(raw))}}
	m, err := parseManifest(raw)
	if err != nil {
		return in, err
	}
	if in.config, err = l.blob(m.Config); err != nil {
		return in, err
	}
	for _, d := range m.Layers {
		if err := l.has(d); err != nil {
			return in, err
		}
		in.layers = append(in.layers, incomingLayer{desc: d, open: l.opener(d)})
	}
	return in, nil
}

func blobName(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// blob reads a document and compares it with its digest.
func (l *layout) blob(d ocispec.Descriptor) ([]byte, error) {
	raw, err := readDocument(l.b, blobName(d.Digest))
	if err != nil {
		return nil, missing(err)
	}
	if _, err := io.Copy(io.Discard, newVerifier(d.Digest, d.Size, strings.NewReader(string(raw)))); err != nil {
		return nil, err
	}
	return raw, nil
}

// has says whether the blob of a layer is there and has the right size: before anything is unpacked.
func (l *layout) has(d ocispec.Descriptor) error {
	r, size, err := l.b.open(blobName(d.Digest))
	if err != nil {
		return missing(err)
	}
	r.Close()
	if size != d.Size {
		return fmt.Errorf("layer %s has %d bytes, its descriptor says %d: %w", d.Digest, size, d.Size, ErrMalformed)
	}
	return nil
}

// missing makes an absent blob what it is: not a wrong question, but an archive that lacks something.
func missing(err error) error {
	if errors.Is(err, drivers.ErrNotFound) {
		return fmt.Errorf("blob is missing: %v: %w", err, ErrMalformed) //nolint:errorlint // another class on purpose
	}
	return err
}

func (l *layout) opener(d ocispec.Descriptor) opener {
	return func(ctx context.Context) (io.ReadCloser, error) {
		r, _, err := l.b.open(blobName(d.Digest))
		if err != nil {
			return nil, missing(err)
		}
		return verified(ctx, r, d.Digest, d.Size), nil
	}
}
