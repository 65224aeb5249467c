package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// dockerManifestFile is the list of images in an archive of docker save.
const dockerManifestFile = "manifest.json"

// dockerImage is an element of that list.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerImages lists the images of a docker archive. Its layers have no digests of their own; the DiffIDs in the config say
// what they must be.
func dockerImages(b bundle) ([]incoming, error) {
	raw, err := readDocument(b, dockerManifestFile)
	if errors.Is(err, drivers.ErrNotFound) {
		if _, _, err := b.open("repositories"); err == nil {
			return nil, fmt.Errorf("archive is of a docker before 1.10: %w; load and save it with a current docker or podman",
				drivers.ErrNotSupported)
		}
		return nil, fmt.Errorf("neither an OCI layout (no %s) nor a docker archive (no %s): %w", ocispec.ImageLayoutFile,
			dockerManifestFile, ErrMalformed)
	}
	if err != nil {
		return nil, err
	}
	var list []dockerImage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", dockerManifestFile, err, ErrMalformed)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s lists no image: %w", dockerManifestFile, ErrMalformed)
	}
	all := make([]incoming, 0, len(list))
	for i, d := range list {
		in, err := dockerIncoming(b, d)
		if err != nil {
			return nil, fmt.Errorf("%s, image %d: %w", dockerManifestFile, i, err)
		}
		all = append(all, in)
	}
	return all, nil
}

func dockerIncoming(b bundle, d dockerImage) (in incoming, err error) {
	if len(d.Layers) > maxLayers {
		return in, fmt.Errorf("%d layers, the limit is %d: %w", len(d.Layers), maxLayers, tarlayer.ErrLimit)
	}
	if in.config, err = readDocument(b, d.Config); err != nil {
		return in, fmt.Errorf("config: %w", missing(err))
	}
	for _, tag := range d.RepoTags {
		n, err := ParseName(tag)
		if err != nil {
			return in, fmt.Errorf("%w: %w", err, ErrMalformed)
		}
		in.names = append(in.names, n)
	}
	for _, name := range d.Layers {
		r, size, err := b.open(name)
		if err != nil {
			return in, fmt.Errorf("layer: %w", missing(err))
		}
		r.Close()
		in.layers = append(in.layers, incomingLayer{desc: ocispec.Descriptor{Size: size}, open: dockerOpener(b, name)})
	}
	return in, nil
}

func dockerOpener(b bundle, name string) opener {
	return func(ctx context.Context) (io.ReadCloser, error) {
		r, size, err := b.open(name)
		if err != nil {
			return nil, missing(err)
		}
		return verified(ctx, r, "", size), nil
	}
}
