package image

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
	"plyfs/layerdb"
)

// Names come and go; the image goes with its last one.
func TestNames(t *testing.T) {
	ctx := t.Context()
	f, _ := twoLayers(t)
	s := newStore(t)
	i := importOne(t, s, f.dir(t), ImportOptions{})
	second, err := ParseName("second:x")
	must(t, err)
	must(t, s.Tag(ctx, i, second))
	for _, ref := range []string{
		"second:x", "docker.io/library/second:x", i.ID.String(), i.ID.Encoded(), i.ID.Encoded()[:12], "sha256:" + i.ID.Encoded()[:4],
		"example.test/app@" + i.Manifest.Digest.String(),
	} {
		if got, err := s.Find(ctx, ref); err != nil || got.ID != i.ID || len(got.Names) != 2 {
			t.Errorf("%s: %+v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"second", "second:y", i.ID.Encoded()[:3], "other@" + i.Manifest.Digest.String(), "", "//"} {
		_, err := s.Find(ctx, ref)
		mustBe(t, err, drivers.ErrNotFound)
	}
	_, err = s.Remove(ctx, i.ID.Encoded()[:12], Careful)
	mustBe(t, err, drivers.ErrInUse)
	r, err := s.Remove(ctx, "second:x", Careful)
	if err != nil || r.Deleted != "" || len(r.Untagged) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = s.Remove(ctx, "example.test/app:1", Careful)
	if err != nil || r.Deleted != i.ID {
		t.Errorf("%+v, %v", r, err)
	}
	mustBeEmpty(t, s)
}

// A name without a registry is one of docker.io, or of localhost where docker.io has none.
func TestLocalNames(t *testing.T) {
	ctx := t.Context()
	f, _ := twoLayers(t)
	s := newStore(t)
	i := importOne(t, s, f.dir(t), ImportOptions{})
	local, err := ParseName("localhost/mine:1")
	must(t, err)
	must(t, s.Tag(ctx, i, local))
	if got, err := s.Find(ctx, "mine:1"); err != nil || got.ID != i.ID {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = s.Find(ctx, "docker.io/library/mine:1")
	mustBe(t, err, drivers.ErrNotFound)
	r, err := s.Remove(ctx, "mine:1", Careful)
	if err != nil || r.Deleted != "" || len(r.Untagged) != 1 || r.Untagged[0] != "localhost/mine:1" {
		t.Errorf("%+v, %v", r, err)
	}
}

// A name that comes in again with another image moves, and the first image stays without it.
func TestNameMoves(t *testing.T) {
	s := newStore(t)
	f, _ := twoLayers(t)
	first := importOne(t, s, f.dir(t), ImportOptions{})
	g := make(files)
	g.index(t, named(g.image(t, hostPlatform(), tarOf(t, map[string]string{"x": "y"})), "example.test/app:1"))
	second := importOne(t, s, g.dir(t), ImportOptions{})
	all, err := s.List(t.Context())
	if err != nil || len(all) != 2 || all[0].ID != second.ID || len(all[0].Names) != 1 || all[1].ID != first.ID || len(all[1].Names) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	for _, i := range all {
		if _, err := s.Remove(t.Context(), i.ID.String(), Careful); err != nil {
			t.Error(err)
		}
	}
	mustBeEmpty(t, s)
}

// The same image in again changes nothing, but that its blobs may be kept from then on.
func TestImportTwice(t *testing.T) {
	f, _ := twoLayers(t)
	dir := f.dir(t)
	s := newStore(t)
	first := importOne(t, s, dir, ImportOptions{})
	again := importOne(t, s, dir, ImportOptions{Blobs: KeepBlobs})
	if again.ID != first.ID || !again.Added.Equal(first.Added) || !again.KeepsBlobs {
		t.Errorf("%+v", again)
	}
	third := importOne(t, s, dir, ImportOptions{})
	for _, l := range third.Layers {
		if size, ok := s.blobs.size(l.Blob.Digest); !ok || size != l.Blob.Size {
			t.Errorf("blob %s is gone", l.Blob.Digest)
		}
	}
}

// Images that share layers and blobs do not take them from one another.
func TestSharedLayers(t *testing.T) {
	s := newStore(t)
	lower := tarOf(t, map[string]string{"shared": "content"})
	var images []Image
	for _, name := range []string{"a:1", "b:1"} {
		f := make(files)
		f.index(t, named(f.image(t, hostPlatform(), lower, tarOf(t, map[string]string{name: ""})), name))
		images = append(images, importOne(t, s, f.dir(t), ImportOptions{Blobs: KeepBlobs}))
	}
	if _, err := s.Remove(t.Context(), "a:1", Careful); err != nil {
		t.Fatal(err)
	}
	for _, l := range images[1].Layers {
		if _, err := s.blobs.read(l.Blob.Digest); err != nil {
			t.Error(err)
		}
	}
	if layers, err := s.layers.Layers(t.Context()); err != nil || len(layers) != 2 {
		t.Errorf("%d layers, %v", len(layers), err)
	}
	if _, err := s.Remove(t.Context(), "b:1", Careful); err != nil {
		t.Fatal(err)
	}
	mustBeEmpty(t, s)
}

// What is lost or damaged in the content store is found and named, and an image that is damaged can be removed.
func TestCheck(t *testing.T) {
	f, _ := twoLayers(t)
	s := newStore(t)
	i := importOne(t, s, f.dir(t), ImportOptions{})
	if problems, err := s.Check(t.Context()); err != nil || len(problems) > 0 {
		t.Fatalf("%+v, %v", problems, err)
	}
	must(t, os.Remove(s.blobs.path(i.ID)))
	must(t, os.WriteFile(s.blobs.path(i.Manifest.Digest), []byte("{}"), 0o600))
	stray := layerdb.Holder{Kind: kindName, Key: "docker.io/library/stray:1", Data: []byte(digest.FromString("x"))}
	must(t, s.layers.Hold(t.Context(), stray))
	problems, err := s.Check(t.Context())
	if err != nil || len(problems) != 3 || problems[0].Kind != ProblemDocument || problems[1].Kind != ProblemDocument || problems[2].Kind != ProblemName {
		t.Errorf("%+v, %v", problems, err)
	}
	_, _, err = s.Config(t.Context(), i)
	mustBe(t, err, drivers.ErrDamaged)
	_, err = s.Manifest(t.Context(), i)
	mustBe(t, err, drivers.ErrDamaged)
	if _, err := s.Remove(t.Context(), i.ID.String(), Careful); err != nil {
		t.Error(err)
	}
	must(t, s.layers.Release(t.Context(), stray.Ref()))
	mustBeEmpty(t, s)
}

// Blobs that no image names go, those of images stay.
func TestGC(t *testing.T) {
	f, _ := twoLayers(t)
	s := newStore(t)
	i := importOne(t, s, f.dir(t), ImportOptions{Blobs: KeepBlobs})
	orphan, err := s.blobs.putBytes(t.Context(), []byte("orphan"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(s.blobs.dir, partialDir, "sha256-x"), []byte("part"), 0o600))
	r, err := s.GC(t.Context())
	if err != nil || r.Blobs != 2 || r.Bytes != 10 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, ok := s.blobs.size(orphan); ok {
		t.Error("the orphan stays")
	}
	for _, d := range i.blobs() {
		if _, ok := s.blobs.size(d); !ok {
			t.Errorf("%s is gone", d)
		}
	}
}

// Layers that only the lease of a killed process holds go with it, and those that somebody else leases stay.
func TestGCAfterCrash(t *testing.T) {
	s := newStore(t)
	hold, other := lease(), layerdb.Holder{Kind: kindLease, Key: "other"}
	for _, h := range []*layerdb.Holder{&hold, &other} {
		raw := tarOf(t, map[string]string{h.Key: "x"})
		_, err := s.layers.Register(t.Context(), bytes.NewReader(raw), "", layerdb.RegisterOptions{Hold: h})
		must(t, err)
	}
	_, err := s.GC(t.Context())
	must(t, err)
	if layers, err := s.layers.Layers(t.Context()); err != nil || len(layers) != 1 {
		t.Errorf("%d layers, %v", len(layers), err)
	}
	must(t, s.layers.Release(t.Context(), other.Ref()))
	mustBeEmpty(t, s)
}

// An image of no layers is an image.
func TestNoLayers(t *testing.T) {
	f := make(files)
	f.index(t, named(f.image(t, hostPlatform()), "empty:1"))
	s := newStore(t)
	i := importOne(t, s, f.dir(t), ImportOptions{})
	if i.Top != "" || i.Size != 0 {
		t.Errorf("%+v", i)
	}
	if _, err := s.ExportDir(t.Context(), filepath.Join(testenv.Scratch(t), "x"), []Exported{{Image: i}}, ExportOptions{Form: FormDir}); err != nil {
		t.Error(err)
	}
	if _, err := s.Remove(t.Context(), "empty:1", Careful); err != nil {
		t.Error(err)
	}
	mustBeEmpty(t, s)
}

// slowDriver takes its time for each Put.
type slowDriver struct {
	drivers.Driver
	got, put atomic.Int32
}

func (d *slowDriver) Get(ctx context.Context, id string, o *drivers.GetOptions) (string, error) {
	d.got.Add(1)
	return d.Driver.Get(ctx, id, o)
}

func (d *slowDriver) Put(ctx context.Context, id string) error {
	time.Sleep(50 * time.Millisecond)
	defer d.put.Add(1)
	return d.Driver.Put(ctx, id)
}

// Who closes the stream of a layer before its end has given back all that it took: a command that ends now leaves no mount.
func TestExporterEndsWithItsReader(t *testing.T) {
	var slow *slowDriver
	f := vfs.Factory()
	open := f.Open
	f.Open = func(ctx context.Context, o drivers.Options) (drivers.Driver, error) {
		d, err := open(ctx, o)
		slow = &slowDriver{Driver: d}
		return slow, err
	}
	s := openStoreOf(t, filepath.Join(testenv.Scratch(t), "store"), f)
	layout, _ := twoLayers(t)
	img := importOne(t, s, layout.dir(t), ImportOptions{})
	r, err := s.exporter(img.Top)(t.Context())
	must(t, err)
	_, err = r.Read(make([]byte, 1))
	must(t, err)
	must(t, r.Close())
	if got, put := slow.got.Load(), slow.put.Load(); got == 0 || put != got {
		t.Errorf("%d layers were got, %d put", got, put)
	}
}
