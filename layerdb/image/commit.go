package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// CommitOptions say what the image of a container is like.
type CommitOptions struct {
	Names []Name
	// Author and Message are recorded in the config and its history; empty ones keep the image's author, and no message.
	Author, Message string
	// Changes are instructions as of docker commit --change: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER,
	// VOLUME and WORKDIR.
	Changes []string
	// Time is when the image was made; zero means now.
	Time time.Time
}

// Commit makes a layer of what was written in a container, and an image of that layer on top of the container's image. The
// container stays as it is, and may be mounted. The error wraps drivers.ErrNotFound if there is no such container, or
// drivers.ErrInvalid for a change that makes no sense.
func (s *Store) Commit(ctx context.Context, container string, o CommitOptions) (img Image, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make an image of container %s: %w", container, err)
		}
	}()
	for _, n := range o.Names {
		if n.Tag == "" || n.Digest != "" {
			return img, fmt.Errorf("name %s: it must have a tag, and no digest: %w", n, drivers.ErrInvalid)
		}
	}
	if o.Time.IsZero() {
		o.Time = time.Now()
	}
	c, err := s.layers.Container(ctx, container)
	if err != nil {
		return img, err
	}
	base, err := s.baseOf(ctx, c)
	if err != nil {
		return img, err
	}
	// The changes are tried before the layer is made.
	edit := editor{time: o.Time.UTC(), author: o.Author, message: o.Message}
	if edit.changes, err = parseChanges(o.Changes); err != nil {
		return img, err
	}
	if _, err := edit.apply(base.config, base.diffIDs); err != nil {
		return img, err
	}
	hold := lease()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.drop(ctx, hold.Ref()))
		}
	}()
	s.adding.RLock()
	defer s.adding.RUnlock()
	l, err := s.layers.Commit(ctx, container, layerdb.RegisterOptions{Hold: &hold})
	if err != nil {
		return img, err
	}
	in := incoming{names: o.Names, layers: make([]incomingLayer, len(base.diffIDs)+1)}
	for i, blob := range base.blobs {
		if blob != nil {
			in.layers[i].desc = *blob
		}
	}
	if in.config, err = edit.apply(base.config, append(base.diffIDs, l.DiffID)); err != nil {
		return img, err
	}
	config, err := parseConfig(in.config)
	if err != nil {
		return img, err
	}
	if img, err = s.describe(ctx, in, config); err != nil {
		return img, err
	}
	img.KeepsBlobs = base.keepsBlobs
	return s.publish(ctx, img, in, hold.Ref())
}

// base is what a commit builds on.
type base struct {
	config     []byte
	diffIDs    []digest.Digest
	blobs      []*ocispec.Descriptor // as many as diffIDs, or none
	keepsBlobs bool
}

// baseOf returns the image that a container was made of. If that is gone, only its layers are known, and the config is
// one that says nothing but the platform.
func (s *Store) baseOf(ctx context.Context, c layerdb.Container) (b base, err error) {
	var img Image
	err = drivers.ErrNotFound
	if id := c.Labels[LabelImage]; id != "" {
		img, err = s.get(ctx, digest.Digest(id))
	}
	if err == nil && img.Top == c.Parent {
		b.config, _, err = s.Config(ctx, img)
		for _, l := range img.Layers {
			b.diffIDs, b.blobs = append(b.diffIDs, l.DiffID), append(b.blobs, l.Blob)
		}
		b.keepsBlobs = img.KeepsBlobs
		return b, err
	}
	if err != nil && !errors.Is(err, drivers.ErrNotFound) {
		return b, err
	}
	if c.Parent != "" {
		chain, err := s.layers.Chain(ctx, c.Parent)
		if err != nil {
			return b, err
		}
		for _, l := range chain {
			b.diffIDs = append(b.diffIDs, l.DiffID)
		}
	}
	b.config, err = json.Marshal(ocispec.Image{Platform: hostPlatform()})
	return b, err
}

// editor makes the config of a committed image.
type editor struct {
	time            time.Time
	author, message string
	changes         []change
}

// apply returns the config with the changes and the DiffIDs. What it does not know of the config stays as it is.
func (e *editor) apply(raw []byte, diffIDs []digest.Digest) ([]byte, error) {
	old, err := parseConfig(raw)
	if err != nil {
		return nil, err
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("config: %w: %w", err, ErrMalformed)
	}
	var config map[string]json.RawMessage
	if c := doc["config"]; c != nil {
		if err := json.Unmarshal(c, &config); err != nil {
			return nil, fmt.Errorf("config: %w: %w", err, ErrMalformed)
		}
	}
	if config == nil {
		config = make(map[string]json.RawMessage)
	}
	for _, c := range e.changes {
		if err := c.apply(config); err != nil {
			return nil, err
		}
	}
	history := old.History
	if n := len(diffIDs) - 1 - withLayers(history); n > 0 && len(history) == 0 {
		// Without it the entry of this commit would seem to belong to the lowest layer.
		for range n {
			history = append(history, ocispec.History{Comment: "unknown"})
		}
	}
	history = append(history, ocispec.History{Created: &e.time, Author: e.author, Comment: e.message, CreatedBy: "plyfs container commit"})
	set := map[string]any{
		"created": e.time, "config": config, "history": history,
		"rootfs": ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	}
	if e.author != "" {
		set["author"] = e.author
	}
	// They speak of a container that is not this one.
	delete(doc, "container")
	delete(doc, "container_config")
	for key, v := range set {
		if doc[key], err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	return json.Marshal(doc)
}

// withLayers counts the entries that stand for a layer.
func withLayers(h []ocispec.History) int {
	n := 0
	for _, e := range h {
		if !e.EmptyLayer {
			n++
		}
	}
	return n
}
