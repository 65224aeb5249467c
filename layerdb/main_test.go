package layerdb

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) {
	if child() {
		os.Exit(0)
	}
	os.Exit(testenv.Main(m, testenv.Options{Binary: true}))
}

func registry() *drivers.Registry { return drivers.NewRegistry(vfs.Factory()) }

func optionsAt(root string) Options { return vfsBackend().at(root) }

// openAt opens a store and closes it after the test.
func openAt(t testing.TB, root string) *Store {
	t.Helper()
	s, err := Open(context.Background(), optionsAt(root))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func newStore(t testing.TB) *Store {
	t.Helper()
	return openAt(t, filepath.Join(testenv.Scratch(t), "store"))
}

// file is a member of a test's stream.
type file struct {
	name, content string
	kind          byte
	mode          int64
}

// stream returns a tar stream of the files, and its DiffID.
func stream(t testing.TB, files ...file) []byte {
	if t != nil {
		t.Helper()
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Typeflag: f.kind, Size: int64(len(f.content)), ModTime: time.Unix(1700000000, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink {
			h.Linkname, h.Size = f.content, 0
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, f.content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func register(t testing.TB, s *Store, parent ChainID, b []byte, o RegisterOptions) Layer {
	t.Helper()
	l, err := s.Register(context.Background(), bytes.NewReader(b), parent, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func export(t testing.TB, s *Store, id ChainID) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Export(context.Background(), id, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func diffID(b []byte) digest.Digest { return digest.FromBytes(b) }

// holder returns a holder of kind test.
func holder(key string, ids ...ChainID) Holder { return Holder{Kind: "test", Key: key, Layers: ids} }
