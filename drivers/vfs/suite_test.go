//go:build !vm

package vfs_test

import (
	"testing"

	"plyfs/drivers/drivertest"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
)

// TestSuite is not for the virtual machine: on its older kernels a tmpfs has no user attributes.
func TestSuite(t *testing.T) {
	drivertest.Run(t, drivertest.Suite{
		Factory:   vfs.Factory(),
		Base:      drivertest.Scratch,
		SmallBase: drivertest.SmallScratch,
		Abilities: drivertest.Abilities{ReadOnlyGet: true, Mountless: true, Independent: true},
	})
}

func TestSuiteInUserNamespace(t *testing.T) {
	testenv.RunInUserNamespace(t, "^TestSuite$")
}
