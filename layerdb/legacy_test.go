package layerdb

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// legacyTars are two layers: the upper deletes a file, replaces a directory, and adds a file.
func legacyTars(t *testing.T) (lower, upper []byte) {
	lower = stream(t, file{name: "d/", kind: '5'}, file{name: "d/gone", content: "x"}, file{name: "d/stays", content: "y"},
		file{name: "o/", kind: '5'}, file{name: "o/hidden", content: "z"})
	upper = stream(t, file{name: "d/", kind: '5'}, file{name: "d/.wh.gone"}, file{name: "new", content: "n"},
		file{name: "o/", kind: '5'}, file{name: "o/.wh..wh..opq"}, file{name: "o/seen", content: "s"})
	return lower, upper
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

// unpackAs unpacks streams one after the other into a directory.
func unpackAs(t *testing.T, dir string, form tarlayer.WhiteoutForm, tars ...[]byte) {
	t.Helper()
	mkdir(t, dir)
	l, err := layer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, b := range tars {
		if _, err := tarlayer.Apply(context.Background(), l, bytes.NewReader(b), tarlayer.ApplyOptions{Whiteouts: form}); err != nil {
			t.Fatal(err)
		}
	}
}

// splitFile writes the tar-split data of a stream as the old stores keep it.
func splitFile(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	if err := newSplitter(z).run(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
}

// mobyStore lays out a store of moby's by hand; split says whether it has tar-split data.
func mobyStore(t *testing.T, driver, tree string, split bool, unpack func(dir string, i int)) string {
	t.Helper()
	root := testenv.Scratch(t)
	lower, upper := legacyTars(t)
	parent := ChainID("")
	for i, b := range [][]byte{lower, upper} {
		id := parent.above(diffID(b))
		at := filepath.Join(root, "image", driver, "layerdb", "sha256", strings.TrimPrefix(id.String(), "sha256:"))
		mkdir(t, at)
		cache := "cache" + string(rune('0'+i))
		writeTo(t, filepath.Join(at, "cache-id"), cache)
		writeTo(t, filepath.Join(at, "diff"), string(diffID(b)))
		if parent != "" {
			writeTo(t, filepath.Join(at, "parent"), parent.String())
		}
		if split {
			splitFile(t, filepath.Join(at, "tar-split.json.gz"), b)
		}
		unpack(filepath.Join(root, strings.ReplaceAll(tree, "ID", cache)), i)
		parent = id
	}
	return root
}

func stacked(t *testing.T, form tarlayer.WhiteoutForm) func(string, int) {
	return func(dir string, i int) {
		lower, upper := legacyTars(t)
		unpackAs(t, dir, form, [][]byte{lower, upper}[i])
	}
}

func full(t *testing.T) func(string, int) {
	return func(dir string, i int) {
		lower, upper := legacyTars(t)
		unpackAs(t, dir, tarlayer.WhiteoutRemove, [][]byte{lower, upper}[:i+1]...)
	}
}

func containersStore(t *testing.T, driver, tree string, split bool, unpack func(dir string, i int)) string {
	t.Helper()
	root := testenv.Scratch(t)
	lower, upper := legacyTars(t)
	at := filepath.Join(root, driver+"-layers")
	mkdir(t, at)
	list := []map[string]any{
		{"id": "l1", "parent": "l0", "diff-digest": diffID(upper), "compressed-size": 7},
		{"id": "l0", "diff-digest": diffID(lower)},
		{"id": "c0", "parent": "l1"},
		{"id": "half", "parent": "l1", "diff-digest": diffID(lower), "flags": map[string]any{"incomplete": true}},
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	writeTo(t, filepath.Join(at, "layers.json"), string(b))
	for i, b := range [][]byte{lower, upper} {
		id := "l" + string(rune('0'+i))
		if split {
			splitFile(t, filepath.Join(at, id+".tar-split.gz"), b)
		}
		unpack(filepath.Join(root, strings.ReplaceAll(tree, "ID", id)), i)
	}
	return root
}

// Stores that others left behind come in: with the same digests where they have the data for that, and with the same trees in
// any case.
func TestImportLegacy(t *testing.T) {
	ctx := context.Background()
	lower, upper := legacyTars(t)
	for _, split := range []bool{true, false} {
		for kind, root := range map[LegacyKind]string{
			LegacyMobyOverlay2:      mobyStore(t, "overlay2", "overlay2/ID/diff", split, stacked(t, tarlayer.WhiteoutKernel)),
			LegacyMobyAUFS:          mobyStore(t, "aufs", "aufs/diff/ID", split, stacked(t, tarlayer.WhiteoutAUFS)),
			LegacyMobyOverlay:       mobyStore(t, "overlay", "overlay/ID/root", split, full(t)),
			LegacyMobyVFS:           mobyStore(t, "vfs", "vfs/dir/ID", split, full(t)),
			LegacyContainersOverlay: containersStore(t, "overlay", "overlay/ID/diff", split, stacked(t, tarlayer.WhiteoutKernel)),
			LegacyContainersVFS:     containersStore(t, "vfs", "vfs/dir/ID", split, full(t)),
		} {
			name := string(kind)
			if !split {
				name += " without tar-split"
			}
			t.Run(name, func(t *testing.T) {
				s := newStore(t)
				res, err := s.ImportLegacy(ctx, root, LegacyOptions{Hold: &Holder{Kind: "legacy", Key: "import"}})
				if err != nil || res.Kind != kind || len(res.Layers) != 2 {
					t.Fatalf("%+v, %v", res, err)
				}
				if skipped := 2 * strings.Count(name, "containers"); len(res.Skipped) != skipped {
					t.Errorf("skipped: %+v; want %d", res.Skipped, skipped)
				}
				top := res.Layers[1]
				if exact := ChainOf(diffID(lower), diffID(upper)); top.Exact != split || (top.Layer == exact) != split {
					t.Errorf("%+v; want %s exactly: %v", top, exact, split)
				}
				if split && !bytes.Equal(export(t, s, top.Layer), upper) {
					t.Error("it goes out changed")
				}
				if _, err := s.CreateContainer(ctx, "c", top.Layer, ContainerOptions{}); err != nil {
					t.Fatal(err)
				}
				inContainer(t, s, func(root string) {
					for name, there := range map[string]bool{
						"d/gone": false, "d/stays": true, "o/hidden": false, "o/seen": true, "new": true,
					} {
						if exists(filepath.Join(root, name)) != there {
							t.Errorf("%s is there: %v", name, !there)
						}
					}
				})
				if err := s.Release(ctx, Ref{"legacy", "import"}); err != nil {
					t.Error(err)
				}
				emptyStore(t, s)
			})
		}
	}
}

// What is wrong with a layer of an old store is a reason to skip it and what is on top of it, and no more.
func TestImportLegacyDamaged(t *testing.T) {
	ctx := context.Background()
	lower, _ := legacyTars(t)
	at := func(root string) string {
		return filepath.Join(root, "image", "overlay2", "layerdb", "sha256", diffID(lower).Encoded())
	}
	for name, damage := range map[string]func(root string) error{
		"no tree": func(root string) error { return os.RemoveAll(filepath.Join(root, "overlay2", "cache0")) },
		"file changed": func(root string) error {
			return os.WriteFile(filepath.Join(root, "overlay2/cache0/diff/d/stays"), []byte("Y"), 0)
		},
		"file gone":    func(root string) error { return os.Remove(filepath.Join(root, "overlay2/cache0/diff/d/stays")) },
		"odd digest":   func(root string) error { return os.WriteFile(filepath.Join(at(root), "diff"), []byte("md5:1"), 0) },
		"other digest": func(root string) error { return os.WriteFile(filepath.Join(at(root), "diff"), []byte(diffID(nil)), 0) },
		"cache leads out": func(root string) error {
			return os.WriteFile(filepath.Join(at(root), "cache-id"), []byte("../../x"), 0)
		},
		"split garbage": func(root string) error {
			return os.WriteFile(filepath.Join(at(root), "tar-split.json.gz"), []byte("x"), 0)
		},
		"split cut": func(root string) error { return os.Truncate(filepath.Join(at(root), "tar-split.json.gz"), 50) },
		"symlink": func(root string) error {
			dir := filepath.Join(root, "overlay2/cache0/diff")
			return errors.Join(os.RemoveAll(dir), os.Symlink("/etc", dir))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			root := mobyStore(t, "overlay2", "overlay2/ID/diff", true, stacked(t, tarlayer.WhiteoutKernel))
			if err := damage(root); err != nil {
				t.Fatal(err)
			}
			res, err := s.ImportLegacy(ctx, root, LegacyOptions{})
			if err != nil || len(res.Layers) != 0 || len(res.Skipped) != 2 {
				t.Errorf("%+v, %v", res, err)
			}
			mustBeEmpty(t, s)
		})
	}
}

func TestDetectLegacy(t *testing.T) {
	if _, err := detectLegacy(testenv.Scratch(t)); !errors.Is(err, drivers.ErrNotFound) {
		t.Errorf("nothing: %v", err)
	}
	root := mobyStore(t, "overlay2", "overlay2/ID/diff", false, stacked(t, tarlayer.WhiteoutKernel))
	mkdir(t, filepath.Join(root, "image", "aufs", "layerdb", "sha256"))
	if _, err := detectLegacy(root); !errors.Is(err, drivers.ErrInvalid) {
		t.Errorf("two: %v", err)
	}
	if _, err := newStore(t).ImportLegacy(context.Background(), root, LegacyOptions{Kind: "floppy"}); !errors.Is(err, drivers.ErrNotSupported) {
		t.Errorf("unknown kind: %v", err)
	}
}

// A directory that was renamed has its content elsewhere: without tar-split data that is refused.
func TestImportLegacyRedirect(t *testing.T) {
	root := mobyStore(t, "overlay2", "overlay2/ID/diff", false, stacked(t, tarlayer.WhiteoutKernel))
	dir := filepath.Join(root, "overlay2/cache1/diff/o")
	if err := unix.Setxattr(dir, stackNames().Redirect, []byte("/d"), 0); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	res, err := s.ImportLegacy(context.Background(), root, LegacyOptions{})
	if err != nil || len(res.Skipped) != 1 || !strings.Contains(res.Skipped[0].Reason, "redirect_dir") {
		t.Errorf("%+v, %v", res, err)
	}
}
