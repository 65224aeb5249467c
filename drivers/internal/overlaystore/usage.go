package overlaystore

import (
	"context"

	"plyfs/drivers"
	"plyfs/drivers/internal/layerdir"
)

// Usage implements drivers.Driver. It walks what the layer itself holds.
func (s *Store) Usage(ctx context.Context, id string) (drivers.Usage, error) {
	if err := begin(ctx, id); err != nil {
		return drivers.Usage{}, err
	}
	done, err := s.reading(id)
	if err != nil {
		return drivers.Usage{}, err
	}
	defer done()
	return layerdir.Usage(ctx, s.dir(id, diffDir))
}
