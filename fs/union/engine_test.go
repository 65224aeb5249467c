package union_test

import (
	"os"
	"testing"

	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/fs/union/uniontest/mounted"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) {
	childMain()
	os.Exit(testenv.Main(m, testenv.Options{}))
}

// TestEngine runs the behaviour suite on the engine; what it wrote is then read by the kernel's overlayfs.
func TestEngine(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{Factory: direct.Engine{}, Cross: []uniontest.Factory{mounted.Kernel{}}})
}

// TestEngineIndexed runs it with an index of the lowers.
func TestEngineIndexed(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{Factory: direct.Engine{Indexed: true}, Cross: []uniontest.Factory{mounted.Kernel{}}})
}

// TestEngineFewDescriptors runs it with so few descriptors that nearly every operation opens anew.
func TestEngineFewDescriptors(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{Factory: direct.Engine{MaxOpenFiles: 16}})
}

// TestEnginePlainRenames runs it where renameat2 takes no flags.
func TestEnginePlainRenames(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{
		Factory: direct.Engine{Mutator: &sys.Mutator{NoRenameFlags: true}}, Cross: []uniontest.Factory{mounted.Kernel{}},
	})
}

// TestEngineAUFS runs it with the AUFS form of whiteouts.
func TestEngineAUFS(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{Factory: direct.Engine{AUFS: true}})
}

// TestEngineReadsKernel lets the engine show what the kernel's overlayfs wrote.
func TestEngineReadsKernel(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{
		Factory: mounted.Kernel{}, Cross: []uniontest.Factory{direct.Engine{}},
		Only: func(c uniontest.Case) bool { return c.NoCross == "" },
	})
}

// TestEngineRootless runs it in a user namespace, where marks are user.overlay attributes.
func TestEngineRootless(t *testing.T) {
	if !testenv.InUserNamespace() {
		testenv.RunInUserNamespace(t, "^TestEngineRootless$")
		return
	}
	uniontest.Run(t, uniontest.Setup{Factory: direct.Engine{}})
}
