package layerdb

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"plyfs/drivers"
	"plyfs/internal/testenv"
	"plyfs/metadata/kv"
)

// populated is a store with two layers, an image and a container.
func populated(t *testing.T, s *Store) (lower, upper Layer) {
	t.Helper()
	ctx := context.Background()
	lower = register(t, s, "", stream(t, file{name: "etc/", kind: '5'}, file{name: "etc/f", content: "lower"}), RegisterOptions{})
	upper = register(t, s, lower.ID, stream(t, file{name: "g", content: "upper"}), RegisterOptions{Hold: &Holder{Kind: "image", Key: "it"}})
	if _, err := s.CreateContainer(ctx, "c", upper.ID, ContainerOptions{}); err != nil {
		t.Fatal(err)
	}
	return lower, upper
}

func (s *Store) rawUpdate(t *testing.T, fn func(*kv.Txn) error) {
	t.Helper()
	if err := s.db.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func writeTo(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Each kind of damage is found, and repaired where that can be.
func TestCheck(t *testing.T) {
	ctx := context.Background()
	cases := map[string]struct {
		kind   string
		damage func(t *testing.T, s *Store, lower, upper Layer)
		stays  bool // cannot be repaired
	}{
		"garbage of the driver": {kind: ProblemGarbage, damage: func(t *testing.T, s *Store, _, upper Layer) {
			if err := errors.Join(s.drv.Create(ctx, "g1", upper.CacheID, nil), s.drv.Create(ctx, "g2", "g1", nil)); err != nil {
				t.Fatal(err)
			}
		}},
		"interrupted work": {kind: ProblemGarbage, damage: func(t *testing.T, s *Store, _, _ Layer) {
			if err := errors.Join(s.beginWork(work{Driver: "vfs", ID: "w1"}), s.drv.Create(ctx, "w1", "", nil)); err != nil {
				t.Fatal(err)
			}
			s.removals.made("w1")
		}},
		"layer missing": {kind: ProblemMissing, stays: true, damage: func(t *testing.T, s *Store, _, upper Layer) {
			if err := errors.Join(s.RemoveContainer(ctx, "c"), s.drv.Remove(ctx, upper.CacheID)); err != nil {
				t.Fatal(err)
			}
		}},
		"stream missing": {kind: ProblemMissing, stays: true, damage: func(t *testing.T, s *Store, _, upper Layer) {
			if err := os.Remove(s.streamPath(upper)); err != nil {
				t.Fatal(err)
			}
		}},
		"stream of nothing": {kind: ProblemGarbage, damage: func(t *testing.T, s *Store, _, _ Layer) {
			writeTo(t, s.path(streamsDir, "x.zst"), "x")
		}},
		"copy missing": {kind: ProblemCopy, damage: func(t *testing.T, s *Store, lower, _ Layer) {
			if err := s.removeCopy(Record{Layer: &lower}); err != nil {
				t.Fatal(err)
			}
		}},
		"copy stale": {kind: ProblemCopy, damage: func(t *testing.T, s *Store, lower, _ Layer) {
			writeTo(t, s.path(recordsDir, copyName(Record{Layer: &lower})), "{}")
		}},
		"copy of nothing": {kind: ProblemCopy, damage: func(t *testing.T, s *Store, _, _ Layer) {
			writeTo(t, s.path(recordsDir, "layer-x.json"), "{}")
		}},
		"record unreadable": {kind: ProblemRecord, damage: func(t *testing.T, s *Store, lower, _ Layer) {
			s.rawUpdate(t, func(x *kv.Txn) error { return x.Set([]byte(layerKey(lower.ID)), []byte(`{"layer":1}`)) })
		}},
		"record in another's place": {kind: ProblemRecord, damage: func(t *testing.T, s *Store, lower, upper Layer) {
			s.rawUpdate(t, func(x *kv.Txn) error {
				v, err := x.Get([]byte(layerKey(upper.ID)))
				if err != nil {
					return err
				}
				return x.Set([]byte(layerKey(lower.ID)), v)
			})
		}},
		"record lost": {kind: ProblemMissing, stays: true, damage: func(t *testing.T, s *Store, lower, _ Layer) {
			s.rawUpdate(t, func(x *kv.Txn) error { return x.Delete([]byte(layerKey(lower.ID))) })
		}},
		"reference lost": {kind: ProblemReference, damage: func(t *testing.T, s *Store, lower, upper Layer) {
			s.rawUpdate(t, func(x *kv.Txn) error { return x.Delete([]byte(userKey(lower.ID, userLayer, string(upper.ID)))) })
		}},
		"reference of nothing": {kind: ProblemReference, damage: func(t *testing.T, s *Store, lower, _ Layer) {
			s.rawUpdate(t, func(x *kv.Txn) error { return x.Set([]byte(userKey(lower.ID, "image", "gone")), []byte{'1'}) })
		}},
		"content": {kind: ProblemContent, stays: true, damage: func(t *testing.T, s *Store, lower, _ Layer) {
			root, err := s.drv.Get(ctx, lower.CacheID, &drivers.GetOptions{Any: true})
			if err != nil {
				t.Fatal(err)
			}
			writeTo(t, filepath.Join(root, "etc", "f"), "LOWER")
			if err := s.drv.Put(ctx, lower.CacheID); err != nil {
				t.Fatal(err)
			}
		}},
		"driver's note unreadable": {kind: ProblemContent, stays: true, damage: func(t *testing.T, s *Store, lower, _ Layer) {
			writeTo(t, filepath.Join(s.DriverDir(), lower.CacheID, "layer.json"), "{")
		}},
		"driver's note of nothing unreadable": {kind: ProblemGarbage, damage: func(t *testing.T, s *Store, _, _ Layer) {
			if err := s.drv.Create(ctx, "x", "", nil); err != nil {
				t.Fatal(err)
			}
			writeTo(t, filepath.Join(s.DriverDir(), "x", "layer.json"), "{")
		}},
		"stream changed": {kind: ProblemContent, stays: true, damage: func(t *testing.T, s *Store, lower, _ Layer) {
			f, err := os.OpenFile(s.streamPath(lower), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.Write([]byte{0}); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			lower, upper := populated(t, s)
			if rep, err := s.Check(ctx, CheckOptions{Mode: CheckContent}); err != nil || !rep.OK() || len(rep.Problems) > 0 || rep.Layers != 2 ||
				rep.Containers != 1 || rep.Holders != 1 {
				t.Fatalf("before: %+v, %v", rep, err)
			}
			c.damage(t, s, lower, upper)
			rep, err := s.Check(ctx, CheckOptions{Mode: CheckContent})
			if err != nil || !slices.ContainsFunc(rep.Problems, func(p Problem) bool { return p.Kind == c.kind && p.Remedy != "" }) {
				t.Errorf("%+v, %v; want a problem of kind %s with a remedy", rep, err, c.kind)
			}
			if rep, err = s.Check(ctx, CheckOptions{Mode: CheckContent, Repair: Repair}); err != nil || rep.OK() == c.stays {
				t.Errorf("repair: %+v, %v", rep, err)
			}
			rep, err = s.Check(ctx, CheckOptions{Mode: CheckContent})
			if err != nil || (len(rep.Problems) > 0) != c.stays {
				t.Errorf("after: %+v, %v", rep, err)
			}
		})
	}
}

// A store whose database is gone or damaged is not taken for a new one, and has all of its layers again when it is rebuilt.
func TestRebuild(t *testing.T) {
	ctx := context.Background()
	for name, damage := range map[string]func(dir string) error{
		"gone":             os.RemoveAll,
		"manifest emptied": func(dir string) error { return os.Truncate(filepath.Join(dir, "MANIFEST"), 0) },
		"manifest of another": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "MANIFEST"), []byte(strings.Repeat("x", 100)), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(testenv.Scratch(t), "store")
			s, err := Open(ctx, optionsAt(root))
			if err != nil {
				t.Fatal(err)
			}
			lower, upper := populated(t, s)
			want := export(t, s, lower.ID)
			closeStore(t, s)
			if _, err := Rebuild(ctx, optionsAt(root)); !errors.Is(err, drivers.ErrExists) {
				t.Errorf("a good database is rebuilt: %v", err)
			}
			if err := damage(filepath.Join(root, dbDir)); err != nil {
				t.Fatal(err)
			}
			_, err = Open(ctx, optionsAt(root))
			if !errors.Is(err, drivers.ErrDamaged) || !strings.Contains(err.Error(), "layer check --repair") {
				t.Fatalf("open: %v", err)
			}
			rep, err := Rebuild(ctx, optionsAt(root))
			if err != nil || len(rep.Problems) > 0 || rep.Layers != 2 {
				t.Fatalf("%+v, %v", rep, err)
			}
			s = openAt(t, root)
			if !bytes.Equal(export(t, s, lower.ID), want) {
				t.Error("a layer goes out changed")
			}
			if users, err := s.Users(ctx, upper.ID); err != nil || len(users) != 2 {
				t.Errorf("%v, %v", users, err)
			}
			emptyStore(t, s)
		})
	}
}

// GC drops holders whose time is over and layers that nobody holds, and nothing else.
func TestGC(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	lower, _ := populated(t, s)
	loose := register(t, s, lower.ID, stream(t, file{name: "loose", content: "x"}), RegisterOptions{})
	for key, expires := range map[string]time.Time{"over": time.Now().Add(-time.Hour), "later": time.Now().Add(time.Hour)} {
		l := register(t, s, "", stream(t, file{name: key, content: key}), RegisterOptions{Hold: &Holder{Kind: "lease", Key: key, Expires: expires}})
		if _, err := s.Layer(ctx, l.ID); err != nil {
			t.Error(err)
		}
	}
	res, err := s.GC(ctx)
	if err != nil || res != (GCResult{Layers: 1, Holders: 1}) {
		// The layer of the holder goes with the holder, not as one that was found.
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := s.Layer(ctx, loose.ID); !errors.Is(err, drivers.ErrNotFound) {
		t.Errorf("an unheld layer stays: %v", err)
	}
	if layers, err := s.Layers(ctx); err != nil || len(layers) != 3 {
		t.Errorf("%d layers, %v; want 3", len(layers), err)
	}
	emptyStore(t, s)
}
