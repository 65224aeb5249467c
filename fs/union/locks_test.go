package union

import (
	"sync"
	"testing"
	"time"

	"plyfs/cow/layer"
	"plyfs/internal/testenv"
)

// TestTakeLocks: it waits for each lock, and takes none away.
func TestTakeLocks(t *testing.T) {
	upper, err := layer.Open(testenv.Scratch(t))
	if err != nil {
		t.Fatal(err)
	}
	u, err := New(Options{Upper: upper, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.quota = &quota{}
	defer func() { u.quota = nil }()
	for name, l := range map[string]sync.Locker{
		"renameMu": &u.renameMu, "renameMu, for reading": u.renameMu.RLocker(), "moving": &u.moving[7], "sync.mu": &u.sync.mu,
		"treeMu": &u.treeMu, "quota.mu": &u.quota.mu, "copyMu": &u.root.copyMu, "dirState.mu": &u.root.dir.mu,
	} {
		l.Lock()
		taken := make(chan struct{})
		go func() {
			u.TakeLocks()
			close(taken)
		}()
		select {
		case <-taken:
			t.Errorf("%s is held, and was taken", name)
		case <-time.After(50 * time.Millisecond):
		}
		l.Unlock()
		<-taken
	}
}
