package plyfs

import (
	"os"
	"path/filepath"
	"testing"

	"plyfs/drivers/drivertest"
	"plyfs/internal/testenv"
)

const oneLink = "the link count is that of the file in the layer, which has both names"

func suite(t *testing.T) drivertest.Suite {
	t.Helper()
	return drivertest.Suite{
		Factory:   Factory(),
		Options:   map[string]string{"mount_program": testenv.Binary(t)},
		Base:      drivertest.Scratch,
		SmallBase: drivertest.SmallScratch,
		Abilities: drivertest.Abilities{QuotaBytes: true, QuotaInodes: true, ReadOnlyImages: true, ReadOnlyGet: true},
		Differences: []drivertest.Difference{
			{Case: "Layers/hardlink-remove-one", Reason: oneLink},
		},
	}
}

func TestSuite(t *testing.T) { drivertest.Run(t, suite(t)) }

func TestSuiteInUserNamespace(t *testing.T) { testenv.RunInUserNamespace(t, "^TestSuite$") }

// TestSuiteNested: the store lies in a container whose root is an overlay, as in Docker-in-Docker.
func TestSuiteNested(t *testing.T) {
	const names = "whiteouts are AUFS files there, and no name is left for one of a name beyond 251 bytes"
	const handles = "an overlay has no file handles, by which the hard-link index finds the other names of a file"
	s := suite(t)
	s.Base = func(t testing.TB) string { return overlayOn(t, drivertest.Scratch(t)) }
	s.SmallBase = func(t testing.TB) string { return overlayOn(t, drivertest.SmallScratch(t)) }
	s.Differences = append(s.Differences,
		drivertest.Difference{Case: "Layers/hardlink-across-layers", Reason: handles},
		drivertest.Difference{Case: "Layers/hardlink-copy-up", Reason: handles},
		drivertest.Difference{Case: "Layers/names", Reason: names},
	)
	drivertest.Run(t, s)
}

// overlayOn is the root of an overlay that lies in dir.
func overlayOn(t testing.TB, dir string) string {
	t.Helper()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	merged := filepath.Join(dir, "merged")
	must(t, testenv.MountOverlay(testenv.Overlay{
		Lowers: []string{filepath.Join(dir, "lower")}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
		Options: []string{"index=off", "metacopy=off", "redirect_dir=off"},
	}, merged))
	t.Cleanup(func() { testenv.Unmount(t, merged) })
	return merged
}
