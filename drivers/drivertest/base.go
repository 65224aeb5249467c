package drivertest

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// Scratch is a Suite's Base on tmpfs.
func Scratch(t testing.TB) string { return testenv.Scratch(t) }

// SmallScratch is a Suite's SmallBase on tmpfs.
func SmallScratch(t testing.TB) string {
	t.Helper()
	dir := testenv.Scratch(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("mode=755,size=%d", SmallSize/2)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Unmount(t, dir) })
	return dir
}
