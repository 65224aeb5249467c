//go:build !vm

package powercut

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
	"plyfs/drivers/vfs"
	"plyfs/layerdb"
)

// storeSteps is how many steps storeLoad has. Each registers a layer on top of the last one and, from keptLayers on, releases
// the holder of an older one.
const (
	storeSteps = 12
	keptLayers = 4
)

func openStore(dir string) (*layerdb.Store, error) {
	return layerdb.Open(context.Background(), layerdb.Options{
		Root: dir, Driver: "vfs", Registry: drivers.NewRegistry(vfs.Factory()), Wait: -1,
	})
}

func storeLoad() load {
	return load{"store", storeSteps, func(dir string) (func(i int) error, error) {
		s, err := openStore(dir)
		if err != nil {
			return nil, err
		}
		return func(i int) error {
			ctx := context.Background()
			hold := &layerdb.Holder{Kind: "test", Key: holderOf(i)}
			if _, err := s.Register(ctx, bytes.NewReader(layerStream(i)), "", layerdb.RegisterOptions{Hold: hold}); err != nil {
				return err
			}
			if i < keptLayers {
				return nil
			}
			return s.Release(ctx, layerdb.Ref{Kind: "test", Key: holderOf(i - keptLayers)})
		}, nil
	}}
}

func holderOf(i int) string { return fmt.Sprintf("image%d", i) }

// layerStream is the tar stream of layer i.
func layerStream(i int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for k := range 20 {
		data := content(i+k, fmt.Sprint("layer ", i))
		h := &tar.Header{Name: fmt.Sprintf("f%d", k), Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}
		if err := errors.Join(w.WriteHeader(h), second(w.Write(data))); err != nil {
			panic(err) // a bytes.Buffer takes everything
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func second(_ int, err error) error { return err }

// checkStore opens the store of a cut and looks for what was promised. What was under way may be there or not.
func checkStore(t *testing.T, dir string, promised int) {
	t.Helper()
	ctx := context.Background()
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	// A copy may be ahead of its record, which a repair makes good. There is never anything that is not named, nor noted as to
	// be removed, which Open has done.
	report, err := s.Check(ctx, layerdb.CheckOptions{Mode: layerdb.CheckContent, Repair: layerdb.Repair})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		if p.Kind != layerdb.ProblemCopy {
			t.Errorf("with %d promised: %+v", promised, p)
		}
	}
	if report, err = s.Check(ctx, layerdb.CheckOptions{Mode: layerdb.CheckContent}); err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Errorf("behind a repair, with %d promised: %+v", promised, p)
	}
	layers, err := s.Layers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range promised {
		want := layerStream(i)
		diff := digest.FromBytes(want)
		k := slices.IndexFunc(layers, func(l layerdb.Layer) bool { return l.DiffID == diff })
		switch under := i >= promised-keptLayers; {
		case i == promised-keptLayers: // its release may be under way
		case under && k < 0:
			t.Errorf("layer %d of %d promised is lost", i, promised)
		case !under && k >= 0:
			t.Errorf("layer %d was removed when %d were promised, and is back", i, promised)
		case under:
			if got := export(t, s, layers[k].ID); !bytes.Equal(got, want) {
				t.Errorf("layer %d: its stream is another one", i)
			}
		}
	}
}

func export(t *testing.T, s *layerdb.Store, id layerdb.ChainID) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Export(context.Background(), id, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
