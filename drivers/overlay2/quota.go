package overlay2

import (
	"errors"
	"fmt"
	"sync"

	"plyfs/drivers"
	"plyfs/drivers/internal/projquota"
)

// projectQuotas bounds layers by the project quotas of the home's file system, where it has them.
type projectQuotas struct {
	home string

	mu  sync.Mutex
	ctl *projquota.Control // guarded by mu; nil until it is wanted
}

func newProjectQuotas(home string) *projectQuotas { return &projectQuotas{home: home} }

// control opens the quotas when they are first wanted: the home exists then, and most stores never do.
func (q *projectQuotas) control() (*projquota.Control, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ctl != nil {
		return q.ctl, nil
	}
	ctl, err := projquota.Open(q.home)
	if err != nil {
		return nil, fmt.Errorf("quotas of driver %s: %w; driver plyfs has quotas on every file system", Name, err)
	}
	q.ctl = ctl
	return ctl, nil
}

// Check implements overlaystore.Quotas.
func (q *projectQuotas) Check(drivers.Quota) error {
	_, err := q.control()
	return err
}

// Set implements overlaystore.Quotas.
func (q *projectQuotas) Set(limits drivers.Quota, dirs ...string) error {
	ctl, err := q.control()
	if err != nil {
		return err
	}
	return ctl.Set(limits, dirs...)
}

// Release implements overlaystore.Quotas.
func (q *projectQuotas) Release(dirs ...string) error {
	ctl, err := q.control()
	if errors.Is(err, drivers.ErrNotSupported) {
		return nil // so there is nothing to be released
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, ctl.Release(dir))
	}
	return errors.Join(errs...)
}

// What a quota is raised by for the kernel's work directory: several times what file systems reserve to make one.
const (
	roomBytes  = 1 << 20
	roomInodes = 16
)

// raised calls f while the quota that dir has is a little higher. It only calls f where there is no
// quota.
func (q *projectQuotas) raised(dir string, f func() error) (err error) {
	if q == nil {
		return f()
	}
	ctl, err := q.control()
	if errors.Is(err, drivers.ErrNotSupported) {
		return f()
	}
	if err != nil {
		return err
	}
	limits, err := ctl.Quota(dir)
	if err != nil {
		return err
	}
	if limits.IsZero() {
		return f()
	}
	higher := limits
	if higher.Bytes > 0 {
		higher.Bytes += roomBytes
	}
	if higher.Inodes > 0 {
		higher.Inodes += roomInodes
	}
	if err := ctl.Set(higher, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ctl.Set(limits, dir)) }()
	return f()
}

func (q *projectQuotas) close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ctl == nil {
		return nil
	}
	err := q.ctl.Close()
	q.ctl = nil
	return err
}
