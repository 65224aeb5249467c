package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// Tag gives an image further names. A name that another image had is taken from it. A name with a digest is refused with
// drivers.ErrInvalid.
func (s *Store) Tag(ctx context.Context, img Image, names ...Name) error {
	var holders []layerdb.Holder
	for _, n := range names {
		if n.Digest != "" || n.Tag == "" {
			return fmt.Errorf("name %s: a digest is not given but computed: %w", n, drivers.ErrInvalid)
		}
		holders = append(holders, nameHolder(n, img.ID))
	}
	return s.layers.Change(ctx, layerdb.Update{Hold: holders})
}

// Force says whether obstacles count.
type Force int

const (
	// Careful refuses what something else still needs.
	Careful Force = iota
	// Forced goes on.
	Forced
)

// Removed is what Remove did.
type Removed struct {
	// Untagged are the names that are gone.
	Untagged []string `json:"untagged"`
	// Deleted is the id of the image if it is gone, too.
	Deleted digest.Digest `json:"deleted,omitempty"`
}

// Remove takes away what ref stands for: a name, and the image with its last name; or, by id, the image with all its names.
// The error wraps drivers.ErrNotFound, or, unless forced, drivers.ErrInUse if a container was made of the image, or if ref
// is an id and the image has several names. A container keeps the layers that it needs in any case.
func (s *Store) Remove(ctx context.Context, ref string, f Force) (Removed, error) {
	img, err := s.Find(ctx, ref)
	if err != nil {
		return Removed{}, err
	}
	if name := img.calledBy(ref); name != "" && len(img.Names) > 1 {
		err := s.layers.Release(ctx, layerdb.Ref{Kind: kindName, Key: name})
		return Removed{Untagged: []string{name}}, err
	} else if len(img.Names) > 1 && f == Careful {
		return Removed{}, fmt.Errorf("image %s has the names %s; remove those, or force it: %w", short(img.ID),
			strings.Join(img.Names, ", "), drivers.ErrInUse)
	}
	if f == Careful {
		if err := s.unused(ctx, img); err != nil {
			return Removed{}, err
		}
	}
	release := []layerdb.Ref{{Kind: kindImage, Key: img.ID.String()}}
	for _, n := range img.Names {
		release = append(release, layerdb.Ref{Kind: kindName, Key: n})
	}
	if err := s.layers.Change(ctx, layerdb.Update{Release: release}); err != nil {
		return Removed{}, fmt.Errorf("remove image %s: %w", img.ID, err)
	}
	return Removed{Untagged: img.Names, Deleted: img.ID}, s.collectBlobs(ctx, img.blobs())
}

// unused says whether no container was made of the image.
func (s *Store) unused(ctx context.Context, img Image) error {
	containers, err := s.layers.Containers(ctx)
	if err != nil {
		return err
	}
	for _, c := range containers {
		if c.Labels[LabelImage] == img.ID.String() {
			return fmt.Errorf("image %s: container %s was made of it; remove that, or force it: %w", short(img.ID), c.Name,
				drivers.ErrInUse)
		}
	}
	return nil
}

// short is the form of an id that people read.
func short(id digest.Digest) string {
	const digits = 12
	return id.Encoded()[:min(digits, len(id.Encoded()))]
}

// blobs are the digests of all that may be in the content store for the image.
func (i Image) blobs() []digest.Digest {
	all := i.documents()
	for _, l := range i.Layers {
		if l.Blob != nil {
			all = append(all, l.Blob.Digest)
		}
	}
	return all
}

// documents are the digests of config and manifest.
func (i Image) documents() []digest.Digest {
	if i.Manifest == nil {
		return []digest.Digest{i.ID}
	}
	return []digest.Digest{i.ID, i.Manifest.Digest}
}

// collectBlobs removes those of the blobs that no image needs. While an image is being added it does nothing: GC does it
// later.
func (s *Store) collectBlobs(ctx context.Context, candidates []digest.Digest) error {
	if !s.adding.TryLock() {
		return nil
	}
	defer s.adding.Unlock()
	used, err := s.usedBlobs(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range candidates {
		if !used[d] {
			errs = append(errs, s.blobs.remove(d))
		}
	}
	return errors.Join(errs...)
}

// usedBlobs are the blobs of all images.
func (s *Store) usedBlobs(ctx context.Context) (map[digest.Digest]bool, error) {
	all, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	used := make(map[digest.Digest]bool)
	for _, img := range all {
		needed := img.blobs()
		if !img.KeepsBlobs {
			needed = img.documents()
		}
		for _, d := range needed {
			used[d] = true
		}
	}
	return used, nil
}

// GCResult is what GC removed.
type GCResult struct {
	// Blobs is the number of blobs that no image named, and of downloads that broke off; Bytes is what they took.
	Blobs int   `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

// GC removes blobs that no image names, what is left of downloads that broke off, and the leases of images that were being
// added when their process died; the layers go with them. While an image is being added it does nothing.
func (s *Store) GC(ctx context.Context) (r GCResult, err error) {
	if !s.adding.TryLock() {
		return r, nil
	}
	defer s.adding.Unlock()
	if err := s.dropLeases(ctx); err != nil {
		return r, err
	}
	used, err := s.usedBlobs(ctx)
	if err != nil {
		return r, err
	}
	err = s.blobs.list(func(d digest.Digest, size int64) error {
		if used[d] {
			return nil
		}
		r.Blobs++
		r.Bytes += size
		return s.blobs.remove(d)
	})
	if err != nil {
		return r, err
	}
	dir := filepath.Join(s.blobs.dir, partialDir)
	names, err := os.ReadDir(dir)
	if err != nil {
		return r, err
	}
	for _, e := range names {
		if fi, err := e.Info(); err == nil {
			r.Bytes += fi.Size()
		}
		if err := removeIfThere(filepath.Join(dir, e.Name())); err != nil {
			return r, err
		}
		r.Blobs++
	}
	return r, nil
}

// dropLeases ends the leases of images that nobody adds any more: this process adds none now, and no other has the store
// open.
//
// Precondition: s.adding is held for writing.
func (s *Store) dropLeases(ctx context.Context) error {
	leases, err := s.layers.Holders(ctx, kindLease)
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range leases {
		if strings.HasPrefix(h.Key, leasePrefix) {
			errs = append(errs, s.drop(ctx, h.Ref()))
		}
	}
	return errors.Join(errs...)
}
