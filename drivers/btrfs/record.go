package btrfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"plyfs/drivers"
)

// record is what layer.json holds. It is written once, before the layer appears, and a layer is there as long as it is.
type record struct {
	Parent   string        `json:"parent,omitempty"`
	Writable bool          `json:"writable"`
	Quota    drivers.Quota `json:"quota,omitzero"`
}

func (r record) write(dir string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, recordName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	// Names are on disk in the order in which they came into being, content is not.
	return errors.Join(err, f.Sync(), f.Close())
}

// readRecord returns what is known of a layer. The error wraps ErrNotFound if there is no such layer.
func (d *Driver) readRecord(id string) (r record, err error) {
	b, err := os.ReadFile(d.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("layer %s: %w", id, drivers.ErrNotFound)
	}
	if err != nil {
		return r, fmt.Errorf("layer %s: %w: %w", id, err, drivers.ErrDamaged)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("layer %s: %s: %w: %w", id, recordName, err, drivers.ErrDamaged)
	}
	return r, nil
}

// has says whether there is a layer.
func (d *Driver) has(id string) (bool, error) {
	_, err := os.Lstat(d.recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (d *Driver) recordPath(id string) string { return filepath.Join(d.layerPath(id), recordName) }

// wholeRecord is readRecord for those who want the content: of a layer whose unpacking did not end well there is none.
func (d *Driver) wholeRecord(id string) (record, error) {
	r, err := d.readRecord(id)
	if err != nil {
		return r, err
	}
	unfilled, err := d.unfilled(id)
	if err != nil {
		return r, err
	}
	if unfilled {
		return r, fmt.Errorf("layer %s was not unpacked to its end, remove it: %w", id, drivers.ErrDamaged)
	}
	return r, nil
}

func (d *Driver) unfilled(id string) (bool, error) {
	_, err := os.Lstat(filepath.Join(d.layerPath(id), unfilledName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
