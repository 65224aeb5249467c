package plyfs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// waitForSpare waits until a server stands by.
func waitForSpare(t *testing.T, o *pool) serverRecord {
	t.Helper()
	for {
		o.mu.Lock()
		p := o.spare
		o.mu.Unlock()
		if p != nil {
			started, err := startTime(p.pid)
			must(t, err)
			return serverRecord{PID: p.pid, Started: started}
		}
		select {
		case <-t.Context().Done():
			t.Fatal("no server stands by")
		case <-time.After(time.Millisecond):
		}
	}
}

// TestStandby: the server of a mount that is gone stands by and serves the next one; who mounts twice has one that stands by
// meanwhile; one that dies is no loss, and none outlives the driver.
func TestStandby(t *testing.T) {
	base := testenv.Scratch(t)
	d, err := Open(t.Context(), drivers.Options{
		Home: filepath.Join(base, "home"), Run: filepath.Join(base, "run"),
		Options: map[string]string{"mount_program": testenv.Binary(t)},
	})
	must(t, err)
	image(t, d, "base", "", "f")
	for _, id := range []string{"a", "b", "c"} {
		must(t, d.CreateReadWrite(t.Context(), id, "base", nil))
	}
	mounted := func(id string) serverRecord {
		t.Helper()
		root, err := d.Get(t.Context(), id, nil)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(root, "f"), []byte(id), 0o644))
		return readRecord(t, base, id)
	}
	first := mounted("a")
	must(t, d.Put(t.Context(), "a"))
	if got := mounted("a"); got != first {
		t.Errorf("process %d serves, and %d did before", got.PID, first.PID)
	}
	spare := waitForSpare(t, d.pool)
	if got := mounted("b"); got != spare {
		t.Errorf("process %d serves, and %d stood by", got.PID, spare.PID)
	}
	spare = waitForSpare(t, d.pool)
	kill(t, spare)
	if got := mounted("c"); got == spare || !alive(got) {
		t.Errorf("process %d serves after %d was killed", got.PID, spare.PID)
	}
	spare = waitForSpare(t, d.pool)
	for _, id := range []string{"a", "b", "c"} {
		must(t, d.Put(t.Context(), id))
		if b, err := os.ReadFile(filepath.Join(base, "home", id, "diff/f")); err != nil || string(b) != id {
			t.Errorf("the upper of %s holds %q, %v", id, b, err)
		}
	}
	spare = waitForSpare(t, d.pool)
	for i := range 3 { // relative paths, and files, are as at first
		if got := mounted("a"); got != spare {
			t.Errorf("mount %d: process %d serves, and %d stood by", i, got.PID, spare.PID)
		}
		must(t, d.Put(t.Context(), "a"))
		if again := waitForSpare(t, d.pool); again != spare {
			t.Errorf("mount %d: process %d stands by, and not %d again", i, again.PID, spare.PID)
		}
	}
	must(t, d.Close())
	if alive(spare) {
		t.Errorf("process %d stands by for nobody", spare.PID)
	}
}
