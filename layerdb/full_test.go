package layerdb

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// A disk that becomes full while a layer is unpacked, beside others that commit, costs that layer and nothing else.
func TestFullDisk(t *testing.T) {
	ctx := context.Background()
	disk := testenv.Scratch(t)
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=128m"); err != nil {
		t.Fatal(err)
	}
	defer testenv.Unmount(t, disk)
	s, err := Open(ctx, optionsAt(filepath.Join(disk, "store")))
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	kept := stream(t, file{name: "kept", content: "x"})
	l := register(t, s, "", kept, RegisterOptions{Hold: &Holder{Kind: "test", Key: "kept"}})
	noise := make([]byte, 110<<20)
	rand.Read(noise)
	big := stream(t, file{name: "big", content: string(noise)})
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		for i := 0; ; i++ {
			select {
			case <-stop:
				stopped <- err
				return
			default:
			}
			if e := s.Hold(ctx, Holder{Kind: "test", Key: fmt.Sprint(i % 10), Layers: []ChainID{l.ID}, Data: bytes.Repeat([]byte{1}, 10000)}); e != nil {
				err = e
			}
		}
	}()
	for range 2 {
		if _, err := s.Register(ctx, bytes.NewReader(big), l.ID, RegisterOptions{}); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, ErrNoSpace) {
			t.Errorf("%v, want no space", err)
		}
	}
	close(stop)
	if err := <-stopped; err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, ErrNoSpace) {
		t.Error("beside it:", err)
	}
	if !bytes.Equal(export(t, s, l.ID), kept) {
		t.Error("a layer is not what it was")
	}
	if rep, err := s.Check(ctx, CheckOptions{Mode: CheckContent}); err != nil || len(rep.Problems) > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	emptyStore(t, s)
}
