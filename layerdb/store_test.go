package layerdb

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"plyfs/drivers"
)

// A layer comes in, goes out as the same bytes, and has a container on top, of which another layer is made.
func TestLifecycle(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	raw := stream(t, file{name: "etc/", kind: '5'}, file{name: "etc/passwd", content: "root\n"}, file{name: "etc/old", content: "x"})
	base := register(t, s, "", raw, RegisterOptions{Hold: &Holder{Kind: "test", Key: "base"}})
	if base.DiffID != diffID(raw) || base.ID != ChainID(base.DiffID) || base.Size != int64(len(raw)) || base.Content != 6 {
		t.Errorf("%+v", base)
	}
	if !bytes.Equal(export(t, s, base.ID), raw) {
		t.Error("the stream goes out changed")
	}
	if _, err := s.CreateContainer(ctx, "c1", base.ID, ContainerOptions{Labels: map[string]string{"a": "b"}}); err != nil {
		t.Fatal(err)
	}
	root, err := s.Mount(ctx, "c1", MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc", "new"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "etc", "old")); err != nil {
		t.Fatal(err)
	}
	l, err := s.Commit(ctx, "c1", RegisterOptions{Hold: &Holder{Kind: "test", Key: "committed"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveContainer(ctx, "c1"); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("a mounted container is removed: %v", err)
	}
	if err := s.Unmount(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveContainer(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	if l.Parent != base.ID || l.ID != ChainOf(base.DiffID, l.DiffID) || l.Content != 7 {
		t.Errorf("%+v", l)
	}
	if b := export(t, s, l.ID); diffID(b) != l.DiffID {
		t.Error("the committed layer goes out changed")
	}
	if err := s.Release(ctx, Ref{"test", "base"}); err != nil {
		t.Fatal(err)
	}
	if chain, err := s.Chain(ctx, l.ID); err != nil || len(chain) != 2 {
		t.Errorf("%d layers, %v; the lower is held by the upper", len(chain), err)
	}
	if err := s.Release(ctx, Ref{"test", "committed"}); err != nil {
		t.Fatal(err)
	}
	mustBeEmpty(t, s)
}

// mustBeEmpty fails the test if the store or its driver has anything left.
func mustBeEmpty(t testing.TB, s *Store) {
	t.Helper()
	ctx := context.Background()
	layers, err := s.Layers(ctx)
	if err != nil || len(layers) > 0 {
		t.Errorf("layers left: %v, %v", layers, err)
	}
	err = s.Driver().List(ctx, func(i drivers.Info) error {
		t.Errorf("the driver has %+v left", i)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, dir := range []string{recordsDir, streamsDir, tempDir} {
		names, err := os.ReadDir(s.path(dir))
		if err != nil || len(names) > 0 {
			t.Errorf("%s: %v left, %v", dir, names, err)
		}
	}
	if err := s.view(func(x *tx) error {
		return x.Scan(nil, func(key, _ []byte) error {
			if string(key) != metaKey {
				t.Errorf("key %s is left", key)
			}
			return nil
		})
	}); err != nil {
		t.Error(err)
	}
}
