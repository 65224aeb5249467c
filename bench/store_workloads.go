package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// The series of store workloads that report more than one quantity.
const (
	commitSmall   = "store-commit-small"
	commitLarge   = "store-commit-large"
	perContainer  = "store-container-bytes"
	manyLayers    = 64
	manyCreations = 100
)

func numCPU() int { return runtime.NumCPU() }

// unpackWorkload is the price of a layer's way in, without hashing and without waiting for the disk.
func unpackWorkload() StoreWorkload {
	return StoreWorkload{
		Name: "store-unpack", Doc: "unpack a layer of 30,000 files from a tar stream",
		Systems: []string{StoreTar, StoreOverlay2, StorePlyfs},
		Run: func(ctx context.Context, e *StoreEnv) error {
			n := e.N(30_000)
			stream, err := e.Streams.path(layerShape{files: n, sizes: softwareSizes()})
			if err != nil {
				return err
			}
			e.Ops(n)
			if e.On == StoreTar {
				out := filepath.Join(e.Dir, "out")
				if err := os.Mkdir(out, 0o755); err != nil {
					return err
				}
				err = e.Measure(func() error { return runTar(ctx, stream, out) })
				return errors.Join(err, verifyFiles(out, n))
			}
			d, differ, err := e.open(ctx)
			if err != nil {
				return err
			}
			defer d.Close()
			if err := e.Measure(func() error { return applyFile(ctx, d, differ, "layer", "", stream) }); err != nil {
				return err
			}
			return withLayer(ctx, d, "layer", func(root string) error { return verifyFiles(root, n) })
		},
	}
}

func runTar(ctx context.Context, stream, dir string) error {
	out, err := exec.CommandContext(ctx, "tar", "--extract", "--file", stream, "--directory", dir,
		"--preserve-permissions", "--numeric-owner", "--same-owner").CombinedOutput()
	if err != nil {
		return fmt.Errorf("tar: %w: %s", err, lastLines(string(out), 3))
	}
	return nil
}

// applyFile makes an image layer of a tar stream.
func applyFile(ctx context.Context, d drivers.Driver, differ drivers.Differ, id, parent, stream string) error {
	f, err := os.Open(stream)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := d.Create(ctx, id, parent, nil); err != nil {
		return err
	}
	_, err = differ.ApplyDiff(ctx, id, f, nil)
	return err
}

// withLayer calls fn with the root of a mounted layer.
func withLayer(ctx context.Context, d drivers.Driver, id string, fn func(root string) error) error {
	root, err := d.Get(ctx, id, nil)
	if err != nil {
		return err
	}
	return errors.Join(fn(root), d.Put(ctx, id))
}

// verifyFiles counts the regular files below root.
func verifyFiles(root string, want int) error {
	got := 0
	err := filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			got++
		}
		return err
	})
	return errors.Join(err, expect("files", got, want))
}

// diffWorkload is the price of reading what a container changed, against that of comparing two trees.
func diffWorkload() StoreWorkload {
	return StoreWorkload{
		Name: "store-diff-100", Doc: "read the diff of 100 changed files over an image of 100,000",
		Systems: []string{StoreOverlay2, StorePlyfs, StoreNaive}, MaxSamples: 3,
		Run: func(ctx context.Context, e *StoreEnv) error {
			n := e.N(100_000)
			changed := min(n, 100)
			d, err := e.container(ctx, n, changed)
			if err != nil {
				return err
			}
			defer d.Close()
			e.Ops(changed)
			return e.Measure(func() error {
				r, err := e.reader(d).Diff(ctx, "container", "image", nil)
				if err != nil {
					return err
				}
				_, err = io.Copy(io.Discard, r)
				return errors.Join(err, r.Close())
			})
		},
	}
}

