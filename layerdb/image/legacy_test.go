package image

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"plyfs/internal/testenv"
	"plyfs/layerdb"
)

// oldStore is a directory that another program left behind.
type oldStore struct {
	testing.TB
	dir string
}

func (o oldStore) write(data []byte, path ...string) {
	o.Helper()
	p := filepath.Join(append([]string{o.dir}, path...)...)
	must(o, os.MkdirAll(filepath.Dir(p), 0o755))
	must(o, os.WriteFile(p, data, 0o644))
}

func (o oldStore) writeJSON(v any, path ...string) {
	o.Helper()
	b, err := json.Marshal(v)
	must(o, err)
	o.write(b, path...)
}

// layer writes a layer's files, and its stream as tar-split data.
func (o oldStore) layer(files map[string]string, tree, split string) digest.Digest {
	o.Helper()
	stream := tarOf(o, files)
	for name, content := range files {
		o.write([]byte(content), tree, name)
	}
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	r, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(stream), storage.NewJSONPacker(z), storage.NewDiscardFilePutter())
	must(o, err)
	_, err = new(bytes.Buffer).ReadFrom(r)
	must(o, errors.Join(err, r.Close(), <-done))
	must(o, z.Close())
	o.write(buf.Bytes(), split)
	return digest.FromBytes(stream)
}

// config is that of an image with one layer.
func config(t testing.TB, diffIDs ...digest.Digest) []byte {
	t.Helper()
	b, err := json.Marshal(ocispec.Image{
		Platform: hostPlatform(), Author: "someone", RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	must(t, err)
	return b
}

// mobyImages is a store of docker's: an image with two names, one with a layer that is gone, and one whose config was changed.
func mobyImages(t testing.TB) (dir string, good []byte) {
	o := oldStore{t, testenv.Scratch(t)}
	const at = "image/overlay2/layerdb/sha256"
	d := digest.FromBytes(tarOf(t, map[string]string{"f": "content"}))
	o.layer(map[string]string{"f": "content"}, "overlay2/cache/diff", filepath.Join(at, d.Encoded(), "tar-split.json.gz"))
	o.write([]byte("cache"), at, d.Encoded(), "cache-id")
	o.write([]byte(d), at, d.Encoded(), "diff")
	good = config(t, d)
	lost, bent := config(t, digest.FromString("gone")), config(t, d, d)
	const content = "image/overlay2/imagedb/content/sha256"
	o.write(good, content, digest.FromBytes(good).Encoded())
	o.write(lost, content, digest.FromBytes(lost).Encoded())
	o.write(append(bent, '\n'), content, digest.FromBytes(bent).Encoded())
	o.writeJSON(map[string]any{"Repositories": map[string]any{
		"box":             map[string]any{"box:1": digest.FromBytes(good), "box@" + digest.FromString("m").String(): digest.FromBytes(good)},
		"example.test/it": map[string]any{"example.test/it:latest": digest.FromBytes(good)},
	}}, "image/overlay2/repositories.json")
	return o.dir, good
}

// storageImages is the same as podman keeps it, with a manifest, and with a manifest list.
func storageImages(t testing.TB) (dir string, good []byte) {
	o := oldStore{t, testenv.Scratch(t)}
	d := o.layer(map[string]string{"f": "content"}, "overlay/l0/diff", "overlay-layers/l0.tar-split.gz")
	o.writeJSON([]any{map[string]any{"id": "l0", "diff-digest": d}}, "overlay-layers/layers.json")
	good = config(t, d)
	lost, bent := config(t, digest.FromString("gone")), config(t, d, d)
	var list []any
	for i, c := range [][]byte{good, lost, bent} {
		id := digest.FromBytes(c)
		names := []string{}
		if i == 0 {
			names = []string{"docker.io/library/box:1", "example.test/it:latest"}
		}
		list = append(list, map[string]any{
			"id": id.Encoded(), "names": names, "layer": "l0", "big-data-names": []string{"manifest", id.String()},
		})
		if i == 2 {
			c = append(c, '\n')
		}
		o.write(c, "overlay-images", id.Encoded(), bigDataFile(id.String()))
	}
	m, err := newManifest(good, []ocispec.Descriptor{{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("blob"), Size: 7,
	}})
	must(t, err)
	o.write(m.raw, "overlay-images", digest.FromBytes(good).Encoded(), "manifest")
	list = append(list, map[string]any{"id": strings.Repeat("a", 64), "big-data-names": []string{"manifest"}})
	o.writeJSON(list, "overlay-images/images.json")
	return o.dir, good
}

// The images of a store that another program left behind come in with their configs and names; what cannot be, is named.
func TestImportLegacy(t *testing.T) {
	for name, c := range map[string]struct {
		store    func(testing.TB) (string, []byte)
		skipped  int
		manifest bool
	}{"moby": {mobyImages, 2, false}, "containers": {storageImages, 3, true}} {
		t.Run(name, func(t *testing.T) {
			dir, raw := c.store(t)
			s := newStore(t)
			hold := lease()
			for range 2 { // the second time, all is there
				res, err := s.ImportLegacy(t.Context(), dir, layerdb.LegacyOptions{Hold: &hold})
				must(t, err)
				if len(res.Images) != 1 || len(res.SkippedImages) != c.skipped || len(res.Skipped) != 0 {
					t.Fatalf("%+v", res)
				}
				img := res.Images[0]
				if !slices.Equal(img.Names, []string{"docker.io/library/box:1", "example.test/it:latest"}) || (img.Manifest != nil) != c.manifest {
					t.Errorf("%+v", img)
				}
				got, _, err := s.Config(t.Context(), img)
				must(t, err)
				if !bytes.Equal(got, raw) {
					t.Errorf("the config is another: %s", got)
				}
			}
			must(t, s.drop(t.Context(), hold.Ref()))
			img, err := s.Find(t.Context(), "box:1")
			must(t, err)
			if !bytes.Equal(exportOf(t, s, img.Top), tarOf(t, map[string]string{"f": "content"})) {
				t.Error("the layer goes out changed")
			}
			_, err = s.Remove(t.Context(), img.ID.String(), Forced)
			must(t, err)
			mustBeEmpty(t, s)
		})
	}
}

// A store with layers alone, as other versions leave them, has no images; records that make no sense are an error.
func TestImportLegacyBad(t *testing.T) {
	for name, c := range map[string]struct {
		path, text string
		ok         bool
	}{
		"no images":           {"overlay-layers/layers.json", "[]", true},
		"images.json":         {"overlay-images/images.json", "{", false},
		"an id that leads up": {"overlay-images/images.json", `[{"id": "../../etc", "big-data-names": ["sha256:../../etc"]}]`, true},
	} {
		t.Run(name, func(t *testing.T) {
			o := oldStore{t, testenv.Scratch(t)}
			o.write([]byte("[]"), "overlay-layers/layers.json")
			o.write([]byte(c.text), c.path)
			s := newStore(t)
			res, err := s.ImportLegacy(t.Context(), o.dir, layerdb.LegacyOptions{})
			if (err == nil) != c.ok || len(res.Images) != 0 {
				t.Errorf("%+v, %v", res, err)
			}
			mustBeEmpty(t, s)
		})
	}
}
