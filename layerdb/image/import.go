package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
)

// ImportOptions say what is taken from an archive, and how.
type ImportOptions struct {
	// Input is read instead of a file if it is not nil: an archive of any kind in any compression.
	Input io.Reader
	// Name is given to the image in addition to its own names, or in place of none. The archive must hold one image then.
	Name *Name
	// Platform chooses where an archive has several; the zero value is this machine's.
	Platform ocispec.Platform
	Blobs    BlobPolicy
	Report   Report
}

// Import brings in all images of an OCI layout (a directory, or a tar file) or of an archive of docker save or podman save,
// which it tells apart by what is in them; tar files may be compressed. Each image is there whole or not at all; the images
// before one that fails stay, and are returned. The error wraps drivers.ErrNotFound if there is no such file, ErrMalformed
// or layerdb.ErrDigest if it is not what it should be.
func (s *Store) Import(ctx context.Context, path string, o ImportOptions) (images []Image, err error) {
	if o.Input != nil {
		path = "standard input"
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("import %s: %w", path, err)
		}
	}()
	if o.Platform.OS == "" {
		o.Platform = hostPlatform()
	}
	b, err := openBundle(ctx, path, o.Input, s.blobs)
	if err != nil {
		return nil, err
	}
	defer b.close()
	all, err := imagesOf(b, o.Platform)
	if err != nil {
		return nil, err
	}
	if o.Name != nil {
		if len(all) > 1 {
			return nil, fmt.Errorf("there are %d images, which cannot all be %s: %w", len(all), o.Name.Familiar(), ErrAmbiguous)
		}
		if o.Name.Tag == "" {
			return nil, fmt.Errorf("name %s has no tag: %w", o.Name, drivers.ErrInvalid)
		}
		all[0].names = append(all[0].names, *o.Name)
	}
	var errs []error
	for _, in := range all {
		img, err := s.add(ctx, in, addOptions{keep: o.Blobs, report: o.Report})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		images = append(images, img)
	}
	return images, errors.Join(errs...)
}

// imagesOf lists the images of a bundle. An archive that is both an OCI layout and a docker archive, as docker writes since
// version 25, is read as the former, which has the manifests.
func imagesOf(b bundle, p ocispec.Platform) ([]incoming, error) {
	oci, err := isLayout(b)
	if err != nil {
		return nil, err
	}
	if oci {
		return (&layout{b: b, platform: p}).images()
	}
	return dockerImages(b)
}
