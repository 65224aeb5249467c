package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/internal/testenv"
	"plyfs/layerdb"
)

// edited is the layout of twoLayers, changed.
func edited(t testing.TB, change func(f files, m *ocispec.Manifest)) files {
	t.Helper()
	f, _ := twoLayers(t)
	var index ocispec.Index
	must(t, json.Unmarshal(f[ocispec.ImageIndexFile], &index))
	var m ocispec.Manifest
	must(t, json.Unmarshal(f[blobName(index.Manifests[0].Digest)], &m))
	change(f, &m)
	if f[ocispec.ImageIndexFile] != nil {
		f.index(t, named(f.add(ocispec.MediaTypeImageManifest, encoded(t, m)), "example.test/app:1"))
	}
	return f
}

// Whatever is wrong with an archive, the error says what, and nothing of it stays.
func TestBadLayouts(t *testing.T) {
	for name, c := range map[string]struct {
		files files
		class error
		says  string
	}{
		"missing layer": {edited(t, func(f files, m *ocispec.Manifest) {
			delete(f, blobName(m.Layers[1].Digest))
		}), ErrMalformed, "blob is missing"},
		"missing config": {edited(t, func(f files, m *ocispec.Manifest) {
			delete(f, blobName(m.Config.Digest))
		}), ErrMalformed, "blob is missing"},
		"layer of another content": {edited(t, func(f files, m *ocispec.Manifest) {
			f[blobName(m.Layers[1].Digest)] = bytes.Repeat([]byte{7}, int(m.Layers[1].Size))
		}), nil, "layer 1"},
		"layer with another digest, of the same files": {edited(t, func(f files, m *ocispec.Manifest) {
			data := bytes.Clone(f[blobName(m.Layers[1].Digest)])
			data[4]++ // the time in the header of gzip
			f[blobName(m.Layers[1].Digest)] = data
		}), layerdb.ErrDigest, "digest"},
		"layer of another size": {edited(t, func(_ files, m *ocispec.Manifest) { m.Layers[0].Size++ }), ErrMalformed, "descriptor says"},
		"layer with another DiffID": {edited(t, func(f files, m *ocispec.Manifest) {
			m.Layers[1] = f.add(m.Layers[1].MediaType, gzipped(t, tarOf(t, map[string]string{"other": "content"})))
		}), layerdb.ErrDigest, "layer 1"},
		"truncated layer": {edited(t, func(f files, m *ocispec.Manifest) {
			data := f[blobName(m.Layers[1].Digest)]
			m.Layers[1] = f.add(m.Layers[1].MediaType, data[:len(data)/2])
		}), nil, "layer 1"},
		"garbage after a layer": {edited(t, func(f files, m *ocispec.Manifest) {
			m.Layers[1] = f.add(m.Layers[1].MediaType, append(bytes.Clone(f[blobName(m.Layers[1].Digest)]), "garbage"...))
		}), nil, "layer 1"},
		"config of another content": {edited(t, func(f files, m *ocispec.Manifest) {
			f[blobName(m.Config.Digest)] = bytes.Repeat([]byte(" "), int(m.Config.Size))
		}), layerdb.ErrDigest, "digest"},
		"config that is no JSON": {edited(t, func(f files, m *ocispec.Manifest) {
			m.Config = f.add(m.Config.MediaType, []byte("{"))
		}), ErrMalformed, "config"},
		"fewer layers than DiffIDs": {edited(t, func(_ files, m *ocispec.Manifest) { m.Layers = m.Layers[:1] }), ErrMalformed, "2 DiffIDs"},
		"digest that is a path": {edited(t, func(_ files, m *ocispec.Manifest) {
			m.Layers[0].Digest = "sha256:../../../etc/passwd"
		}), ErrMalformed, "digest"},
		"digest of an unknown kind": {edited(t, func(_ files, m *ocispec.Manifest) {
			m.Config.Digest = "md5:d41d8cd98f00b204e9800998ecf8427e"
		}), ErrMalformed, "digest"},
		"negative size":  {edited(t, func(_ files, m *ocispec.Manifest) { m.Config.Size = -1 }), ErrMalformed, "size -1"},
		"no image":       {edited(t, func(_ files, m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }), drivers.ErrNotSupported, "something else"},
		"unknown layer":  {edited(t, func(_ files, m *ocispec.Manifest) { m.Layers[0].MediaType = "text/plain" }), drivers.ErrNotSupported, "no tar file"},
		"two in one":     {twoInOne(t), ErrMalformed, "manifests and layers"},
		"no index":       {edited(t, func(f files, _ *ocispec.Manifest) { delete(f, ocispec.ImageIndexFile) }), ErrMalformed, ocispec.ImageIndexFile},
		"unknown layout": {layoutOf(t, `{"imageLayoutVersion":"9.0"}`, `{"manifests":[]}`), drivers.ErrNotSupported, "9.0"},
		"garbage index":  {layoutOf(t, `{"imageLayoutVersion":"1.0.0"}`, `{"manifests":`), ErrMalformed, "index"},
		"empty index":    {layoutOf(t, `{"imageLayoutVersion":"1.0.0"}`, `{"manifests":[]}`), ErrMalformed, "no image"},
		"path in the index": {layoutOf(t, `{"imageLayoutVersion":"1.0.0"}`,
			`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1,"digest":"sha256:/../../../../etc/passwd"}]}`), ErrMalformed, "digest"},
		"bad name":           {edited(t, func(_ files, _ *ocispec.Manifest) {}).renamed("UPPER/../x:1"), ErrMalformed, "UPPER"},
		"nothing":            {files{"readme": []byte("text")}, ErrMalformed, "neither an OCI layout"},
		"old docker archive": {files{"repositories": []byte("{}")}, drivers.ErrNotSupported, "before 1.10"},
		"docker archive without a layer": {files{
			"manifest.json": []byte(`[{"Config":"c","Layers":["gone"]}]`), "c": []byte(`{"rootfs":{"type":"layers","diff_ids":[]}}`),
		}, ErrMalformed, "gone"},
		"docker archive of nothing":     {files{"manifest.json": []byte(`[]`)}, ErrMalformed, "no image"},
		"docker archive with a garbage": {files{"manifest.json": []byte(`{`)}, ErrMalformed, "manifest.json"},
		"docker archive with a path": {files{
			"manifest.json": []byte(`[{"Config":"../../../../etc/passwd","Layers":[]}]`),
		}, ErrMalformed, "etc/passwd"},
	} {
		for _, form := range []string{"directory", "archive"} {
			t.Run(name+"/"+form, func(t *testing.T) {
				s := newStore(t)
				path, o := "", ImportOptions{}
				if form == "directory" {
					path = c.files.dir(t)
					o.Blobs = KeepBlobs
				} else {
					path = write(t, c.files.tar(t))
				}
				_, err := s.Import(t.Context(), path, o)
				if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
					t.Errorf("error %v does not name %s and %q", err, path, c.says)
				}
				if c.class != nil {
					mustBe(t, err, c.class)
				}
				mustBeEmpty(t, s)
			})
		}
	}
}

