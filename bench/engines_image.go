package bench

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const (
	engineImageName = "localhost/bench:latest"
	// engineLayers is the number of layers of the image. Of those above the first, each has filesPerLayer files.
	engineLayers  = 41
	filesPerLayer = 20
	// oldFiles is the number of files in the directory that a build removes, buildFiles that of those that it unpacks.
	oldFiles   = 500
	buildFiles = 2000
	busybox    = "/bin/busybox"
)

// layerTar writes one layer.
type layerTar struct {
	buf bytes.Buffer
	w   *tar.Writer
	err error
}

func newLayerTar() *layerTar {
	l := &layerTar{}
	l.w = tar.NewWriter(&l.buf)
	return l
}

func (l *layerTar) add(h tar.Header, content []byte) {
	h.Size, h.ModTime = int64(len(content)), time.Unix(1_700_000_000, 0)
	if err := l.w.WriteHeader(&h); err != nil {
		l.err = errors.Join(l.err, err)
		return
	}
	if _, err := l.w.Write(content); err != nil {
		l.err = errors.Join(l.err, err)
	}
}

func (l *layerTar) dir(name string) {
	l.add(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil)
}

func (l *layerTar) file(name string, mode int64, content []byte) {
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content)
}

// bytes ends the layer and returns it.
func (l *layerTar) bytes() ([]byte, error) {
	err := errors.Join(l.err, l.w.Close())
	return l.buf.Bytes(), err
}

// writeEngineImage writes the image as an archive that podman and containerd read: busybox, and layers that each add files to
// directories that all have.
func writeEngineImage(file string) error {
	base, err := baseLayer()
	if err != nil {
		return err
	}
	contents := [][]byte{base}
	for i := 1; i < engineLayers; i++ {
		l := newLayerTar()
		for _, d := range []string{"etc", "opt", "usr", "usr/share"} {
			l.dir(d)
		}
		l.dir(fmt.Sprintf("usr/share/layer%d", i))
		for j := range filesPerLayer {
			l.file(fmt.Sprintf("usr/share/layer%d/file%d", i, j), 0o644, generated(i*filesPerLayer+j, 2000))
		}
		l.file("etc/last", 0o644, fmt.Appendf(nil, "%d\n", i))
		b, err := l.bytes()
		if err != nil {
			return err
		}
		contents = append(contents, b)
	}
	img, err := imageOf(contents)
	if err != nil {
		return fmt.Errorf("make an image: %w", err)
	}
	tag, err := name.NewTag(engineImageName)
	if err != nil {
		return err
	}
	return errors.Join(tarball.WriteToFile(file, tag, img), os.Chmod(file, 0o644))
}

func imageOf(contents [][]byte) (v1.Image, error) {
	var layers []v1.Layer
	for _, b := range contents {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err != nil {
			return nil, err
		}
		layers = append(layers, layer)
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", runtime.GOARCH
	c.Config.Env, c.Config.Cmd = []string{"PATH=/bin"}, []string{"/bin/sh"}
	return mutate.ConfigFile(img, c)
}

// baseLayer is the lowest layer.
func baseLayer() ([]byte, error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, fmt.Errorf("a static busybox is needed (package busybox-static): %w", err)
	}
	l := newLayerTar()
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "root", "run", "opt", "opt/old", "usr", "usr/share"} {
		l.dir(d)
	}
	l.add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	l.file("bin/busybox", 0o755, program)
	for _, applet := range []string{"sh", "true", "tar", "rm", "ls", "wc", "test"} {
		l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777}, nil)
	}
	l.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	l.file("etc/group", 0o644, []byte("root:x:0:\n"))
	for i := range oldFiles {
		l.file(fmt.Sprintf("opt/old/file%d", i), 0o644, generated(i, 500))
	}
	return l.bytes()
}

// writeBuild makes the context of a build that installs many files and removes a directory.
func writeBuild(dir string) error {
	l := newLayerTar()
	l.dir("opt")
	l.dir("opt/new")
	sizes := softwareSizes()
	for i := range buildFiles {
		at := fmt.Sprintf("opt/new/dir%d", i/perDir)
		if i%perDir == 0 {
			l.dir(at)
		}
		l.file(fmt.Sprintf("%s/file%d", at, i), 0o644, generated(i, sizes[i%len(sizes)]))
	}
	b, err := l.bytes()
	if err != nil {
		return err
	}
	const containerfile = "FROM " + engineImageName + "\nCOPY packages.tar /tmp/packages.tar\n" +
		"RUN tar -xf /tmp/packages.tar -C / && rm /tmp/packages.tar\nRUN rm -r /opt/old\n"
	return errors.Join(os.WriteFile(filepath.Join(dir, "packages.tar"), b, 0o644),
		os.WriteFile(filepath.Join(dir, "Containerfile"), []byte(containerfile), 0o644))
}

// generated is the content of a file.
func generated(seed, size int) []byte {
	b := make([]byte, size)
	fill(b, int64(seed)<<16)
	return b
}
