package layerdb

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"plyfs/drivers"
)

// Record is what the database holds under one key, and what a file in the directory records holds: a layer, a container,
// a holder or a snapshot, and where drivers keep it.
type Record struct {
	Layer     *Layer     `json:"layer,omitempty"`
	Container *Container `json:"container,omitempty"`
	Holder    *Holder    `json:"holder,omitempty"`
	Snapshot  *Snapshot  `json:"snapshot,omitempty"`
	// Drivers have the layer, container or snapshot, complete. During and after a migration there is more than one.
	Drivers []string `json:"drivers,omitempty"`
}

// EncodeRecord returns the record as one line of JSON. The error wraps drivers.ErrInvalid if DecodeRecord would refuse it.
func EncodeRecord(r Record) ([]byte, error) {
	if err := r.validate(); err != nil {
		return nil, fmt.Errorf("record: %w: %w", drivers.ErrInvalid, err)
	}
	return json.Marshal(r)
}

// DecodeRecord reads what EncodeRecord wrote. The error wraps drivers.ErrDamaged: unknown fields, values that cannot be, and
// bytes behind the end are damage.
func DecodeRecord(b []byte) (Record, error) {
	var r Record
	if err := strictJSON(b, &r); err != nil {
		return Record{}, fmt.Errorf("record: %w: %w", drivers.ErrDamaged, err)
	}
	if err := r.validate(); err != nil {
		return Record{}, fmt.Errorf("record: %w: %w", drivers.ErrDamaged, err)
	}
	return r, nil
}

// strictJSON decodes one value and nothing else.
func strictJSON(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}

func (r Record) validate() error {
	n := 0
	var errs []error
	if r.Layer != nil {
		n++
		errs = append(errs, r.Layer.validate())
	}
	if r.Container != nil {
		n++
		errs = append(errs, r.Container.validate())
	}
	if r.Holder != nil {
		n++
		errs = append(errs, r.Holder.validate())
	}
	if r.Snapshot != nil {
		n++
		errs = append(errs, r.Snapshot.validate())
	}
	if n != 1 {
		return fmt.Errorf("it holds %d things, not one", n)
	}
	if (r.Holder == nil) != (len(r.Drivers) > 0) {
		errs = append(errs, errors.New("layers, containers and snapshots are in a driver, holders are not"))
	}
	for _, driver := range r.Drivers {
		errs = append(errs, drivers.ValidID(driver))
	}
	return errors.Join(errs...)
}

func (l *Layer) validate() error {
	if err := validDigest(l.DiffID); err != nil {
		return err
	}
	if l.Parent != "" {
		if err := l.Parent.Validate(); err != nil {
			return err
		}
	}
	if err := validDigest(l.StreamSum); err != nil {
		return err
	}
	if err := drivers.ValidID(l.CacheID); err != nil {
		return err
	}
	switch {
	case l.ID != l.Parent.above(l.DiffID):
		return fmt.Errorf("layer %s is not the chain of %s and %s", l.ID, l.Parent, l.DiffID)
	case l.Size < 0 || l.Content < 0 || l.Entries < 0:
		return fmt.Errorf("layer %s: a size is negative", l.ID)
	case l.Stream != StreamSplit && l.Stream != StreamWhole:
		return fmt.Errorf("layer %s: its stream is kept as %q", l.ID, l.Stream)
	}
	return nil
}

func (c *Container) validate() error {
	if err := drivers.ValidID(c.Name); err != nil {
		return err
	}
	if err := drivers.ValidID(c.ID); err != nil {
		return err
	}
	if c.Parent != "" {
		if err := c.Parent.Validate(); err != nil {
			return err
		}
	}
	if c.Quota.Bytes < 0 || c.Quota.Inodes < 0 || c.Mounts < 0 {
		return fmt.Errorf("container %s: a number is negative", c.Name)
	}
	return nil
}

func (h *Holder) validate() error {
	if err := h.Ref().validate(); err != nil {
		return err
	}
	if !utf8.ValidString(h.Key) {
		return fmt.Errorf("%s %q: the key is not UTF-8", h.Kind, h.Key)
	}
	if len(h.Data) > MaxData {
		return fmt.Errorf("%s: %d bytes of data, at most %d fit", h.Ref(), len(h.Data), MaxData)
	}
	for _, id := range h.Layers {
		if err := id.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// work is an operation on a driver's layer that is not finished: it is being made, or being removed. Whatever such a
// record names when a store is opened is garbage.
type work struct {
	Driver string `json:"driver"`
	ID     string `json:"id"`
	// Parent is the id of the driver's layer below, which is removed later.
	Parent string `json:"parent,omitempty"`
	// Restore says that the database names the layer, which the driver had lost: what the store keeps of it stays.
	Restore bool `json:"restore,omitempty"`
}

// meta is the record of the store as a whole.
type meta struct {
	// Driver is the driver that the store belongs to.
	Driver string `json:"driver"`
	// Old are drivers that the store belonged to before migrations, whose layers are still there.
	Old []string `json:"old,omitempty"`
	// To is the driver that a migration that is not finished moves to.
	To string `json:"to,omitempty"`
}

func decodeJSON[T any](what string, b []byte) (v T, err error) {
	if err := strictJSON(b, &v); err != nil {
		return v, fmt.Errorf("%s: %w: %w", what, drivers.ErrDamaged, err)
	}
	return v, nil
}
