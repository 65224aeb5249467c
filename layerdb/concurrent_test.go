package layerdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// 32 goroutines create, mount, write, commit and remove, over parents that others hold and release, while the garbage is
// collected: nobody sees anything of the others, and nothing is left.
func TestManyAtOnce(t *testing.T) {
	ctx := context.Background()
	o := optionsAt(filepath.Join(testenv.Scratch(t), "store"))
	o.Registry = drivers.NewRegistry(stackFactory("stack", asItIs))
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	base := stream(t, file{name: "base", content: "shared"})
	register(t, s, "", base, RegisterOptions{Hold: &Holder{Kind: "test", Key: "base"}})
	stop := make(chan struct{})
	var collector, workers sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := s.GC(ctx); err != nil {
				t.Error("collect:", err)
				return
			}
		}
	})
	for i := range 32 {
		workers.Go(func() {
			for round := range 2 {
				if err := oneOfMany(ctx, s, base, fmt.Sprintf("c%d-%d", i, round)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	workers.Wait()
	close(stop)
	collector.Wait()
	if rep, err := s.Check(ctx, CheckOptions{Mode: CheckContent}); err != nil || len(rep.Problems) > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if err := s.Release(ctx, Ref{"test", "base"}); err != nil {
		t.Error(err)
	}
	mustBeEmpty(t, s)
}

// oneOfMany takes one container through its life, and a layer that is made of it.
func oneOfMany(ctx context.Context, s *Store, base []byte, name string) error {
	own := Ref{"test", name}
	l, err := s.Register(ctx, bytes.NewReader(base), "", RegisterOptions{Hold: &Holder{Kind: own.Kind, Key: own.Key}})
	if err != nil {
		return fmt.Errorf("%s: register: %w", name, err)
	}
	if _, err := s.CreateContainer(ctx, name, l.ID, ContainerOptions{}); err != nil {
		return err
	}
	root, err := s.Mount(ctx, name, MountOptions{})
	if err != nil {
		return err
	}
	if b, err := os.ReadFile(filepath.Join(root, "base")); err != nil || string(b) != "shared" {
		return fmt.Errorf("%s: reads %q, %w", name, b, err)
	}
	if err := os.WriteFile(filepath.Join(root, "own"), []byte(name), 0o600); err != nil {
		return err
	}
	committed, err := s.Commit(ctx, name, RegisterOptions{Hold: &Holder{Kind: own.Kind, Key: own.Key + "-image"}})
	if err != nil {
		return err
	}
	if err := errors.Join(s.Unmount(ctx, name), s.RemoveContainer(ctx, name), s.Release(ctx, own)); err != nil {
		return fmt.Errorf("%s: end: %w", name, err)
	}
	chain, err := s.Chain(ctx, committed.ID)
	if err != nil || len(chain) != 2 {
		return fmt.Errorf("%s: chain of %d, %w", name, len(chain), err)
	}
	if err := s.Verify(ctx, committed.ID); err != nil {
		return err
	}
	return s.Release(ctx, Ref{own.Kind, own.Key + "-image"})
}
