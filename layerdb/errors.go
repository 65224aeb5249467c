package layerdb

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// Classes of errors beside those of package drivers, which are used where they fit: ErrNotFound, ErrExists, ErrInUse,
// ErrInvalid, ErrNotSupported, ErrOtherDriver, ErrDamaged.
var (
	// ErrLocked says that another process has the store open.
	ErrLocked = errors.New("the store is in use by another process")
	// ErrVersion says that another version of plyfs wrote the store.
	ErrVersion = errors.New("store of another version")
	// ErrDigest says that a stream is not what its digest promises.
	ErrDigest = errors.New("digest does not match")
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("the store is closed")
	// ErrNoSpace says that a file system has too little room for what is about to be written.
	ErrNoSpace = fmt.Errorf("too little space: %w", unix.ENOSPC)
	// ErrMissing says that a layer that the store names is not in the driver's directory.
	ErrMissing = fmt.Errorf("missing: %w", drivers.ErrDamaged)
)
