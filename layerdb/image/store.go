package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// The kinds of holders that this package makes.
const (
	kindImage = "image"
	kindName  = "name"
	kindLease = "lease"
)

// LabelImage is the label of a container that names the image it was made of, by id.
const LabelImage = "plyfs.image"

// BlobPolicy says what becomes of the compressed form of layers.
type BlobPolicy int

const (
	// DropBlobs removes blobs of layers when the layers are unpacked.
	DropBlobs BlobPolicy = iota
	// KeepBlobs keeps them, so that a push gives what was pulled, byte for byte.
	KeepBlobs
)

// Image is one image of the store.
type Image struct {
	// ID is the digest of the config.
	ID digest.Digest `json:"id"`
	// Names are all names, in their normal form, sorted. They are not part of the record.
	Names []string `json:"-"`
	// Digests are the places in registries where the image is known to be, as repository@digest.
	Digests []string `json:"digests,omitempty"`
	// Manifest describes the manifest that came with the image; nil if none did.
	Manifest *ocispec.Descriptor `json:"manifest,omitempty"`
	// Layers are the layers, the lowest first, and Top is the ChainID of the last.
	Layers []Layer         `json:"layers"`
	Top    layerdb.ChainID `json:"top,omitempty"`
	// KeepsBlobs says that the layers' blobs stay in the content store.
	KeepsBlobs bool `json:"keeps_blobs,omitempty"`
	// Size is the sum of the lengths of the layers' uncompressed streams in bytes.
	Size int64 `json:"size"`
	// Created is what the config says; zero if nothing.
	Created time.Time `json:"created"`
	// Added is when the image came into the store.
	Added    time.Time `json:"added"`
	Platform string    `json:"platform"`
}

// Layer is a layer of an image.
type Layer struct {
	DiffID digest.Digest `json:"diff_id"`
	// Size is the length of the uncompressed stream in bytes.
	Size int64 `json:"size"`
	// Blob is the form in which the layer came, if that has a digest. The bytes need not be in the store any more.
	Blob *ocispec.Descriptor `json:"blob,omitempty"`
}

// Store is the images of a layer store.
type Store struct {
	layers *layerdb.Store
	blobs  *blobs
	// adding is held for reading from the first blob of an image until its record names them all, and taken for writing, or
	// not at all, by who removes blobs that no record names. Nobody waits for it but for a removal.
	adding sync.RWMutex
	// records is held while the record of an image is read, changed and written.
	records sync.Mutex
}

// Open returns the images of a layer store, which stays the caller's and must outlive it.
func Open(layers *layerdb.Store) (*Store, error) {
	b, err := openBlobs(layers.BlobDir(), layers.TempDir())
	if err != nil {
		return nil, fmt.Errorf("open the content store: %w", err)
	}
	return &Store{layers: layers, blobs: b}, nil
}

// holder is the image as the layer store keeps it.
func (i Image) holder() (layerdb.Holder, error) {
	data, err := json.Marshal(i)
	if err != nil {
		return layerdb.Holder{}, err
	}
	h := layerdb.Holder{Kind: kindImage, Key: i.ID.String(), Data: data}
	if i.Top != "" {
		h.Layers = []layerdb.ChainID{i.Top}
	}
	return h, nil
}

// decodeImage reads the record of an image. The error wraps drivers.ErrDamaged.
func decodeImage(h layerdb.Holder) (img Image, err error) {
	dec := json.NewDecoder(bytes.NewReader(h.Data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&img); err != nil {
		return img, fmt.Errorf("record of image %s: %w: %w", h.Key, err, drivers.ErrDamaged)
	}
	if img.ID.String() != h.Key || img.ID.Validate() != nil {
		return img, fmt.Errorf("record of image %s is about %q: %w", h.Key, string(img.ID), drivers.ErrDamaged)
	}
	return img, nil
}

func nameHolder(n Name, id digest.Digest) layerdb.Holder {
	n.Digest = ""
	return layerdb.Holder{Kind: kindName, Key: n.String(), Data: []byte(id)}
}

// get returns an image by its whole id. The error wraps drivers.ErrNotFound.
func (s *Store) get(ctx context.Context, id digest.Digest) (Image, error) {
	h, err := s.layers.Holder(ctx, layerdb.Ref{Kind: kindImage, Key: id.String()})
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", id, err)
	}
	img, err := decodeImage(h)
	if err != nil {
		return img, err
	}
	names, err := s.namesByID(ctx)
	img.Names = names[id]
	return img, err
}

// namesByID lists all names, sorted.
func (s *Store) namesByID(ctx context.Context) (map[digest.Digest][]string, error) {
	holders, err := s.layers.Holders(ctx, kindName)
	if err != nil {
		return nil, err
	}
	names := make(map[digest.Digest][]string)
	for _, h := range holders {
		id := digest.Digest(h.Data)
		names[id] = append(names[id], h.Key)
	}
	for _, n := range names {
		slices.Sort(n)
	}
	return names, nil
}

