package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
	"plyfs/layerdb"
)

func TestMain(m *testing.M) {
	// Fuzzing needs no namespaces, and its workers find the files of the process that started them.
	if slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzz=") || a == "-test.fuzzworker" }) {
		os.Exit(m.Run())
	}
	os.Exit(testenv.Main(m, testenv.Options{}))
}

// newStore opens a new store, closed after the test.
func newStore(t testing.TB) *Store {
	t.Helper()
	return openStore(t, filepath.Join(testenv.Scratch(t), "store"))
}

func openStore(t testing.TB, root string) *Store {
	t.Helper()
	return openStoreOf(t, root, vfs.Factory())
}

// openStoreOf opens a store of the driver, closed after the test.
func openStoreOf(t testing.TB, root string, driver drivers.Factory) *Store {
	t.Helper()
	layers, err := layerdb.Open(context.Background(), layerdb.Options{Root: root, Registry: drivers.NewRegistry(driver), Wait: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := layers.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := Open(layers)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mustBeEmpty fails the test if anything of an image is in the store. Downloads that broke off are allowed to be there.
func mustBeEmpty(t testing.TB, s *Store) {
	t.Helper()
	ctx := context.Background()
	layers, err := s.layers.Layers(ctx)
	if err != nil || len(layers) > 0 {
		t.Errorf("layers left: %v, %v", layers, err)
	}
	holders, err := s.layers.Holders(ctx, "")
	if err != nil || len(holders) > 0 {
		t.Errorf("references left: %v, %v", holders, err)
	}
	if err := s.blobs.list(func(d digest.Digest, _ int64) error {
		t.Errorf("blob left: %s", d)
		return nil
	}); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(s.layers.TempDir())
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files left: %v, %v", left, err)
	}
}

// tarOf is a layer of regular files, whose names give the order.
func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: name, Size: int64(len(files[name])), Mode: 0o644, ModTime: time.Unix(1700000000, 0),
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// gzipped is data as another program than plyfs compresses it.
func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w.Comment = "not plyfs"
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// files are the files of an OCI layout or an archive by name.
type files map[string][]byte

// add adds a blob and describes it.
func (f files) add(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	f[blobName(d.Digest)] = data
	return d
}

// image adds an image of gzipped layers and describes its manifest.
func (f files) image(t testing.TB, p ocispec.Platform, layers ...[]byte) ocispec.Descriptor {
	t.Helper()
	created := time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	config := ocispec.Image{Created: &created, Platform: p, RootFS: ocispec.RootFS{Type: "layers"}}
	config.Config.Env = []string{"PATH=/bin"}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		config.History = append(config.History, ocispec.History{CreatedBy: "test"})
		m.Layers = append(m.Layers, f.add(ocispec.MediaTypeImageLayerGzip, gzipped(t, l)))
	}
	// Another program's config has other fields, and is laid out in its own way.
	var doc map[string]any
	must(t, json.Unmarshal(encoded(t, config), &doc))
	doc["x-other"] = map[string]any{"kept": true}
	raw, err := json.MarshalIndent(doc, "", "   ")
	must(t, err)
	m.Config = f.add(ocispec.MediaTypeImageConfig, raw)
	return f.add(ocispec.MediaTypeImageManifest, encoded(t, m))
}

// index makes the files an OCI layout.
func (f files) index(t testing.TB, manifests ...ocispec.Descriptor) {
	t.Helper()
	f[ocispec.ImageLayoutFile] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	f[ocispec.ImageIndexFile] = encoded(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: manifests})
}

// named is a descriptor with the name of an image.
func named(d ocispec.Descriptor, name string) ocispec.Descriptor {
	d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	return d
}

// dir writes the files to a directory.
func (f files) dir(t testing.TB) string {
	t.Helper()
	dir := testenv.Scratch(t)
	for name, data := range f {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), data, 0o644))
	}
	return dir
}

// tar is the files as a tar file.
func (f files) tar(t testing.TB) []byte {
	t.Helper()
	text := make(map[string]string)
	for name, data := range f {
		text[name] = string(data)
	}
	return tarOf(t, text)
}

// twoLayers is a layout of one image with two layers, named example.test/app:1.
func twoLayers(t testing.TB) (files, [][]byte) {
	t.Helper()
	f := make(files)
	layers := [][]byte{
		tarOf(t, map[string]string{"a": "one\n", "dir/b": "two\n"}),
		tarOf(t, map[string]string{"dir/.wh.b": "", "dir/c": string(bytes.Repeat([]byte("three\n"), 40000))}),
	}
	f.index(t, named(f.image(t, hostPlatform(), layers...), "example.test/app:1"))
	return f, layers
}

// write puts data in a file.
func write(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(testenv.Scratch(t), "file")
	must(t, os.WriteFile(path, data, 0o644))
	return path
}

func encoded(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	must(t, err)
	return raw
}

var must = testenv.Must

func mustBe(t testing.TB, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("got error %v, want one of the class %q", err, class)
	}
}

// importOne imports an archive of one image.
func importOne(t testing.TB, s *Store, path string, o ImportOptions) Image {
	t.Helper()
	images, err := s.Import(context.Background(), path, o)
	if err != nil || len(images) != 1 {
		t.Fatalf("%d images, %v", len(images), err)
	}
	return images[0]
}
