package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// classified adds containerd's class of an error to it; nil stays nil.
func classified(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for _, c := range []struct{ ours, theirs error }{
		{drivers.ErrNotFound, errdefs.ErrNotFound},
		{drivers.ErrExists, errdefs.ErrAlreadyExists},
		{drivers.ErrInUse, errdefs.ErrFailedPrecondition},
		{drivers.ErrInvalid, errdefs.ErrInvalidArgument},
		{drivers.ErrNotSupported, errdefs.ErrNotImplemented},
		{drivers.ErrDamaged, errdefs.ErrDataLoss},
		{layerdb.ErrClosed, errdefs.ErrUnavailable},
		{unix.ENOSPC, errdefs.ErrResourceExhausted},
		{unix.EDQUOT, errdefs.ErrResourceExhausted},
	} {
		if errors.Is(err, c.ours) && !errors.Is(err, c.theirs) {
			return fmt.Errorf("%w: %w", err, c.theirs)
		}
	}
	return err
}
