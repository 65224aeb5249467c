package layerdb

import (
	"fmt"
	"os"
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
	return []string{envChildDriver + "=" + b.Name, envChildProgram + "=" + b.program}
}

func backendOfChild() (backend, error) {
	for _, f := range []drivers.Factory{vfs.Factory(), overlay2.Factory(), plyfs.Factory()} {
		if f.Name == os.Getenv(envChildDriver) {
			return backend{Factory: f, program: os.Getenv(envChildProgram)}, nil
		}
	}
	return backend{}, fmt.Errorf("driver %q: %w", os.Getenv(envChildDriver), drivers.ErrNotFound)
}