// renamed gives the only image of a layout a name.
func (f files) renamed(name string) files {
	f[ocispec.ImageIndexFile] = bytes.ReplaceAll(f[ocispec.ImageIndexFile], []byte("example.test/app:1"), []byte(name))
	return f
}

func layoutOf(t testing.TB, mark, index string) files {
	t.Helper()
	return files{ocispec.ImageLayoutFile: []byte(mark), ocispec.ImageIndexFile: []byte(index)}
}

// twoInOne is a layout whose manifest is an index, too (CVE-2021-41190).
func twoInOne(t testing.TB) files {
	t.Helper()
	f, _ := twoLayers(t)
	var index ocispec.Index
	must(t, json.Unmarshal(f[ocispec.ImageIndexFile], &index))
	raw := bytes.Replace(f[blobName(index.Manifests[0].Digest)], []byte("{"), []byte(`{"manifests":[],`), 1)
	f.index(t, f.add(ocispec.MediaTypeImageManifest, raw))
	return f
}

// A directory may hold links to files that are none of the archive's business.
func TestLayoutWithLinksOut(t *testing.T) {
	f, _ := twoLayers(t)
	var blob string
	for name := range f {
		if strings.HasPrefix(name, "blobs/") {
			blob = name
		}
	}
	secret := write(t, f[blob])
	dir := f.dir(t)
	must(t, os.Remove(filepath.Join(dir, blob)))
	must(t, os.Symlink(secret, filepath.Join(dir, blob)))
	s := newStore(t)
	if _, err := s.Import(t.Context(), dir, ImportOptions{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("a link out of the layout is followed: %v", err)
	}
	mustBeEmpty(t, s)
}

// An archive that ends anywhere is refused, or only its padding is missing.
func TestTruncatedArchives(t *testing.T) {
	f, _ := twoLayers(t)
	archive := f.tar(t)
	s := newStore(t)
	for n := 0; n < len(archive); n += 1 + len(archive)/60 {
		for _, in := range [][]byte{archive[:n], gzipped(t, archive)[:n*len(gzipped(t, archive))/len(archive)]} {
			images, err := s.Import(t.Context(), "", ImportOptions{Input: bytes.NewReader(in)})
			if err != nil {
				continue
			}
			if len(images) != 1 || n+3*512 < len(archive) {
				t.Errorf("%d of %d bytes: %d images", n, len(archive), len(images))
			}
			if _, err := s.Remove(t.Context(), images[0].ID.String(), Careful); err != nil {
				t.Error(err)
			}
		}
	}
	mustBeEmpty(t, s)
}

// failing is a stream that breaks.
type failing struct {
	r   io.Reader
	err error
}

func (f failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = f.err
	}
	return n, err
}

