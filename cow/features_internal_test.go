package cow

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestAttributesFullDisk: that a file system is full does not mean that it takes no attributes.
func TestAttributesFullDisk(t *testing.T) {
	for err, want := range map[unix.Errno]error{
		unix.ENODATA: nil, unix.ENOSPC: nil, unix.EDQUOT: nil, unix.EPERM: unix.EPERM, unix.EOPNOTSUPP: unix.EOPNOTSUPP,
	} {
		if got := asRemoved(err); got != want { //nolint:errorlint // the very error
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}
