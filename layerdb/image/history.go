package image

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// HistoryEntry is one step in the making of an image.
type HistoryEntry struct {
	Created                    time.Time
	CreatedBy, Author, Comment string
	// DiffID is the layer that the step made, empty for one that made none; Size is the length of its stream in bytes.
	DiffID digest.Digest
	Size   int64
}

// History says how the image was made, the latest step first. Layers of which the config says nothing have an entry each
// that says nothing.
func (s *Store) History(ctx context.Context, img Image) ([]HistoryEntry, error) {
	_, config, err := s.Config(ctx, img)
	if err != nil {
		return nil, err
	}
	layers := img.Layers
	var out []HistoryEntry
	for _, h := range config.History {
		e := HistoryEntry{CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment}
		if h.Created != nil {
			e.Created = *h.Created
		}
		if !h.EmptyLayer && len(layers) > 0 {
			e.DiffID, e.Size = layers[0].DiffID, layers[0].Size
			layers = layers[1:]
		}
		out = append(out, e)
	}
	for _, l := range layers {
		out = append(out, HistoryEntry{DiffID: l.DiffID, Size: l.Size})
	}
	slices.Reverse(out)
	return out, nil
}
