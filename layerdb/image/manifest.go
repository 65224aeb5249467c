package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// The media types of docker's image format, schema 2, which is the model of OCI's.
const (
	dockerIndex     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig    = "application/vnd.docker.container.image.v1+json"
	dockerLayer     = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerLayerZstd = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	dockerForeign   = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	dockerSchema1   = "application/vnd.docker.distribution.manifest.v1"
)

// maxLayers bounds the layers of one image: what the kernel's overlayfs can stack.
const maxLayers = 500

// document is a manifest or an index as it came, with what kind it is.
type document struct {
	desc ocispec.Descriptor
	raw  []byte
}

// isIndex and isManifest say what kind of document a media type stands for.
func isIndex(mediaType string) bool {
	return mediaType == dockerIndex || mediaType == ocispec.MediaTypeImageIndex
}

func isManifest(mediaType string) bool {
	return mediaType == dockerManifest || mediaType == ocispec.MediaTypeImageManifest
}

// kindOf returns the media type of a document: what it says of itself, else what it was announced as, else what its fields
// show. Documents of other kinds are refused.
func kindOf(raw []byte, announced string) (string, error) {
	var head struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return "", fmt.Errorf("manifest is no JSON object: %w: %w", err, ErrMalformed)
	}
	announced, _, _ = strings.Cut(announced, ";")
	if head.SchemaVersion == 1 || head.FSLayers != nil || strings.HasPrefix(announced, dockerSchema1) {
		return "", fmt.Errorf("manifest is of docker's schema 1, which is obsolete; push the image anew with a current tool: %w",
			drivers.ErrNotSupported)
	}
	if head.Manifests != nil && head.Layers != nil {
		// An index that is a manifest, too, would be another image to every reader (CVE-2021-41190).
		return "", fmt.Errorf("document has manifests and layers: %w", ErrMalformed)
	}
	for _, t := range []string{head.MediaType, announced} {
		switch {
		case isIndex(t) && head.Layers == nil, isManifest(t) && head.Manifests == nil:
			return t, nil
		case isIndex(t) || isManifest(t):
			return "", fmt.Errorf("document of type %s has the fields of another: %w", t, ErrMalformed)
		}
	}
	switch {
	case head.MediaType != "":
		return "", fmt.Errorf("document of type %q is no image: %w", head.MediaType, drivers.ErrNotSupported)
	case head.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case head.Layers != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fmt.Errorf("document has neither manifests nor layers: %w", ErrMalformed)
}

// parseIndex reads an index, of which all digests are valid afterwards.
func parseIndex(raw []byte) (index ocispec.Index, err error) {
	if err = json.Unmarshal(raw, &index); err != nil {
		return index, fmt.Errorf("index: %w: %w", err, ErrMalformed)
	}
	for i, m := range index.Manifests {
		if err := validDescriptor(m); err != nil {
			return index, fmt.Errorf("index, manifest %d: %w", i, err)
		}
	}
	return index, nil
}

// parseManifest reads the manifest of an image, of which all digests and sizes are valid afterwards, and the layers tar
// files.
func parseManifest(raw []byte) (m ocispec.Manifest, err error) {
	if err = json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("manifest: %w: %w", err, ErrMalformed)
	}
	if err := validDescriptor(m.Config); err != nil {
		return m, fmt.Errorf("manifest, config: %w", err)
	}
	if t := m.Config.MediaType; t != "" && t != dockerConfig && t != ocispec.MediaTypeImageConfig {
		return m, fmt.Errorf("manifest has a config of type %q; it is something else than an image: %w", t, drivers.ErrNotSupported)
	}
	if n := len(m.Layers); n > maxLayers {
		return m, fmt.Errorf("manifest has %d layers, the limit is %d: %w", n, maxLayers, tarlayer.ErrLimit)
	}
	for i, l := range m.Layers {
		if err := validDescriptor(l); err != nil {
			return m, fmt.Errorf("manifest, layer %d: %w", i, err)
		}
		if !isLayer(l.MediaType) {
			return m, fmt.Errorf("manifest, layer %d: type %q is no tar file: %w", i, l.MediaType, drivers.ErrNotSupported)
		}
	}
	return m, nil
}

func validDescriptor(d ocispec.Descriptor) error {
	if d.Size < 0 {
		return fmt.Errorf("size %d: %w", d.Size, ErrMalformed)
	}
	return validDigest(d.Digest)
}

// isLayer says whether a media type stands for a tar file in a compression that is detected. Old tools leave it out.
func isLayer(mediaType string) bool {
	return slices.Contains([]string{
		"", dockerLayer, dockerLayerGzip, dockerLayerZstd, dockerForeign,
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
	}, mediaType)
}

// parseConfig reads the config of an image and its DiffIDs, which are valid afterwards.
func parseConfig(raw []byte) (c ocispec.Image, err error) {
	if err = json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("config: %w: %w", err, ErrMalformed)
	}
	if t := c.RootFS.Type; t != "" && t != "layers" {
		return c, fmt.Errorf("config: rootfs of type %q: %w", t, ErrMalformed)
	}
	if n := len(c.RootFS.DiffIDs); n > maxLayers {
		return c, fmt.Errorf("config has %d layers, the limit is %d: %w", n, maxLayers, tarlayer.ErrLimit)
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := validDigest(d); err != nil {
			return c, fmt.Errorf("config, diff_id %d: %w", i, err)
		}
	}
	return c, nil
}

// layerType is the media type of a layer in a compression, in the family of the manifest.
func layerType(manifestType string, c tarlayer.Compression) (string, error) {
	docker := manifestType == dockerManifest
	switch {
	case c == tarlayer.Plain && docker:
		return dockerLayer, nil
	case c == tarlayer.Plain:
		return ocispec.MediaTypeImageLayer, nil
	case c == tarlayer.Gzip && docker:
		return dockerLayerGzip, nil
	case c == tarlayer.Gzip:
		return ocispec.MediaTypeImageLayerGzip, nil
	case c == tarlayer.Zstd:
		// Docker's own format never got a type for it.
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return "", fmt.Errorf("compression %s of a layer: %w; there are none, gzip and zstd", c, drivers.ErrInvalid)
}

// newManifest makes an OCI manifest for an image whose own is not kept.
func newManifest(config []byte, layers []ocispec.Descriptor) (document, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config)),
		},
		Layers: layers,
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return document{}, err
	}
	return document{
		raw:  raw,
		desc: ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
	}, nil
}

// errNoImage says that an index has nothing to offer.
var errNoImage = errors.New("no image in the index")
