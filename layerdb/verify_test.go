package layerdb

import (
	"archive/tar"
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"plyfs/cow/ovl"
	"plyfs/internal/testenv"
)

// eachBackend runs a test on a store of each driver that is to be had here.
func eachBackend(t *testing.T, fn func(t *testing.T, s *Store)) {
	t.Helper()
	for _, b := range append(stackingBackends(t), vfsBackend()) {
		t.Run(b.Name, func(t *testing.T) {
			s, err := Open(t.Context(), b.at(filepath.Join(testenv.Scratch(t), "store")))
			if err != nil {
				t.Fatal(err)
			}
			defer closeStore(t, s)
			fn(t, s)
		})
	}
}

// archiveOf makes a stream of headers, of files without content.
func archiveOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.ModTime = time.Unix(1_700_000_000, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestVerifyOverride: an attribute in which other stores keep owners says nothing in what a driver shows.
func TestVerifyOverride(t *testing.T) {
	attr := map[string]string{"SCHILY.xattr." + ovl.OverrideNames()[1]: "1:1:0700"}
	b := archiveOf(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./", PAXRecords: attr},
		tar.Header{Typeflag: tar.TypeReg, Name: "f", PAXRecords: attr}, tar.Header{Typeflag: tar.TypeReg, Name: "g"},
	)
	eachBackend(t, func(t *testing.T, s *Store) {
		l := register(t, s, "", b, RegisterOptions{})
		if err := s.Verify(t.Context(), l.ID); err != nil {
			t.Error(err)
		}
	})
}
