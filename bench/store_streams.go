package bench

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"time"
)

// streams are tar streams of generated layers, made once on each medium.
type streams struct {
	dir   string
	built map[string]string
}

func newStreams(dir string) *streams { return &streams{dir: dir, built: make(map[string]string)} }

// layerShape says what a generated layer holds.
type layerShape struct {
	files int
	// sizes are the sizes of the files, in turn.
	sizes []int
}

// softwareSizes are the sizes of files as software packages install them: many small ones, few large.
func softwareSizes() []int { return []int{120, 700, 1800, 350, 4200, 9500, 60, 2600, 21000, 1100} }

// path returns the file name of a tar stream of the shape.
func (s *streams) path(shape layerShape) (string, error) {
	key := fmt.Sprintf("layer-%d-%d.tar", shape.files, len(shape.sizes))
	if name, ok := s.built[key]; ok {
		return name, nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return "", err
	}
	name := filepath.Join(s.dir, key)
	if err := writeStream(name, shape); err != nil {
		return "", err
	}
	s.built[key] = name
	return name, nil
}

// writeStream writes the tar stream of a layer: directories of perDir files, two levels deep.
func writeStream(name string, shape layerShape) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	buf := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(buf)
	t := Tree{Files: shape.files, PerDir: perDir}
	mtime := time.Unix(1_700_000_000, 0)
	for _, d := range t.dirs() {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: mtime}); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	content := make([]byte, 64<<10)
	fill(content, 0)
	for i := range shape.files {
		size := shape.sizes[i%len(shape.sizes)]
		h := tar.Header{Typeflag: tar.TypeReg, Name: t.path(i), Mode: 0o644, Size: int64(size), ModTime: mtime}
		if err := w.WriteHeader(&h); err != nil {
			return errors.Join(err, f.Close())
		}
		if _, err := w.Write(content[:size]); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(w.Close(), buf.Flush(), f.Close())
}

// changeFiles appends to n files of a generated layer that is unpacked at root, in as many directories as there are.
func changeFiles(root string, files, n int) error {
	t := Tree{Files: files, PerDir: perDir}
	for k := range n {
		f, err := os.OpenFile(path.Join(root, t.path(k*files/n)), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("changed")
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
