package image

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
	"plyfs/internal/testenv"
	"plyfs/layerdb"
)

// exportOf is the bytes of a layer as they go out.
func exportOf(t testing.TB, s *Store, id layerdb.ChainID) []byte {
	t.Helper()
	var buf bytes.Buffer
	must(t, s.layers.Export(context.Background(), id, &buf))
	return buf.Bytes()
}

// An OCI layout is taken in every form in which it can be, and its layers and documents stay what they were.
func TestImportOCI(t *testing.T) {
	f, layers := twoLayers(t)
	archive := f.tar(t)
	for name, c := range map[string]struct {
		path string
		in   io.Reader
	}{
		"directory":       {path: f.dir(t)},
		"archive":         {path: write(t, archive)},
		"gzipped archive": {path: write(t, gzipped(t, archive))},
		"stdin":           {in: bytes.NewReader(archive)},
		"gzipped stdin":   {in: bytes.NewReader(gzipped(t, archive))},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			i := importOne(t, s, c.path, ImportOptions{Input: c.in})
			if len(i.Names) != 1 || i.Names[0] != "example.test/app:1" || i.Platform != platformString(hostPlatform()) {
				t.Errorf("%+v", i)
			}
			for k, l := range layers {
				if !bytes.Equal(exportOf(t, s, i.chain(k)), l) {
					t.Errorf("layer %d goes out changed", k)
				}
			}
			raw, _, err := s.Config(t.Context(), i)
			if err != nil || digest.FromBytes(raw) != i.ID || !bytes.Equal(raw, f[blobName(i.ID)]) {
				t.Errorf("the config is another: %v", err)
			}
			m, err := s.Manifest(t.Context(), i)
			if err != nil || !bytes.Equal(m, f[blobName(i.Manifest.Digest)]) {
				t.Errorf("the manifest is another: %v", err)
			}
			for _, l := range i.Layers {
				if _, ok := s.blobs.size(l.Blob.Digest); ok {
					t.Errorf("the blob %s is kept", l.Blob.Digest)
				}
			}
			if _, err := s.Remove(t.Context(), "example.test/app:1", Careful); err != nil {
				t.Error(err)
			}
			mustBeEmpty(t, s)
		})
	}
}

// With its blobs kept, a layout that goes out has every file of the one that came in.
func TestRoundTripIsExact(t *testing.T) {
	f, _ := twoLayers(t)
	s := newStore(t)
	i := importOne(t, s, f.dir(t), ImportOptions{Blobs: KeepBlobs})
	to := filepath.Join(testenv.Scratch(t), "out")
	results, err := s.ExportDir(t.Context(), to, []Exported{{Image: i}}, ExportOptions{Form: FormDir})
	if err != nil || results[0].Rewritten || results[0].Manifest != i.Manifest.Digest {
		t.Fatalf("%+v, %v", results, err)
	}
	for name, want := range f {
		if name == ocispec.ImageIndexFile {
			continue
		}
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || !bytes.Equal(got, want) && name != ocispec.ImageLayoutFile {
			t.Errorf("%s: %v, %d bytes, want %d", name, err, len(got), len(want))
		}
	}
	if _, err := s.ExportDir(t.Context(), to, []Exported{{Image: i}}, ExportOptions{Form: FormDir}); err == nil {
		t.Error("an export replaces a directory")
	}
}

// Without its blobs an image goes out with the same id and the same DiffIDs in every form, and comes in again.
func TestExportForms(t *testing.T) {
	f, layers := twoLayers(t)
	s := newStore(t)
	i := importOne(t, s, f.dir(t), ImportOptions{})
	n, err := ParseName("example.test/other:2")
	must(t, err)
	for _, o := range []ExportOptions{
		{Form: FormOCI}, {Form: FormOCI, Packing: PackPlain}, {Form: FormOCI, Packing: PackZstd}, {Form: FormDocker},
	} {
		t.Run(string(o.Form)+string(o.Packing), func(t *testing.T) {
			var out, again bytes.Buffer
			results, err := s.Export(t.Context(), &out, []Exported{{i, []Name{n}}}, o)
			must(t, err)
			if results[0].Rewritten != (o.Form == FormOCI) {
				t.Errorf("%+v", results)
			}
			_, err = s.Export(t.Context(), &again, []Exported{{i, []Name{n}}}, o)
			must(t, err)
			if !bytes.Equal(out.Bytes(), again.Bytes()) {
				t.Error("the same image gives other bytes")
			}
			other := newStore(t)
			got := importOne(t, other, "", ImportOptions{Input: &out})
			if got.ID != i.ID || len(got.Names) != 1 || got.Names[0] != n.String() {
				t.Errorf("%+v", got)
			}
			for k, l := range layers {
				if !bytes.Equal(exportOf(t, other, got.chain(k)), l) {
					t.Errorf("layer %d is another", k)
				}
			}
		})
	}
	if _, err := s.Export(t.Context(), io.Discard, []Exported{{Image: i}}, ExportOptions{Form: FormDocker, Packing: PackZstd}); err == nil {
		t.Error("a docker archive is compressed")
	}
	if left, err := os.ReadDir(s.layers.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// An archive of docker save has its layers where it says, by way of links in those of old versions.
func TestImportDockerArchive(t *testing.T) {
	f, layers := twoLayers(t)
	i := importOne(t, newStore(t), f.dir(t), ImportOptions{})
	archive := files{
		"config.json":   f[blobName(i.ID)],
		"one/layer.tar": layers[0],
		"two/layer.tar": layers[1],
		"manifest.json": []byte(`[{"Config":"config.json","RepoTags":["app:1","other/app:2"],"Layers":["one/layer.tar","two/layer.tar"]}]`),
	}
	s := newStore(t)
	got := importOne(t, s, write(t, archive.tar(t)), ImportOptions{})
	if got.ID != i.ID || len(got.Names) != 2 || got.Manifest != nil {
		t.Errorf("%+v", got)
	}
	_, err := s.Manifest(t.Context(), got)
	mustBe(t, err, drivers.ErrNotFound)
	if _, err := s.Find(t.Context(), "docker.io/other/app:2"); err != nil {
		t.Error(err)
	}
}

// An index offers images for platforms, and the one for this machine, or the wanted one, comes in.
func TestPlatforms(t *testing.T) {
	f := make(files)
	other := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	a := f.image(t, hostPlatform(), tarOf(t, map[string]string{"a": "host"}))
	b := f.image(t, other, tarOf(t, map[string]string{"a": "other"}))
	host := hostPlatform()
	a.Platform, b.Platform = &host, &other
	multi := f.add(ocispec.MediaTypeImageIndex, encoded(t, ocispec.Index{Manifests: []ocispec.Descriptor{b, a}}))
	f.index(t, named(multi, "example.test/multi:1"))
	dir := f.dir(t)
	if i := importOne(t, newStore(t), dir, ImportOptions{}); i.Manifest.Digest != a.Digest {
		t.Errorf("%+v", i)
	}
	if i := importOne(t, newStore(t), dir, ImportOptions{Platform: other}); i.Manifest.Digest != b.Digest {
		t.Errorf("%+v", i)
	}
	s := newStore(t)
	_, err := s.Import(t.Context(), dir, ImportOptions{Platform: ocispec.Platform{OS: "plan9", Architecture: "mips"}})
	mustBe(t, err, drivers.ErrNotFound)
	mustBeEmpty(t, s)
}