// An import from a pipe whose writer fails, or that is interrupted, leaves nothing.
func TestInterruptedImport(t *testing.T) {
	f, _ := twoLayers(t)
	archive := f.tar(t)
	s := newStore(t)
	broken := errors.New("broken pipe")
	_, err := s.Import(t.Context(), "", ImportOptions{Input: failing{bytes.NewReader(archive[:len(archive)/2]), broken}})
	mustBe(t, err, broken)
	ctx, cancel := context.WithCancel(t.Context())
	_, err = s.Import(ctx, write(t, archive), ImportOptions{Blobs: KeepBlobs, Report: func(p Progress) {
		if p.Phase == PhaseUnpack {
			cancel()
		}
	}})
	mustBe(t, err, context.Canceled)
	mustBeEmpty(t, s)
}

// A tar file of more members than any image has is not read into memory.
func TestArchiveLimits(t *testing.T) {
	f, err := os.Open(write(t, nil))
	must(t, err)
	b := &tarBundle{f: f, members: make(map[string]member)}
	defer b.close()
	_, _, err = b.open("nothing")
	mustBe(t, err, drivers.ErrNotFound)
	big := make([]string, maxLayers+1)
	for i := range big {
		big[i] = "x"
	}
	list := encoded(t, []dockerImage{{Config: "c", Layers: big}})
	_, err = newStore(t).Import(t.Context(), files{"manifest.json": list, "c": []byte("{}")}.dir(t), ImportOptions{})
	mustBe(t, err, tarlayer.ErrLimit)
	huge := filepath.Join(testenv.Scratch(t), "layout")
	must(t, os.Mkdir(huge, 0o755))
	must(t, os.WriteFile(filepath.Join(huge, "oci-layout"), nil, 0o644))
	must(t, os.Truncate(filepath.Join(huge, "oci-layout"), maxDocument+1))
	_, err = newStore(t).Import(t.Context(), huge, ImportOptions{})
	mustBe(t, err, ErrMalformed)
}

// Links within an archive end.
func TestArchiveLinkLoop(t *testing.T) {
	b := &tarBundle{members: map[string]member{"a": {link: "b"}, "b": {link: "a"}}}
	_, _, err := b.open("a")
	mustBe(t, err, ErrMalformed)
}

// What is read of a digest is only believed at its end.
func TestVerifier(t *testing.T) {
	data := []byte("content")
	d := digest.FromBytes(data)
	for name, c := range map[string]struct {
		d    digest.Digest
		size int64
		data string
		want error
	}{
		"right":        {d, 7, "content", nil},
		"size unknown": {d, -1, "content", nil},
		"no digest":    {"", 7, "other!!", nil},
		"too short":    {d, 7, "conten", io.ErrUnexpectedEOF},
		"too long":     {d, 7, "content!", layerdb.ErrDigest},
		"other":        {d, 7, "CONTENT", layerdb.ErrDigest},
	} {
		_, err := io.Copy(io.Discard, newVerifier(c.d, c.size, strings.NewReader(c.data)))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
