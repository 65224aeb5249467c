package snapshotter

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/btrfs"
	"plyfs/drivers/overlay2"
	"plyfs/drivers/plyfs"
	"plyfs/drivers/vfs"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
	"plyfs/layerdb"
)

// memoryLabels keeps labels of a content store.
type memoryLabels struct {
	mu  sync.Mutex
	all map[digest.Digest]map[string]string // guarded by mu
}

func (m *memoryLabels) Get(d digest.Digest) (map[string]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all[d], nil
}

func (m *memoryLabels) Set(d digest.Digest, l map[string]string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all[d] = l
	return nil
}

func (m *memoryLabels) Update(d digest.Digest, l map[string]string) (map[string]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all[d] == nil {
		m.all[d] = make(map[string]string)
	}
	for key, value := range l {
		m.all[d][key] = value
	}
	return m.all[d], nil
}

// workbench is a snapshotter with a differ and a content store.
type workbench struct {
	*Snapshotter
	differ  *Differ
	content content.Store
	log     *bytes.Buffer
}

func newWorkbench(t testing.TB, base string, f drivers.Factory, options map[string]string) *workbench {
	t.Helper()
	return newWorkbenchWith(t, base, f, options, Options{})
}

func newWorkbenchWith(t testing.TB, base string, f drivers.Factory, options map[string]string, o Options) *workbench {
	t.Helper()
	s, err := openWith(t.Context(), filepath.Join(base, "store"), f, options, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	// containerd's store leaves a file open until it is collected (internal/fsverity, Enable), and keeps the file system busy.
	t.Cleanup(runtime.GC)
	store, err := local.NewLabeledStore(filepath.Join(base, "content"), &memoryLabels{all: make(map[digest.Digest]map[string]string)})
	if err != nil {
		t.Fatal(err)
	}
	w := &workbench{Snapshotter: s, content: store, log: &bytes.Buffer{}}
	s.log = slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.differ = NewDiffer(s, store)
	return w
}

// put writes a layer to the content store.
func (w *workbench) put(t testing.TB, mediaType string, blob []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(w.context(t), w.content, d.Digest.String(), bytes.NewReader(blob), d); err != nil {
		t.Fatal(err)
	}
	return d
}

// putHeaders writes a layer of members without content.
func (w *workbench) putHeaders(t testing.TB, headers ...tar.Header) ocispec.Descriptor {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return w.put(t, ocispec.MediaTypeImageLayer, b.Bytes())
}

func (w *workbench) context(t testing.TB) context.Context {
	t.Helper()
	return namespaces.WithNamespace(t.Context(), "test")
}

func (w *workbench) prepare(t testing.TB, key, parent string) []mount.Mount {
	t.Helper()
	m, err := w.Prepare(t.Context(), key, parent)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// extract unpacks a layer over parent as containerd does, and commits it.
func (w *workbench) extract(t testing.TB, name, parent string, d ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	key := "test/1/extract-1 " + name
	got, err := w.differ.Apply(w.context(t), d, w.prepare(t, key, parent))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), name, key); err != nil {
		t.Fatal(err)
	}
	return got
}

// at mounts a snapshot, has fn work in it, and unmounts it.
func (w *workbench) at(t testing.TB, m []mount.Mount, fn func(root string)) {
	t.Helper()
	target := testenv.Scratch(t)
	if err := mount.All(m, target); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.UnmountAll(target, 0); err != nil {
			t.Error(err)
		}
	}()
	fn(target)
}

