package union

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/testenv"
)

// TestReadOnlyAgain: files that were written, and are in no use any more, do not keep the upper's file system from being made read-only.
func TestReadOnlyAgain(t *testing.T) {
	base := testenv.Scratch(t)
	must(t, unix.Mount("upper", base, "tmpfs", 0, ""))
	t.Cleanup(func() { testenv.Unmount(t, base) })
	var upper, work *layer.Layer
	for name, l := range map[string]**layer.Layer{"upper": &upper, "work": &work} {
		dir := filepath.Join(base, name)
		must(t, os.Mkdir(dir, 0o755))
		var err error
		*l, err = layer.Open(dir)
		must(t, err)
	}
	u, err := New(Options{Upper: upper, Work: work})
	must(t, err)
	t.Cleanup(func() { must(t, u.Close()) })
	u.files.LetGo(20 * time.Millisecond)
	n, _, err := u.Create(&Caller{}, u.Root(), "f", 0o644, 0)
	must(t, err)
	t.Cleanup(func() { u.Forget(n, 1) })
	write := func() error {
		_, err := u.Write(n, []byte("text"), 0, KeepSetID)
		return err
	}
	must(t, write())
	remount := func(flags uintptr) error { return unix.Mount("", base, "", unix.MS_REMOUNT|flags, "") }
	if err := remount(unix.MS_RDONLY); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("read-only right after a write: %v, want EBUSY", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for err = remount(unix.MS_RDONLY); err != nil; err = remount(unix.MS_RDONLY) {
		if time.Now().After(deadline) {
			t.Fatalf("read-only after a while: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := write(); !errors.Is(err, unix.EROFS) {
		t.Errorf("a write to it: %v, want EROFS", err)
	}
	must(t, remount(0), write())
}
