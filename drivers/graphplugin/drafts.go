package graphplugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"plyfs/drivers"
)

// draft is a layer that dockerd made with Create and did not fill with ApplyDiff, and the content of its file.
type draft struct {
	Parent string `json:"parent,omitempty"`
	Label  string `json:"label,omitempty"`
	// Written says that the layer was exchanged for a writable one, into which dockerd writes.
	Written bool `json:"written,omitempty"`
}

func (s *store) draftPath(id string) string { return s.path(draftsDir, id) }

// readDraft returns what is known of a draft; ok is false for what is none.
func (s *store) readDraft(id string) (d draft, ok bool, err error) {
	if err := drivers.ValidID(id); err != nil {
		return d, false, err
	}
	err = readJSON(s.draftPath(id), &d)
	if errors.Is(err, fs.ErrNotExist) {
		return d, false, nil
	}
	return d, err == nil, err
}

// isDraft says whether dockerd made the layer with Create and did not fill it.
func (s *store) isDraft(id string) bool {
	_, err := os.Lstat(s.draftPath(id))
	return err == nil
}

// endDraft forgets a draft, durably: what ApplyDiff puts into the layer must not be exchanged for nothing after a power cut.
func (s *store) endDraft(id string) error {
	err := os.Remove(s.draftPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(s.path(draftsDir))
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", id, err)
	}
	return nil
}

// exchange makes an empty image layer a writable one, for a dockerd that is about to write into it. Precondition: the layer's
// lock is held.
func (s *store) exchange(ctx context.Context, id string, d draft) error {
	// Half of it is not for dockerd to find, whatever became of its request.
	ctx = context.WithoutCancel(ctx)
	if err := s.driver.Remove(ctx, id); err != nil {
		return err
	}
	if err := s.createWritable(ctx, id, d.Parent, &drivers.CreateOptions{MountLabel: d.Label}); err != nil {
		return err
	}
	d.Written = true
	return writeJSON(s.draftPath(id), d)
}

// recoverDrafts makes drafts anew that a crash caught in the middle of an exchange, and forgets those of layers that are gone.
func (s *store) recoverDrafts(ctx context.Context) error {
	entries, err := os.ReadDir(s.path(draftsDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			errs = append(errs, removeFile(s.path(draftsDir, e.Name())))
			continue
		}
		errs = append(errs, s.recoverDraft(ctx, e.Name()))
	}
	return errors.Join(errs...)
}

func (s *store) recoverDraft(ctx context.Context, id string) error {
	d, ok, err := s.readDraft(id)
	if errors.Is(err, drivers.ErrDamaged) || errors.Is(err, drivers.ErrInvalid) {
		s.log.Warn("a draft cannot be read, the layer stays what it is", "layer", id, "error", err)
		return removeFile(s.draftPath(id))
	}
	if err != nil || !ok {
		return err
	}
	there, err := s.driver.Exists(ctx, id)
	if err != nil || there {
		return err
	}
	if d.Written {
		return s.endDraft(id)
	}
	err = s.driver.Create(ctx, id, d.Parent, &drivers.CreateOptions{MountLabel: d.Label})
	if errors.Is(err, drivers.ErrNotFound) {
		return s.endDraft(id) // its parent went later than it
	}
	return err
}
