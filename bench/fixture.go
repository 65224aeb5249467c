package bench

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Fixture is what the lower layers of a workload hold. It is built once per run and medium, and never changed.
type Fixture struct {
	// Name identifies the fixture; equal names mean equal content.
	Name string
	// Layers is the number of lower layers.
	Layers int
	// Build fills the layers, topmost first, and aux, and describes the tree. scale divides the sizes.
	Build func(ctx context.Context, layers []string, aux string, scale int) (Tree, error)
	// Keep says how long the built fixture stays.
	Keep Keep
}

// Keep says how long a fixture is kept.
type Keep int

const (
	// KeepForRun keeps a fixture until the end of the run.
	KeepForRun Keep = iota
	// KeepForWorkload removes it, since it is huge, as soon as a workload comes that does not use it.
	KeepForWorkload
)

const (
	walkFiles    = 20_000
	smallSize    = 4 << 10
	lowerFiles   = 10_000
	lowerSize    = 2 << 10
	bigSize      = 512 << 20
	repoFiles    = 5_000
	repoSize     = 1 << 10
	millionFiles = 1_000_000
	wideLayers   = 4
	mostLayers   = 500 // as many as the kernel's overlayfs has at most
	archiveName  = "archive.tar"
)

// treeFixture is the tree of small files that walks and opens use, spread over a number of layers that all hold all
// directories.
func treeFixture(layers int) Fixture { return spreadFixture("tree", layers, AllMerged) }

// imageFixture is the same tree with each directory in those layers only that have files of it.
func imageFixture(layers int) Fixture { return spreadFixture("image", layers, InRuns) }

func spreadFixture(name string, layers int, spread Spread) Fixture {
	return Fixture{
		Name: name + strconv.Itoa(layers), Layers: layers,
		Build: func(ctx context.Context, dirs []string, _ string, scale int) (Tree, error) {
			t := Tree{
				Files: max(perDir, walkFiles/scale), Size: smallSize, PerDir: perDir, Layers: layers, Spread: spread,
			}
			return t, t.build(ctx, dirs)
		},
	}
}

// lowerFixture holds the files of one layer that copy-up and whiteout workloads change.
func lowerFixture() Fixture {
	return Fixture{
		Name: "lower", Layers: 1,
		Build: func(ctx context.Context, dirs []string, _ string, scale int) (Tree, error) {
			t := Tree{Files: max(perDir, lowerFiles/scale), Size: lowerSize, PerDir: perDir, Layers: 1}
			return t, t.build(ctx, dirs)
		},
	}
}

// bigFixture is one file of 512 MiB.
func bigFixture() Fixture {
	return Fixture{
		Name: "big", Layers: 1,
		Build: func(_ context.Context, dirs []string, _ string, scale int) (Tree, error) {
			size := max(1<<20, bigSize/scale) &^ (1<<20 - 1)
			return Tree{Files: 1, Size: size, PerDir: 1, Layers: 1}, buildBig(filepath.Join(dirs[0], bigName), size)
		},
	}
}

const bigName = "big"

// emptyFixture is one empty layer.
func emptyFixture() Fixture {
	return Fixture{
		Name: "empty", Layers: 1,
		Build: func(context.Context, []string, string, int) (Tree, error) { return Tree{Layers: 1}, nil },
	}
}

// archiveFixture is an empty layer and a tar archive of 20,000 files of 4 KiB with owners and times.
func archiveFixture() Fixture {
	return Fixture{
		Name: "archive", Layers: 1,
		Build: func(_ context.Context, _ []string, aux string, scale int) (Tree, error) {
			t := Tree{Files: max(perDir, walkFiles/scale), Size: smallSize, PerDir: perDir, Layers: 1}
			return t, t.writeArchive(filepath.Join(aux, archiveName))
		},
	}
}

// repoFixture is a git repository with one commit of 5,000 files.
func repoFixture() Fixture {
	return Fixture{
		Name: "repo", Layers: 1,
		Build: func(ctx context.Context, dirs []string, _ string, scale int) (Tree, error) {
			t := Tree{Files: max(perDir, repoFiles/scale), Size: repoSize, PerDir: perDir, Layers: 1}
			if err := t.build(ctx, dirs); err != nil {
				return t, err
			}
			return t, commitAll(ctx, dirs[0])
		},
	}
}

// millionFixture is 1,000,000 empty files.
func millionFixture() Fixture {
	return Fixture{
		Name: "million", Layers: 1, Keep: KeepForWorkload,
		Build: func(ctx context.Context, dirs []string, _ string, scale int) (Tree, error) {
			t := Tree{Files: millionFiles / scale, PerDir: 1000, Layers: 1}
			return t, t.build(ctx, dirs)
		},
	}
}

// wideFixture is 1,000,000 empty files in 10,000 directories that each of 4 layers has: what a large index is made of.
func wideFixture() Fixture {
	return Fixture{
		Name: "wide", Layers: wideLayers, Keep: KeepForWorkload,
		Build: func(ctx context.Context, dirs []string, _ string, scale int) (Tree, error) {
			t := Tree{Files: millionFiles / scale, PerDir: perDir, Layers: wideLayers}
			return t, t.build(ctx, dirs)
		},
	}
}

// build makes the tree over the given layer directories.
func (t Tree) build(ctx context.Context, layers []string) error {
	roots := make([]int, len(layers))
	for i, dir := range layers {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return opError("open", dir, err)
		}
		defer unix.Close(fd)
		roots[i] = fd
		if t.Spread == InRuns {
			continue
		}
		if err := t.makeDirs(fd); err != nil {
			return err
		}
	}
	content := make([]byte, t.Size)
	fill(content, 0)
	for i := range t.Files {
		if i%1000 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		root := roots[t.layerOf(i)]
		if t.Spread == InRuns {
			if err := t.makeParents(root, i); err != nil {
				return err
			}
		}
		if err := writeFile(root, t.path(i), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func buildBig(name string, size int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for off := 0; off < size; off += len(buf) {
		fill(buf, int64(off))
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Close()
}

// writeArchive writes the tree as a tar archive, with owners that are not the caller and times in the past.
func (t Tree) writeArchive(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(buf)
	for i, d := range t.dirs() {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: pastTime(i), Uid: 1000, Gid: 1000}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
	}
	content := make([]byte, t.Size)
	fill(content, 0)
	for i := range t.Files {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: t.path(i), Mode: 0o640, Size: int64(t.Size),
			ModTime: pastTime(i), Uid: 1000 + i%7, Gid: 1000 + i%5,
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), buf.Flush(), f.Close())
}

// pastTime is the modification time of the i-th object of an archive.
func pastTime(i int) time.Time { return time.Unix(1_500_000_000+int64(i), 0) }

// commitAll makes dir a git repository whose index depends on sizes and times only, so that git reads no content on
// a file system that reports other inode numbers than the layer's own.
func commitAll(ctx context.Context, dir string) error {
	if _, err := exec.LookPath("git"); err != nil {
		return &SkipError{Reason: "git is not installed"}
	}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// git reads again what was changed in the second in which its index was written.
		return os.Chtimes(p, pastTime(0), pastTime(0))
	})
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"},
		{"config", "core.checkStat", "minimal"},
		{"config", "core.trustctime", "false"},
		{"config", "gc.auto", "0"},
		{"add", "-A"},
		{"-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "all"},
		{"repack", "-q", "-a", "-d"},
	} {
		if out, err := gitCommand(ctx, dir, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w: %s", args[0], err, out)
		}
	}
	return nil
}

// gitCommand prepares git without any configuration from outside of the repository.
func gitCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-C", dir}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "LC_ALL=C")
	return cmd
}
