package layerdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plyfs/drivers"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

// dependentTars are layers that need what is below them: each links to files of lower ones, and has files in directories that
// only those describe.
func dependentTars(t testing.TB, n int) (tars [][]byte) {
	tars = append(tars, stream(t, file{name: "./", kind: '5', mode: 0o711}, file{name: "d/", kind: '5', mode: 0o2750},
		file{name: "d/f0", content: "0"}, file{name: "gone", content: "x"}))
	for i := 1; i < n; i++ {
		below := fmt.Sprintf("d/f%d", i-1)
		tars = append(tars, stream(t,
			file{name: fmt.Sprintf("d/new%d", i), content: strings.Repeat(fmt.Sprint(i), 1000)},
			file{name: fmt.Sprintf("d/f%d", i), content: below, kind: '1'},
			file{name: fmt.Sprintf("own%d/", i), kind: '5', mode: int64(0o700 + i)},
			file{name: fmt.Sprintf("own%d/f", max(i-1, 1)), content: fmt.Sprint(i)},
			file{name: ".wh.gone"}))
	}
	return tars
}

// shownBy is what the driver shows of a layer.
func shownBy(t testing.TB, s *Store, l Layer) *fingerprint.Tree {
	t.Helper()
	ctx := context.Background()
	root, err := s.drv.Get(ctx, l.CacheID, &drivers.GetOptions{Any: true})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := fingerprint.Take(root, fingerprint.Options{Fields: fingerprint.Default})
	if err := errors.Join(err, s.drv.Put(ctx, l.CacheID)); err != nil {
		t.Fatal(err)
	}
	return tree
}

// meetingSources are sources the lowest of which gives nothing until three others were opened: it takes four at once.
func meetingSources(tars [][]byte) []Source {
	list := sourcesOf(tars)
	opened := make(chan struct{}, len(tars))
	for i, inner := range list {
		list[i].Open = func(ctx context.Context) (io.ReadCloser, error) {
			opened <- struct{}{}
			for i == 0 && len(opened) < 4 {
				select {
				case <-ctx.Done():
					return nil, ctx.Err()
				default:
				}
			}
			return inner.Open(ctx)
		}
	}
	return list
}

// Layers that are unpacked at once show what they show when they are unpacked one after the other.
func TestRegisterAllStacked(t *testing.T) {
	ctx := context.Background()
	tars := dependentTars(t, 8)
	for _, b := range stackingBackends(t) {
		t.Run(b.Name, func(t *testing.T) {
			var made [2][]Layer
			var stores [2]*Store
			for i, sources := range [][]Source{sourcesOf(tars), meetingSources(tars)} {
				s, err := Open(ctx, b.at(filepath.Join(testenv.Scratch(t), "store")))
				if err != nil {
					t.Fatal(err)
				}
				defer closeStore(t, s)
				o := RegisterAllOptions{Parallel: 1 + 3*i, Hold: &Holder{Kind: "image", Key: "it"}}
				if made[i], err = s.RegisterAll(ctx, sources, o); err != nil {
					t.Fatal(err)
				}
				stores[i] = s
			}
			for i := range tars {
				one, two := made[0][i], made[1][i]
				if one.ID != two.ID || one.Sum != two.Sum {
					t.Errorf("layer %d: %+v in sequence, %+v at once", i, one, two)
				}
				if d := fingerprint.Diff(shownBy(t, stores[0], one), shownBy(t, stores[1], two), fingerprint.Default); d != nil {
					t.Errorf("layer %d:\n%s", i, fingerprint.Format(d, 10))
				}
				if !bytes.Equal(export(t, stores[1], two.ID), tars[i]) {
					t.Errorf("layer %d goes out changed", i)
				}
			}
			if rep, err := stores[1].Check(ctx, CheckOptions{Mode: CheckContent}); err != nil || len(rep.Problems) > 0 {
				t.Errorf("%+v, %v", rep, err)
			}
			emptyStore(t, stores[0])
			emptyStore(t, stores[1])
		})
	}
}

