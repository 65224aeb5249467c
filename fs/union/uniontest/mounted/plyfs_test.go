package mounted_test

import (
	"testing"

	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/mounted"
	"plyfs/internal/testenv"
)

// TestNoopen runs the suite on plyfs in the data mode that sends no open; what it wrote is then read by the kernel.
func TestNoopen(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{
		Factory: mounted.Plyfs{Data: "noopen"}, Cross: []uniontest.Factory{mounted.Kernel{}}, Long: long(),
	})
}

// TestPassthrough runs the suite on plyfs in the data mode in which the kernel reads and writes the layers' files.
func TestPassthrough(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{
		Factory: mounted.Plyfs{Data: "passthrough"}, Cross: []uniontest.Factory{mounted.Kernel{}}, Long: long(),
	})
}

// TestKernelWrites lets plyfs show what the kernel wrote.
func TestKernelWrites(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{
		Factory: mounted.Kernel{}, Cross: []uniontest.Factory{mounted.Plyfs{Data: "noopen"}},
		Only: func(c uniontest.Case) bool { return c.NoCross == "" },
	})
}

// TestExt4 runs the suite over a disk file system.
func TestExt4(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{
		Factory: mounted.Plyfs{Data: "auto"}, Cross: []uniontest.Factory{mounted.Kernel{}}, Base: onExt4(t),
	})
}

// TestRootless runs the suite in a user namespace, where plyfs keeps its marks in user.overlay attributes. The kernel
// does no redirects and no metacopy there, so it is not asked to show the result.
func TestRootless(t *testing.T) {
	if !testenv.InUserNamespace() {
		testenv.RunInUserNamespace(t, "^TestRootless$")
		return
	}
	uniontest.Run(t, uniontest.Setup{Factory: mounted.Plyfs{Data: "noopen"}})
}
