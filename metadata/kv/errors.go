package kv

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// What can be wrong with a database or a request; errors of this package wrap one of these where it applies.
var (
	// ErrUnclean says that a database was not sealed: its builder was interrupted, or is at work.
	ErrUnclean = errors.New("not sealed: its builder did not finish")
	// ErrForeign says that the directory is not a database of this package.
	ErrForeign = errors.New("not a database of plyfs")
	// ErrVersion says that another version of the schema or of the database library wrote the database.
	ErrVersion = errors.New("database of another version")
	// ErrDamaged says that files or values are not what was written.
	ErrDamaged = errors.New("damaged")
	// ErrRefused says that the system refused what was needed to look: descriptors, memory, space or access. Nothing is known of the
	// database.
	ErrRefused = errors.New("cannot be opened")
	// ErrLocked says that another process has the database open for writing.
	ErrLocked = errors.New("database is in use by another process")
	// ErrTooLarge says that a key, a value or a transaction exceeds what a database takes.
	ErrTooLarge = errors.New("too large for the database")
	// ErrNotFound says that there is no such key.
	ErrNotFound = errors.New("no such key")
	// ErrConflict says that a transaction met others again and again.
	ErrConflict = errors.New("transactions conflict")
	// ErrNoSpace says that the file system is too full to build a database in it. Writing through a mapping when there is no
	// space ends the process, so a reserve is kept.
	ErrNoSpace = fmt.Errorf("too little space: %w", unix.ENOSPC)
)

// scarce says whether an error is of a limit that the process or the machine has reached.
func scarce(err error) bool {
	return isAny(err, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOSPC, unix.EDQUOT)
}

// isAny says whether an error is one of these. The library formats most of what it wraps, so the text may be all there is.
func isAny(err error, of ...unix.Errno) bool {
	return slices.ContainsFunc(of, func(errno unix.Errno) bool {
		return errors.Is(err, errno) || strings.HasSuffix(err.Error(), errno.Error())
	})
}

// classify makes an error of the library wrap the error of this package that says the same.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, badger.ErrKeyNotFound):
		return ErrNotFound
	case errors.Is(err, badger.ErrTxnTooBig):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, badger.ErrConflict):
		return fmt.Errorf("%w: %w", ErrConflict, err)
	default:
		return err
	}
}
