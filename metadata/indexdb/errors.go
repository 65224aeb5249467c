package indexdb

import (
	"errors"

	"plyfs/metadata"
	"plyfs/metadata/kv"
)

// Errors of this package, beside those of metadata; those that are returned wrap one of them and name the object.
var (
	// ErrNotBuilt says that there is no index of the stack. It has to be built.
	ErrNotBuilt = errors.New("no such index")
	// ErrStale says that the layers changed since the index was built. It has to be built anew.
	ErrStale = errors.New("stale: its layers changed since it was built")
	// ErrUnsafe says that others could change the cache directory.
	ErrUnsafe = errors.New("unsafe cache directory")
)

// damage is damage to the database, which its users need not tell from that to a record.
type damage struct{ error }

// Unwrap returns what the database said.
func (d damage) Unwrap() error { return d.error }

// Is makes it metadata.ErrDamaged.
func (d damage) Is(target error) bool { return target == metadata.ErrDamaged }

// asDamage returns err so that users of records understand it.
func asDamage(err error) error {
	if errors.Is(err, kv.ErrDamaged) {
		return damage{err}
	}
	return err
}
