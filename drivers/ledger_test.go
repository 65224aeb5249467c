package drivers_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// scanned returns the records whose keys begin with prefix, sorted.
func scanned(t *testing.T, l drivers.Ledger, prefix string) (all []string) {
	t.Helper()
	err := l.Scan(t.Context(), prefix, func(key string, value []byte) error {
		all = append(all, key+"="+string(value))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func TestFileLedger(t *testing.T) {
	dir := filepath.Join(testenv.Scratch(t), "a", "ledger")
	l, err := drivers.OpenFileLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for _, key := range []string{"one", "two", "twofold"} {
		if err := errors.Join(l.Put(ctx, key, []byte("old")), l.Put(ctx, key, []byte(key))); err != nil {
			t.Fatal(err)
		}
	}
	// Half a record of a process that was killed.
	if err := os.WriteFile(filepath.Join(dir, ".tmp-x"), []byte("h"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err = drivers.OpenFileLedger(dir); err != nil {
		t.Fatal(err)
	}
	if got := scanned(t, l, "tw"); !slices.Equal(got, []string{"two=two", "twofold=twofold"}) {
		t.Errorf("scanned %q", got)
	}
	if err := errors.Join(l.Delete(ctx, "two"), l.Delete(ctx, "two")); err != nil {
		t.Error(err)
	}
	if _, err := l.Get(ctx, "two"); !errors.Is(err, drivers.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if b, err := l.Get(ctx, "one"); err != nil || string(b) != "one" {
		t.Errorf("got %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".tmp-x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a record: %v", err)
	}
	stop := errors.New("stop")
	if err := l.Scan(ctx, "", func(string, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("scan ended with %v", err)
	}
	for _, key := range []string{"", ".x", "a/b", "..", strings.Repeat("x", drivers.MaxID+1)} {
		if err := l.Put(ctx, key, nil); !errors.Is(err, drivers.ErrInvalid) {
			t.Errorf("key %q: %v", key, err)
		}
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if err := l.Put(done, "x", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// What is to be removed from a full file system can be, which takes a record or two.
func TestFileLedgerOnFullDisk(t *testing.T) {
	dir := testenv.Scratch(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755,size=1M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Unmount(t, dir) })
	l, err := drivers.OpenFileLedger(filepath.Join(dir, "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Put(t.Context(), "before", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	for i := range 4 {
		if err := l.Put(t.Context(), fmt.Sprintf("r%d", i), []byte("1")); err != nil {
			t.Fatalf("record %d on a full disk: %v", i, err)
		}
	}
	if err := l.Delete(t.Context(), "before"); err != nil {
		t.Error(err)
	}
	var n int
	for n = range 1000 {
		if err = l.Put(t.Context(), fmt.Sprintf("more%d", n), []byte("1")); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%d records on a full disk: %v", n, err)
	}
	if got := scanned(t, l, "r"); len(got) != 4 {
		t.Errorf("records %q", got)
	}
	// As soon as there is space again, some of it is held back again.
	if err := errors.Join(os.Remove(filepath.Join(dir, "ballast")), l.Delete(t.Context(), "r0")); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "ledger", ".spare")); err != nil || st.Size() == 0 {
		t.Errorf("nothing is held back: %v", err)
	}
}