// When one in the middle fails, those below it stay, whole, and nothing of the others is left.
func TestRegisterAllStackedFails(t *testing.T) {
	ctx := context.Background()
	tars := dependentTars(t, 8)
	for _, b := range stackingBackends(t) {
		t.Run(b.Name, func(t *testing.T) {
			s, err := Open(ctx, b.at(filepath.Join(testenv.Scratch(t), "store")))
			if err != nil {
				t.Fatal(err)
			}
			defer closeStore(t, s)
			sources := meetingSources(tars)
			sources[4].Open = func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(tars[4][:1200])), nil
			}
			_, err = s.RegisterAll(ctx, sources, RegisterAllOptions{Parallel: 4})
			if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "layer 4") {
				t.Errorf("%v, want that of layer 4", err)
			}
			layers, err := s.Layers(ctx)
			if err != nil || len(layers) != 4 {
				t.Errorf("%d layers are left, %v; want the four below", len(layers), err)
			}
			if rep, err := s.Check(ctx, CheckOptions{Mode: CheckContent}); err != nil || len(rep.Problems) > 0 {
				t.Errorf("%+v, %v", rep, err)
			}
			if _, err := s.RegisterAll(ctx, sourcesOf(tars), RegisterAllOptions{}); err != nil {
				t.Error(err)
			}
			emptyStore(t, s)
		})
	}
}

