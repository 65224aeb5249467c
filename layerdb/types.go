package layerdb

import (
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"plyfs/drivers"
)

// ChainID identifies a layer together with all layers below it, as the OCI image specification defines it. The ChainID of a
// layer without a parent is its DiffID. The empty ChainID stands for no layer.
type ChainID digest.Digest

// ChainOf returns the ChainID of the topmost of the layers with the given DiffIDs, the lowest first; "" for none.
func ChainOf(diffIDs ...digest.Digest) ChainID { return ChainID(identity.ChainID(diffIDs)) }

// String is the digest in the form algorithm:hex.
func (c ChainID) String() string { return string(c) }

// above is the ChainID of a layer with this DiffID on top of c.
func (c ChainID) above(diffID digest.Digest) ChainID {
	if c == "" {
		return ChainID(diffID)
	}
	return ChainOf(digest.Digest(c), diffID)
}

// Validate returns an error that wraps drivers.ErrInvalid unless c is a whole sha256 digest.
func (c ChainID) Validate() error { return validDigest(digest.Digest(c)) }

func validDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%q is not a sha256 digest: %w", string(d), drivers.ErrInvalid)
	}
	return nil
}

// Layer is an image layer: immutable once it is in the store.
type Layer struct {
	ID     ChainID       `json:"id"`
	DiffID digest.Digest `json:"diffId"`
	Parent ChainID       `json:"parent,omitempty"`
	// Size is the length in bytes of the uncompressed tar stream.
	Size int64 `json:"size"`
	// Content is the sum of the sizes in bytes of the regular files in the stream.
	Content int64 `json:"content"`
	// Entries is the number of members of the stream.
	Entries int64     `json:"entries"`
	Created time.Time `json:"created"`
	// Sum is the canonical hash of what the stream left in the tree (tarlayer.Sum): equal for every driver.
	Sum uint64 `json:"sum"`
	// Stream says how the bytes of the stream are kept.
	Stream Stream `json:"stream"`
	// StreamSum is the digest of the file that Stream speaks of.
	StreamSum digest.Digest `json:"streamSum"`
	// CacheID is random: the driver's id of the layer, and the name of its files.
	CacheID string `json:"cacheId"`
}

// Stream says how the store can give the exact bytes of a layer's tar stream again.
type Stream string

const (
	// StreamSplit keeps the headers and padding in tar-split's form, the content comes from the tree.
	StreamSplit Stream = "split"
	// StreamWhole keeps the stream itself, as it came: the tree does not hold all of its content, since a member replaced
	// another, or is sparse, or is a whiteout with content.
	StreamWhole Stream = "whole"
)

// Container is a writable layer.
type Container struct {
	Name string `json:"name"`
	// ID is random: the driver's id of the container. It tells it from an earlier one of the same name.
	ID      string        `json:"id"`
	Parent  ChainID       `json:"parent,omitempty"`
	Created time.Time     `json:"created"`
	Quota   drivers.Quota `json:"quota"`
	// MountLabel is the SELinux context of the mount.
	MountLabel string `json:"mountLabel,omitempty"`
	// Options are the driver's own, given when it was made.
	Options map[string]string `json:"options,omitempty"`
	// Labels are the caller's.
	Labels map[string]string `json:"labels,omitempty"`
	// Mounts is the number of Mount calls without Unmount, in the boot that Boot names.
	Mounts int    `json:"mounts,omitempty"`
	Boot   string `json:"boot,omitempty"`
}

// Holder keeps layers, and all layers below them, from being collected, and may carry data of its owner. An image is a
// holder, and so is a lease.
type Holder struct {
	// Kind and Key name the holder. Kind is what drivers.ValidID accepts; Key is not empty and has at most MaxKey bytes.
	Kind string `json:"kind"`
	Key  string `json:"key"`
	// Layers are held; there may be none.
	Layers []ChainID `json:"layers,omitempty"`
	// Data is the owner's, at most MaxData bytes.
	Data []byte `json:"data,omitempty"`
	// Created is set by the store when the holder is new.
	Created time.Time `json:"created"`
	// Expires is when GC drops the holder; zero for never.
	Expires time.Time `json:"expires,omitzero"`
}

// Bounds of a Holder, in bytes.
const (
	MaxKey  = 1 << 10
	MaxData = 256 << 10
)

// Ref is the name of the holder.
func (h Holder) Ref() Ref { return Ref{Kind: h.Kind, Key: h.Key} }

// Ref names a holder.
type Ref struct {
	Kind string `json:"kind"`
	Key  string `json:"key"`
}

// String is the name for messages.
func (r Ref) String() string { return r.Kind + " " + r.Key }

// Kinds of users of a layer that are not holders.
const (
	userLayer     = "layer"
	userContainer = "container"
)

func (r Ref) validate() error {
	if err := drivers.ValidID(r.Kind); err != nil {
		return fmt.Errorf("kind of holder: %w", err)
	}
	if r.Kind == userLayer || r.Kind == userContainer {
		return fmt.Errorf("kind of holder %q is the store's own: %w", r.Kind, drivers.ErrInvalid)
	}
	if r.Key == "" || len(r.Key) > MaxKey || strings.ContainsRune(r.Key, 0) {
		return fmt.Errorf("%s: key %.40q: its length is not from 1 to %d, or it holds a zero byte: %w", r.Kind, r.Key, MaxKey,
			drivers.ErrInvalid)
	}
	return nil
}