// List returns all images, the newest in the store first.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	holders, err := s.layers.Holders(ctx, kindImage)
	if err != nil {
		return nil, err
	}
	names, err := s.namesByID(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]Image, 0, len(holders))
	for _, h := range holders {
		img, err := decodeImage(h)
		if err != nil {
			return nil, err
		}
		img.Names = names[img.ID]
		all = append(all, img)
	}
	slices.SortFunc(all, func(a, b Image) int {
		if c := b.Added.Compare(a.Added); c != 0 {
			return c
		}
		return strings.Compare(a.ID.String(), b.ID.String())
	})
	return all, nil
}

// localDomain is the registry of names that were given without one, to some.
const localDomain = "localhost"

// minShort is the length from which the beginning of an id stands for it.
const minShort = 4

// Find returns the image that a user means: by name, by id or the beginning of one, or by REPOSITORY@DIGEST. The error wraps
// drivers.ErrNotFound, or ErrAmbiguous if the beginning fits several. A name without a registry stands for one of docker.io,
// or, where that is not there, of localhost.
func (s *Store) Find(ctx context.Context, ref string) (Image, error) {
	n, nameErr := ParseName(ref)
	for _, name := range meant(ref) {
		img, err := s.named(ctx, name)
		if err == nil || !errors.Is(err, drivers.ErrNotFound) {
			return img, err
		}
	}
	all, err := s.List(ctx)
	if err != nil {
		return Image{}, err
	}
	var found []Image
	for _, img := range all {
		if nameErr == nil && n.Digest != "" && img.isAt(n) || isShort(img.ID, ref) {
			found = append(found, img)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return Image{}, fmt.Errorf("image %s: %d images begin so: %w", ref, len(found), ErrAmbiguous)
	}
	return Image{}, fmt.Errorf("image %s: %w; plyfs image ls lists what there is", ref, drivers.ErrNotFound)
}

// meant are the names that ref may stand for: podman and buildah put what has no registry below localhost.
func meant(ref string) [2]string { return [2]string{ref, localDomain + "/" + ref} }

// calledBy is the name of the image that ref stands for, "" if it is none.
func (i Image) calledBy(ref string) string {
	for _, s := range meant(ref) {
		if n, err := ParseName(s); err == nil && slices.Contains(i.Names, n.String()) {
			return n.String()
		}
	}
	return ""
}

// named returns the image of that name; the error wraps drivers.ErrNotFound if none has it, or if it is no name.
func (s *Store) named(ctx context.Context, name string) (Image, error) {
	n, err := ParseName(name)
	if err != nil || n.Digest != "" {
		return Image{}, drivers.ErrNotFound
	}
	h, err := s.layers.Holder(ctx, layerdb.Ref{Kind: kindName, Key: n.String()})
	if err != nil {
		return Image{}, err
	}
	return s.get(ctx, digest.Digest(h.Data))
}

// isAt says whether n, a name with a digest, stands for the image.
func (i Image) isAt(n Name) bool {
	return slices.Contains(i.Digests, n.Repository()+"@"+n.Digest.String()) ||
		i.Manifest != nil && i.Manifest.Digest == n.Digest && slices.ContainsFunc(i.Names, func(s string) bool {
			have, err := ParseName(s)
			return err == nil && have.Repository() == n.Repository()
		})
}

// isShort says whether ref is the beginning of id, with or without the algorithm.
func isShort(id digest.Digest, ref string) bool {
	hex, named := strings.CutPrefix(ref, id.Algorithm().String()+":")
	return (named || len(hex) >= minShort) && hex != "" && strings.HasPrefix(id.Encoded(), hex)
}

// Config returns the config of an image: the bytes, and what they say.
func (s *Store) Config(_ context.Context, img Image) ([]byte, ocispec.Image, error) {
	raw, err := s.blobs.read(img.ID)
	if err != nil {
		return nil, ocispec.Image{}, lost(img, err)
	}
	config, err := parseConfig(raw)
	return raw, config, err
}

// Manifest returns the bytes of the manifest that came with the image. The error wraps drivers.ErrNotFound if none did.
func (s *Store) Manifest(_ context.Context, img Image) ([]byte, error) {
	if img.Manifest == nil {
		return nil, fmt.Errorf("manifest of image %s: none came with it: %w", img.ID, drivers.ErrNotFound)
	}
	raw, err := s.blobs.read(img.Manifest.Digest)
	return raw, lost(img, err)
}

// lost says that a document of an image is gone, which is damage: that it is not found is not the caller's fault.
func lost(img Image, err error) error {
	if errors.Is(err, drivers.ErrNotFound) {
		return fmt.Errorf("image %s: %v: %w; pull or import it again", img.ID, err, drivers.ErrDamaged) //nolint:errorlint // see above
	}
	return err
}

// drop releases a lease, even if the caller's context has ended. That it was never made is no error.
func (s *Store) drop(ctx context.Context, r layerdb.Ref) error {
	err := s.layers.Release(context.WithoutCancel(ctx), r)
	if errors.Is(err, drivers.ErrNotFound) {
		return nil
	}
	return err
}

func randomKey() string { return strings.ToLower(rand.Text()) }
