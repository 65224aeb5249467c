package layerdb

import (
	"archive/tar"
	"bytes"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/drivers"
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

// TestVerifyDevice: a 0:0 device is an empty file in some mounts, and the layer whole all the same. An empty file in its place is not.
func TestVerifyDevice(t *testing.T) {
	b := archiveOf(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "dev/"}, tar.Header{Typeflag: tar.TypeChar, Name: "dev/whiteout", Mode: 0o600},
		tar.Header{Typeflag: tar.TypeReg, Name: "dev/empty"},
	)
	eachBackend(t, func(t *testing.T, s *Store) {
		l := register(t, s, "", b, RegisterOptions{})
		if err := s.Verify(t.Context(), l.ID); err != nil {
			t.Error(err)
		}
		top := register(t, s, l.ID, archiveOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "top"}), RegisterOptions{})
		if err := s.Verify(t.Context(), top.ID); err != nil {
			t.Errorf("the layer above: %v", err)
		}
		if s.drv.Name() != "overlay2" {
			return
		}
		where, err := s.drv.Metadata(t.Context(), l.CacheID)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Removexattr(filepath.Join(where["UpperDir"], "dev/whiteout"), ovl.Trusted().Special); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(t.Context(), l.ID); !errors.Is(err, drivers.ErrDamaged) {
			t.Errorf("an empty file: %v, want %v", err, drivers.ErrDamaged)
		}
	})
}