// tree is what a view of a snapshot shows, as far as a layer carries it: times in whole seconds, and of directories none, of which a
// layer has those that changed otherwise.
func (w *workbench) tree(t testing.TB, parent string) (tree *fingerprint.Tree) {
	t.Helper()
	key := "view of " + parent
	m, err := w.View(t.Context(), key, parent)
	if err != nil {
		t.Fatal(err)
	}
	w.at(t, m, func(root string) {
		if tree, err = fingerprint.Take(root, fingerprint.Options{Fields: fingerprint.Default}); err != nil {
			t.Fatal(err)
		}
	})
	for _, e := range tree.Entries {
		e.Mtime.Nsec = 0
		if e.Type == unix.S_IFDIR {
			e.Mtime = fingerprint.Time{}
		}
	}
	if err := w.Remove(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	return tree
}

// mustShow holds that two snapshots show the same.
func (w *workbench) mustShow(t testing.TB, name, want string) {
	t.Helper()
	if d := fingerprint.Diff(w.tree(t, name), w.tree(t, want), fingerprint.Default); len(d) > 0 {
		t.Errorf("%s and %s differ:\n%s", name, want, fingerprint.Format(d, 20))
	}
}

// baseTar is a layer with files, a directory to be removed, and hard links.
func baseTar(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range []tar.Header{
		{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "dir/one", Mode: 0o644, Size: 4},
		{Name: "dir/two", Mode: 0o600, Size: 4},
		{Name: "gone/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "gone/file", Mode: 0o644, Size: 4},
		{Name: "link", Typeflag: tar.TypeLink, Linkname: "dir/one"},
		{Name: "symlink", Typeflag: tar.TypeSymlink, Linkname: "dir/one"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, "text"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// change does what containers do.
func change(t testing.TB, root string) {
	t.Helper()
	if err := errors.Join(
		os.WriteFile(filepath.Join(root, "dir/two"), []byte("changed"), 0o600),
		os.RemoveAll(filepath.Join(root, "gone")),
		os.Mkdir(filepath.Join(root, "gone"), 0o700),
		os.WriteFile(filepath.Join(root, "gone/again"), []byte("new"), 0o644),
		os.Remove(filepath.Join(root, "symlink")),
		os.Chmod(filepath.Join(root, "dir"), 0o711),
	); err != nil {
		t.Fatal(err)
	}
}

// differDrivers are the drivers that differences are tested with.
func differDrivers(t *testing.T, test func(t *testing.T, w *workbench)) {
	options := installPlyfs(t)
	t.Run("plyfs", func(t *testing.T) { test(t, newWorkbench(t, testenv.Scratch(t), plyfs.Factory(), options)) })
	t.Run("overlay2", func(t *testing.T) { test(t, newWorkbench(t, testenv.Scratch(t), overlay2.Factory(), nil)) })
	t.Run("vfs", func(t *testing.T) { test(t, newWorkbench(t, testenv.Scratch(t), vfs.Factory(), nil)) })
	if !testenv.InUserNamespace() {
		t.Run("btrfs", func(t *testing.T) { test(t, newWorkbench(t, testenv.Btrfs(t, 1<<30), btrfs.Factory(), nil)) })
	}
}

// A difference is a layer that makes the same tree, in each form, with the labels and digests that containerd wants.
func TestDiffer(t *testing.T) { differDrivers(t, differ) }

func differ(t *testing.T, w *workbench) {
	ctx := w.context(t)
	base := baseTar(t)
	applied := w.extract(t, "base", "", w.put(t, ocispec.MediaTypeImageLayerGzip, base))
	if want := uncompressed(t, base); applied.Digest != digest.FromBytes(want) || applied.MediaType != ocispec.MediaTypeImageLayer ||
		applied.Size != int64(len(want)) {
		t.Errorf("applied: %+v, want digest %s and size %d", applied, digest.FromBytes(want), len(want))
	}
	box := w.prepare(t, "box", "base")
	w.at(t, box, func(root string) { change(t, root) })
	lower, err := w.View(ctx, "base-view", "base")
	if err != nil {
		t.Fatal(err)
	}
	var streams [][]byte
	for i, mediaType := range []string{
		"", ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageLayer,
	} {
		d, err := w.differ.Compare(ctx, lower, box, diff.WithMediaType(mediaType), diff.WithReference("ref"),
			diff.WithLabels(map[string]string{"mine": "yes"}))
		if err != nil {
			t.Fatalf("difference as %s: %v", mediaType, err)
		}
		if mediaType != "" && d.MediaType != mediaType {
			t.Errorf("media type %s, want %s", d.MediaType, mediaType)
		}
		blob, err := content.ReadBlob(ctx, w.content, d)
		if err != nil {
			t.Fatal(err)
		}
		info, err := w.content.Info(ctx, d.Digest)
		stream := uncompressed(t, blob)
		if err != nil || info.Labels["mine"] != "yes" || info.Labels[labels.LabelUncompressed] != digest.FromBytes(stream).String() {
			t.Errorf("labels of %s: %v, %v", mediaType, info.Labels, err)
		}
		streams = append(streams, stream)
		name := fmt.Sprintf("top%d", i)
		w.extract(t, name, "base", d)
		if i == 0 {
			if err := w.Commit(ctx, "committed", "box"); err != nil {
				t.Fatal(err)
			}
			if box, err = w.View(ctx, "committed-view", "committed"); err != nil {
				t.Fatal(err)
			}
		}
		w.mustShow(t, name, "committed")
	}
	for _, s := range streams[1:] {
		if !bytes.Equal(s, streams[0]) {
			t.Error("the stream of a committed snapshot differs from that of the active one")
		}
	}
	if _, err := w.differ.Compare(ctx, lower, box, diff.WithMediaType("text/plain")); !errdefs.IsNotImplemented(err) {
		t.Errorf("a media type that is none of a layer: %v", err)
	}
	if strings.Contains(w.log.String(), "by mounting and walking") {
		t.Errorf("differences were made by mounting and walking:\n%s", w.log)
	}
}

func uncompressed(t testing.TB, blob []byte) []byte {
	t.Helper()
	r, err := compression.DecompressStream(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The first layer of an image is compared with nothing, and a whole image can be.
func TestDifferFromNothing(t *testing.T) { differDrivers(t, differFromNothing) }

func differFromNothing(t *testing.T, w *workbench) {
	ctx := w.context(t)
	w.extract(t, "base", "", w.put(t, ocispec.MediaTypeImageLayerGzip, baseTar(t)))
	nothing, err := w.View(ctx, "nothing", "")
	if err != nil {
		t.Fatal(err)
	}
	all, err := w.View(ctx, "all", "base")
	if err != nil {
		t.Fatal(err)
	}
	d, err := w.differ.Compare(ctx, nothing, all)
	if err != nil {
		t.Fatal(err)
	}
	w.extract(t, "again", "", d)
	w.mustShow(t, "again", "base")
}

// What is not ours is compared by containerd's means.
func TestDifferOfOthers(t *testing.T) {
	w := newWorkbench(t, testenv.Scratch(t), overlay2.Factory(), nil)
	older, newer := testenv.Scratch(t), testenv.Scratch(t)
	if err := os.WriteFile(filepath.Join(newer, "file"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	bind := func(dir string) []mount.Mount {
		return []mount.Mount{{Type: "bind", Source: dir, Options: []string{"ro", "rbind"}}}
	}
	d, err := w.differ.Compare(w.context(t), bind(older), bind(newer))
	if err != nil {
		t.Fatal(err)
	}
	w.extract(t, "base", "", d)
	if tree := w.tree(t, "base"); tree.Entries["file"] == nil {
		t.Errorf("the difference of two directories has no file: %v", tree.Paths())
	}
	target := testenv.Scratch(t)
	if _, err := w.differ.Apply(w.context(t), d, bind(target)[:1]); err == nil {
		t.Error("a layer was unpacked into a read-only directory")
	}
}

// Bad layers leave nothing of them behind, and say what is wrong.
func TestApplyRefusals(t *testing.T) {
	w := newWorkbench(t, testenv.Scratch(t), overlay2.Factory(), nil)
	ctx := w.context(t)
	whole := baseTar(t)
	for name, d := range map[string]ocispec.Descriptor{
		"cut":        w.put(t, ocispec.MediaTypeImageLayerGzip, whole[:len(whole)/2]),
		"no layer":   w.put(t, ocispec.MediaTypeImageLayerGzip, []byte("no layer at all")),
		"encrypted":  w.put(t, ocispec.MediaTypeImageLayerGzip+"+encrypted", []byte("secret")),
		"not there":  {MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("not there"), Size: 3},
		"other size": {MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(whole), Size: -1},
	} {
		key := "extract-" + name
		mounts := w.prepare(t, key, "")
		if _, err := w.differ.Apply(ctx, d, mounts); err == nil {
			t.Errorf("%s: no error", name)
		}
		left, err := os.ReadDir(mounts[0].Source)
		if err != nil || len(left) > 0 {
			t.Errorf("%s: %v are left, %v", name, left, err)
		}
		if err := w.Remove(ctx, key); err != nil {
			t.Error(err)
		}
	}
	rep, err := w.store.Check(ctx, layerdb.CheckOptions{})
	if err != nil || len(rep.Problems) > 0 {
		t.Errorf("check: %+v, %v", rep, err)
	}
}

// A directory that the stream implies, and for which the layers below have a symlink or a file: the one is followed, the other
// refused, with every driver alike.
func TestApplyBelowLowerNonDirs(t *testing.T) { differDrivers(t, applyBelowLowerNonDirs) }

func applyBelowLowerNonDirs(t *testing.T, w *workbench) {
	t.Cleanup(runtime.GC) // containerd's check for fs-verity leaves a file open
	ctx := w.context(t)
	plain := func(headers ...tar.Header) ocispec.Descriptor { return w.putHeaders(t, headers...) }
	w.extract(t, "base", "", plain(
		tar.Header{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "usr/lib/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib"}, tar.Header{Name: "usr/file", Mode: 0o644},
	))
	w.extract(t, "top", "base", plain(tar.Header{Name: "lib/modules/x", Mode: 0o644}))
	view, err := w.View(ctx, "look", "top")
	if err != nil {
		t.Fatal(err)
	}
	w.at(t, view, func(root string) {
		if to, err := os.Readlink(filepath.Join(root, "lib")); err != nil || to != "usr/lib" {
			t.Errorf("lib: %q, %v", to, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "usr/lib/modules/x")); err != nil {
			t.Error(err)
		}
	})
	mounts := w.prepare(t, "extract-bad", "base")
	if _, err := w.differ.Apply(ctx, plain(tar.Header{Name: "usr/file/a/b", Mode: 0o644}), mounts); err == nil {
		t.Error("a member below a file was unpacked")
	}
}

// A layer whose root is opaque hides all below it, in the layers above it too, and its differences have the deletions.
func TestDifferOpaqueRoot(t *testing.T) { differDrivers(t, differOpaqueRoot) }

func differOpaqueRoot(t *testing.T, w *workbench) {
	t.Cleanup(runtime.GC) // containerd's check for fs-verity leaves a file open
	ctx := w.context(t)
	w.extract(t, "base", "", w.putHeaders(t,
		tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "d/old", Mode: 0o644}, tar.Header{Name: "old", Mode: 0o644},
	))
	w.extract(t, "opaque", "base", w.putHeaders(t,
		tar.Header{Name: ".wh..wh..opq", Mode: 0o644}, tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "d/new", Mode: 0o644},
	))
	w.extract(t, "top", "opaque", w.putHeaders(t, tar.Header{Name: "top", Mode: 0o644}))
	for name, want := range map[string]string{"opaque": "[. d d/new]", "top": "[. d d/new top]"} {
		if got := fmt.Sprint(w.tree(t, name).Paths()); got != want {
			t.Errorf("%s shows %s, want %s", name, got, want)
		}
	}
	view := func(of string) []mount.Mount {
		m, err := w.View(ctx, "view-"+of, of)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	base := view("base")
	for _, name := range []string{"opaque", "top"} {
		d, err := w.differ.Compare(ctx, base, view(name))
		if err != nil {
			t.Fatal(err)
		}
		w.extract(t, "again-"+name, "base", d)
		w.mustShow(t, "again-"+name, name)
	}
	key := "box"
	w.at(t, w.prepare(t, key, "opaque"), func(root string) {
		if err := os.WriteFile(filepath.Join(root, "old"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	})
	if err := w.Commit(ctx, key+"-done", key); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(w.tree(t, key+"-done").Paths()); got != "[. d d/new old]" {
		t.Errorf("a container over it shows %s", got)
	}
}
