package sys_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// Other errors than these would mean that the kernel did not understand the call.
func TestIOUring(t *testing.T) {
	if err := sys.IOUring(); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) {
		t.Error(err)
	}
}