// container makes an image of n small files and a container that changed some of them.
func (e *StoreEnv) container(ctx context.Context, n, changed int) (drivers.Driver, error) {
	stream, err := e.Streams.path(layerShape{files: n, sizes: []int{256}})
	if err != nil {
		return nil, err
	}
	d, differ, err := e.open(ctx)
	if err != nil {
		return nil, err
	}
	err = applyFile(ctx, d, differ, "image", "", stream)
	if err == nil {
		err = d.CreateReadWrite(ctx, "container", "image", nil)
	}
	if err == nil {
		err = withLayer(ctx, d, "container", func(root string) error { return changeFiles(root, n, changed) })
	}
	if err == nil {
		var changes int
		changes, err = countFiles(ctx, e.reader(d), "container", "image", n)
		err = errors.Join(err, expect("changed files", changes, changed))
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// countFiles counts the generated files among the changes of a layer.
func countFiles(ctx context.Context, differ drivers.Differ, id, parent string, files int) (int, error) {
	list, err := differ.Changes(ctx, id, parent)
	if err != nil {
		return 0, err
	}
	t := Tree{Files: files, PerDir: perDir}
	names := make(map[string]bool, files)
	for _, p := range t.paths(files) {
		names[p] = true
	}
	n := 0
	for _, c := range list {
		if names[c.Path] {
			n++
		}
	}
	return n, nil
}

// getPutWorkload is what a container costs before its first process: a mount, and its end.
func getPutWorkload() StoreWorkload {
	return StoreWorkload{
		Name: "store-get-put-64", Doc: "mount and unmount a writable layer over 64 image layers, 20 times",
		Systems: []string{StoreOverlay2, StorePlyfs},
		Run: func(ctx context.Context, e *StoreEnv) error {
			stream, err := e.Streams.path(layerShape{files: 20, sizes: []int{64}})
			if err != nil {
				return err
			}
			d, differ, err := e.open(ctx)
			if err != nil {
				return err
			}
			defer d.Close()
			parent := ""
			for i := range manyLayers {
				id := fmt.Sprintf("layer%d", i)
				if err := applyFile(ctx, d, differ, id, parent, stream); err != nil {
					return err
				}
				parent = id
			}
			if err := d.CreateReadWrite(ctx, "container", parent, nil); err != nil {
				return err
			}
			const rounds = 20
			e.Ops(rounds)
			return e.Measure(func() error {
				for range rounds {
					if err := withLayer(ctx, d, "container", func(string) error { return nil }); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// commitWorkload is the price of making a layer of 10 changed files, over a small and over a large image.
func commitWorkload() StoreWorkload {
	return StoreWorkload{
		Name: "store-commit", Doc: "commit a container with 10 changed files, over images of 1,000 and of 100,000 files",
		Systems: []string{StoreOverlay2, StorePlyfs}, MaxSamples: 3,
		Series: []Series{{commitSmall, Nanoseconds}, {commitLarge, Nanoseconds}},
		Run: func(ctx context.Context, e *StoreEnv) error {
			s, err := e.store(ctx)
			if err != nil {
				return err
			}
			defer s.Close()
			for _, c := range []struct {
				series string
				files  int
			}{{commitSmall, e.N(1000)}, {commitLarge, e.N(100_000)}} {
				took, err := e.commit(ctx, s, c.series, c.files)
				if err != nil {
					return err
				}
				e.Report(c.series, took)
			}
			return nil
		},
	}
}

// commit registers an image, changes files in a container of it, and returns the time that a commit takes.
func (e *StoreEnv) commit(ctx context.Context, s *layerdb.Store, name string, files int) (float64, error) {
	const changed, commits = 10, 5
	image, err := e.register(ctx, s, layerShape{files: files, sizes: []int{256}})
	if err != nil {
		return 0, err
	}
	if _, err := s.CreateContainer(ctx, name, image.ID, layerdb.ContainerOptions{}); err != nil {
		return 0, err
	}
	timer := Env{Scale: e.Scale, settle: e.settle}
	total := 0.0
	for range commits {
		if err := mountedContainer(ctx, s, name, func(root string) error { return changeFiles(root, files, changed) }); err != nil {
			return 0, err
		}
		timer.ran = false
		err := timer.Measure(func() error {
			_, err := s.Commit(ctx, name, layerdb.RegisterOptions{})
			return err
		})
		if err != nil {
			return 0, err
		}
		total += float64(timer.Elapsed())
	}
	return total / commits, nil
}

// register makes an image of one layer.
func (e *StoreEnv) register(ctx context.Context, s *layerdb.Store, shape layerShape) (layerdb.Layer, error) {
	stream, err := e.Streams.path(shape)
	if err != nil {
		return layerdb.Layer{}, err
	}
	f, err := os.Open(stream)
	if err != nil {
		return layerdb.Layer{}, err
	}
	defer f.Close()
	return s.Register(ctx, f, "", layerdb.RegisterOptions{})
}

func mountedContainer(ctx context.Context, s *layerdb.Store, name string, fn func(root string) error) error {
	root, err := s.Mount(ctx, name, layerdb.MountOptions{})
	if err != nil {
		return err
	}
	return errors.Join(fn(root), s.Unmount(ctx, name))
}

// containersWorkload is what a container takes up on the disk before it writes anything.
func containersWorkload() StoreWorkload {
	return StoreWorkload{
		Name: "store-containers", Doc: "100 containers of one image: what the disk grows by for each",
		Systems: []string{StoreOverlay2, StorePlyfs}, MaxSamples: 1,
		Series: []Series{{perContainer, Bytes}},
		Run: func(ctx context.Context, e *StoreEnv) error {
			s, err := e.store(ctx)
			if err != nil {
				return err
			}
			defer s.Close()
			image, err := e.register(ctx, s, layerShape{files: e.N(1000), sizes: []int{256}})
			if err != nil {
				return err
			}
			before, err := allocated(e.Dir)
			if err != nil {
				return err
			}
			for i := range manyCreations {
				name := fmt.Sprintf("c%d", i)
				if _, err := s.CreateContainer(ctx, name, image.ID, layerdb.ContainerOptions{}); err != nil {
					return err
				}
				if err := mountedContainer(ctx, s, name, func(string) error { return nil }); err != nil {
					return err
				}
			}
			after, err := allocated(e.Dir)
			e.Ops(manyCreations)
			e.Report(perContainer, float64(after-before)/manyCreations)
			return err
		},
	}
}

// allocated is the space that is taken up below dir, in bytes.
func allocated(dir string) (int64, error) {
	total := int64(0)
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			total += st.Blocks * 512
		}
		return nil
	})
	return total, err
}
