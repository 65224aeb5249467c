package layerdb

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"plyfs/internal/testenv"
)

// Behind a process that died, Open makes copies what the records say, and leaves what no crash explains to Check. Behind one that
// closed the store it spares itself the reading.
func TestSettleCopies(t *testing.T) {
	ctx := context.Background()
	root := filepath.Join(testenv.Scratch(t), "store")
	s, err := Open(ctx, optionsAt(root))
	if err != nil {
		t.Fatal(err)
	}
	lower, _ := populated(t, s)
	gone := holder("gone", lower.ID)
	lower.Size++
	for _, r := range []Record{{Holder: &gone}, {Layer: &lower, Drivers: []string{"vfs"}}} {
		if err := s.writeCopy(r); err != nil {
			t.Fatal(err)
		}
	}
	damaged := s.path(recordsDir, holderCopy+"damaged"+copySuffix)
	lost := s.path(recordsDir, "layer-lost"+copySuffix)
	writeTo(t, damaged, "{")
	writeTo(t, lost, "{}")
	closeStore(t, s)
	problems := func(want ...string) {
		t.Helper()
		s := reopen(t, optionsAt(root))
		defer closeStore(t, s)
		rep, err := s.Check(ctx, CheckOptions{})
		var has []string
		for _, p := range rep.Problems {
			has = append(has, p.Object)
		}
		slices.Sort(has)
		slices.Sort(want)
		if err != nil || !slices.Equal(has, want) {
			t.Errorf("problems with %q, %v; want %q", has, err, want)
		}
	}
	problems(damaged, lost, s.path(recordsDir, copyName(Record{Holder: &gone})), layerKey(lower.ID))
	if err := os.WriteFile(filepath.Join(root, lockFile), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	problems(damaged, lost)
	s = reopen(t, optionsAt(root))
	defer closeStore(t, s)
	if _, err := s.Check(ctx, CheckOptions{Repair: Repair}); err != nil {
		t.Error(err)
	}
	emptyStore(t, s)
}
