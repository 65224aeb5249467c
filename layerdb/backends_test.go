package layerdb

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"plyfs/drivers"
	"plyfs/drivers/overlay2"
	"plyfs/drivers/plyfs"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
)

// backend is a driver that a test's store has.
type backend struct {
	drivers.Factory
	// program serves the mounts of driver plyfs.
	program string
	// image says that the scenario of a crash is an image whose layers are unpacked at once.
	image bool
	// snapshots says that it is the life of snapshots.
	snapshots bool
	// restore says that it is the restoring of a layer that the store has lost.
	restore bool
}

func vfsBackend() backend { return backend{Factory: vfs.Factory()} }

// stackingBackends are the drivers of plyfs that stack directories.
func stackingBackends(t testing.TB) []backend {
	t.Helper()
	return []backend{{Factory: overlay2.Factory()}, {Factory: plyfs.Factory(), program: testenv.Binary(t)}}
}

// at returns options of a store in root with the driver.
func (b backend) at(root string) Options {
	o := Options{Root: root, Registry: drivers.NewRegistry(b.Factory), Wait: -1}
	if b.program != "" {
		o.DriverOptions = map[string]string{"mount_program": b.program}
	}
	return o
}

// environment tells a child which backend it has.
func (b backend) environment() []string {
	return []string{
		envChildDriver + "=" + b.Name, envChildProgram + "=" + b.program, envChildImage + "=" + strconv.FormatBool(b.image),
		envChildSnapshots + "=" + strconv.FormatBool(b.snapshots), envChildRestore + "=" + strconv.FormatBool(b.restore),
	}
}

// scenario runs what is to be interrupted.
func (b backend) scenario(s *Store, say func(word, op string)) {
	switch {
	case b.image:
		imageScenario(s, say)
		return
	case b.snapshots:
		snapshotScenario(s, say)
		return
	case b.restore:
		restoreScenario(s, say)
		return
	}
	base, top := scenarioTars(nil)
	scenario(s, base, top, say)
}

func backendOfChild() (backend, error) {
	for _, f := range []drivers.Factory{vfs.Factory(), overlay2.Factory(), plyfs.Factory()} {
		if f.Name == os.Getenv(envChildDriver) {
			return backend{
				Factory: f, program: os.Getenv(envChildProgram), image: os.Getenv(envChildImage) == "true",
				snapshots: os.Getenv(envChildSnapshots) == "true", restore: os.Getenv(envChildRestore) == "true",
			}, nil
		}
	}
	return backend{}, fmt.Errorf("driver %q: %w", os.Getenv(envChildDriver), drivers.ErrNotFound)
}