// lostStore is a store with an image of three layers and a container, that has lost the middle one.
func lostStore(t *testing.T, b backend, tars [][]byte) (*Store, []Layer) {
	t.Helper()
	ctx := context.Background()
	o := b.at(filepath.Join(testenv.Scratch(t), "store"))
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := s.RegisterAll(ctx, sourcesOf(tars), RegisterAllOptions{Hold: &Holder{Kind: "image", Key: "it"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateContainer(ctx, "c", layers[len(layers)-1].ID, ContainerOptions{}); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := os.RemoveAll(filepath.Join(o.ForDriver(b.Name).Home, layers[1].CacheID)); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s, layers
}

func mustMiss(t testing.TB, s *Store, ids ...ChainID) {
	t.Helper()
	rep, err := s.Check(context.Background(), CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var has []string
	for _, p := range rep.Problems {
		if p.Kind != ProblemMissing || p.Remedy == "" {
			t.Errorf("problem: %+v", p)
		}
		has = append(has, strings.TrimPrefix(p.Object, layerPrefix))
	}
	if fmt.Sprint(has) != fmt.Sprint(ids) {
		t.Errorf("missing: %v, want %v", has, ids)
	}
}

// A layer that is lost comes back in its place when it is registered again, whatever way, and what is above it is whole. An
// attempt that fails changes nothing.
func TestRestore(t *testing.T) {
	ctx := context.Background()
	tars := dependentTars(t, 3)
	for name, again := range map[string]func(s *Store, l []Layer, b []byte) error{
		"image": func(s *Store, _ []Layer, _ []byte) error {
			sources := sourcesOf(tars)
			whole := errors.New("a layer that is whole is read")
			for _, i := range []int{0, 2} {
				sources[i].Open = func(context.Context) (io.ReadCloser, error) { return nil, whole }
			}
			_, err := s.RegisterAll(ctx, sources, RegisterAllOptions{Hold: &Holder{Kind: "image", Key: "again"}})
			return err
		},
		"known": func(s *Store, l []Layer, b []byte) error {
			_, err := s.Register(ctx, bytes.NewReader(b), l[0].ID, RegisterOptions{ExpectDiffID: l[1].DiffID})
			return err
		},
		"unknown": func(s *Store, l []Layer, b []byte) error {
			_, err := s.Register(ctx, io.MultiReader(bytes.NewReader(b)), l[0].ID, RegisterOptions{})
			return err
		},
	} {
		for _, b := range append(stackingBackends(t), vfsBackend()) {
			t.Run(b.Name+"_"+name, func(t *testing.T) {
				s, layers := lostStore(t, b, tars)
				mustMiss(t, s, layers[1].ID)
				_, err := s.Register(ctx, bytes.NewReader(tars[1][:1200]), layers[0].ID, RegisterOptions{ExpectDiffID: layers[1].DiffID})
				if !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("broken off: %v", err)
				}
				mustMiss(t, s, layers[1].ID)
				if err := again(s, layers, tars[1]); err != nil {
					t.Fatal(err)
				}
				if rep, err := s.Check(ctx, CheckOptions{Mode: CheckContent}); err != nil || len(rep.Problems) > 0 {
					t.Errorf("%+v, %v", rep, err)
				}
				mustHoldFile(t, s, "c", "d/new1", strings.Repeat("1", 1000))
				for i, l := range layers {
					if !bytes.Equal(export(t, s, l.ID), tars[i]) {
						t.Errorf("layer %d goes out changed", i)
					}
				}
				emptyStore(t, s)
			})
		}
	}
}

// What was kept of a layer's stream comes back the same way.
func TestRestoreStream(t *testing.T) {
	s := newStore(t)
	b := stream(t, file{name: "a", content: "a"})
	l := register(t, s, "", b, RegisterOptions{Hold: &Holder{Kind: "test", Key: "a"}})
	if err := os.Remove(s.streamPath(l)); err != nil {
		t.Fatal(err)
	}
	mustMiss(t, s, l.ID)
	again := register(t, s, "", b, RegisterOptions{ExpectDiffID: l.DiffID})
	if again != l {
		t.Errorf("%+v, want %+v", again, l)
	}
	mustMiss(t, s)
	if !bytes.Equal(export(t, s, l.ID), b) {
		t.Error("it goes out changed")
	}
	emptyStore(t, s)
}

// A container whose layer is lost cannot be used; while it is mounted the layer is not restored beneath it.
func TestRestoreBeneathMount(t *testing.T) {
	ctx := context.Background()
	tars := dependentTars(t, 3)
	b := stackingBackends(t)[0]
	o := b.at(filepath.Join(testenv.Scratch(t), "store"))
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { closeStore(t, s) }()
	layers, err := s.RegisterAll(ctx, sourcesOf(tars), RegisterAllOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateContainer(ctx, "c", layers[2].ID, ContainerOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mount(ctx, "c", MountOptions{}); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := os.RemoveAll(filepath.Join(o.ForDriver(b.Name).Home, layers[1].CacheID)); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RegisterAll(ctx, sourcesOf(tars), RegisterAllOptions{}); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("beneath a mount: %v", err)
	}
	mustMiss(t, s, layers[1].ID)
	if err := s.Unmount(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mount(ctx, "c", MountOptions{}); !errors.Is(err, drivers.ErrDamaged) {
		t.Errorf("without the layer: %v", err)
	}
	if _, err := s.RegisterAll(ctx, sourcesOf(tars), RegisterAllOptions{}); err != nil {
		t.Fatal(err)
	}
	mustHoldFile(t, s, "c", "d/new1", strings.Repeat("1", 1000))
	emptyStore(t, s)
}

// A member that came through a symlink of the layers below, which the same layer then takes away, is not where its name says: such a
// layer goes out as it came in.
func TestExactThroughLostSymlink(t *testing.T) {
	ctx := context.Background()
	base := stream(t, file{name: "etc/", kind: '5'}, file{name: "etc/a", content: "a"}, file{name: "s", kind: '2', content: "etc"},
		file{name: "p/", kind: '5'})
	for _, b := range append(stackingBackends(t), vfsBackend()) {
		t.Run(b.Name, func(t *testing.T) {
			s, err := Open(ctx, b.at(filepath.Join(testenv.Scratch(t), "store")))
			if err != nil {
				t.Fatal(err)
			}
			defer closeStore(t, s)
			low := register(t, s, "", base, RegisterOptions{Hold: &Holder{Kind: "test", Key: "base"}})
			for name, c := range map[string]struct {
				files []file
				want  Stream
			}{
				"a directory":          {[]file{{name: "s/new", content: "1"}, {name: "s/", kind: '5'}, {name: "s/z", content: "2"}}, StreamWhole},
				"a directory, deep":    {[]file{{name: "s/x/", kind: '5'}, {name: "s/x/new", content: "1"}, {name: "s/", kind: '5'}}, StreamWhole},
				"a whiteout":           {[]file{{name: "s/new", content: "1"}, {name: ".wh.s"}}, StreamWhole},
				"an opaque root":       {[]file{{name: "s/new", content: "1"}, {name: ".wh..wh..opq"}}, StreamWhole},
				"it stays":             {[]file{{name: "s/new", content: "1"}}, StreamSplit},
				"it went before":       {[]file{{name: "s/", kind: '5'}, {name: "s/new", content: "1"}, {name: "s/", kind: '5'}}, StreamSplit},
				"opaque at first":      {[]file{{name: ".wh..wh..opq"}, {name: "s/new", content: "1"}}, StreamSplit},
				"nothing comes beside": {[]file{{name: "p/x", content: "1"}, {name: "q/", kind: '5'}, {name: ".wh.s"}}, StreamSplit},
			} {
				in := stream(t, c.files...)
				l := register(t, s, low.ID, in, RegisterOptions{})
				if l.Stream != c.want {
					t.Errorf("%s: the stream is kept as %s, want %s", name, l.Stream, c.want)
				}
				var out bytes.Buffer
				if err := s.Export(ctx, l.ID, &out); err != nil || !bytes.Equal(out.Bytes(), in) {
					t.Errorf("%s: it goes out changed: %v", name, err)
				}
			}
			emptyStore(t, s)
		})
	}
}
