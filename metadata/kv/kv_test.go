package kv

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func openDB(t testing.TB, dir string, p Profile) *DB {
	t.Helper()
	db, err := Open(dir, Options{Profile: p, Schema: 3, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func closeDB(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// fill seals a database with values of many sizes and returns what is in it.
func fill(t testing.TB, dir string) map[string]string {
	t.Helper()
	db := openDB(t, dir, Builder)
	b := db.NewBatch()
	want := make(map[string]string)
	key, value := make([]byte, 0, 64), make([]byte, 0, 5<<20)
	for i, size := range []int{1, builderThreshold - 1, builderThreshold, 1000, 70000, 1 << 20, 5 << 20, 3, 4 << 20} {
		key = fmt.Appendf(key[:0], "k%d", i)
		value = append(value[:0], bytes.Repeat([]byte{byte(i) + 1}, size)...)
		want[string(key)] = string(value)
		if err := b.Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := db.Seal(); err != nil {
		t.Fatal(err)
	}
	return want
}

func TestSealedDatabase(t *testing.T) {
	dir := t.TempDir()
	want := fill(t, dir)
	first, second := openDB(t, dir, Reader), openDB(t, dir, Reader)
	defer closeDB(t, second)
	defer closeDB(t, first)
	var wg sync.WaitGroup
	for _, db := range []*DB{first, second, first} {
		wg.Go(func() {
			for k, v := range want {
				if got, ok, err := db.Get([]byte(k)); got != v || !ok || err != nil {
					t.Errorf("%s: %d bytes, %v, %v", k, len(got), ok, err)
				}
			}
		})
	}
	wg.Wait()
	if _, ok, err := first.Get([]byte("k")); ok || err != nil {
		t.Errorf("no key: %v, %v", ok, err)
	}
	var keys []string
	err := first.Scan([]byte("k"), func(k, v string) error {
		keys = append(keys, k)
		if v != want[k] {
			t.Errorf("%s has %d bytes", k, len(v))
		}
		return nil
	})
	if err != nil || len(keys) != len(want) || !slices.IsSorted(keys) {
		t.Errorf("scan: %q, %v", keys, err)
	}
	stop := errors.New("stop")
	if err := first.Scan(nil, func(string, string) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("scan: %v, want what the function returned", err)
	}
	if err := first.Update(func(x *Txn) error { return x.Set([]byte("k"), nil) }); err == nil {
		t.Error("a sealed database is written")
	}
}

func TestRefusedDirectories(t *testing.T) {
	sealed, empty, foreign, unclean := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	fill(t, sealed)
	if err := os.WriteFile(filepath.Join(foreign, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	writer := openDB(t, unclean, Durable)
	defer closeDB(t, writer)
	for _, c := range []struct {
		what, dir string
		opt       Options
		want      error
	}{
		{"no files", empty, Options{Profile: Reader, Schema: 3}, ErrForeign},
		{"other files", foreign, Options{Profile: Reader, Schema: 3}, ErrForeign},
		{"other files", foreign, Options{Profile: Builder, Schema: 3}, ErrForeign},
		{"other files", foreign, Options{Profile: Durable, Schema: 3}, ErrForeign},
		{"being written", unclean, Options{Profile: Reader, Schema: 3}, ErrUnclean},
		{"being written", unclean, Options{Profile: Durable, Schema: 3}, ErrLocked},
		{"newer schema", unclean, Options{Profile: Durable, Schema: 2}, ErrVersion},
		{"newer schema", sealed, Options{Profile: Reader, Schema: 2}, ErrVersion},
		{"older schema", sealed, Options{Profile: Reader, Schema: 4}, ErrVersion},
		{"not empty", sealed, Options{Profile: Builder, Schema: 3}, ErrForeign},
		{"no directory", filepath.Join(empty, "x"), Options{Profile: Reader, Schema: 3}, os.ErrNotExist},
	} {
		db, err := Open(c.dir, c.opt)
		if !errors.Is(err, c.want) {
			t.Errorf("%s, profile %d: %v, want %v", c.what, c.opt.Profile, err, c.want)
		}
		if err == nil {
			closeDB(t, db)
		} else if !strings.Contains(err.Error(), c.dir) {
			t.Errorf("%s: the error does not name the database: %v", c.what, err)
		}
	}
}

// A writer that was killed while the library made a file leaves one that the library refuses to open; what was committed before
// stays.
// TestFewDescriptors: a process at its limit of open files is neither ended by the library, nor takes a database for damaged.
func TestFewDescriptors(t *testing.T) {
	durable, sealed := t.TempDir(), t.TempDir()
	closeDB(t, openDB(t, durable, Durable))
	fill(t, sealed)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		dir     string
		profile Profile
	}{{durable, Durable}, {sealed, Reader}} {
		refused := 0
		for room := uint64(0); ; room++ {
			next, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(next)
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next) + room, Max: limit.Max}); err != nil {
				t.Fatal(err)
			}
			db, err := Open(c.dir, Options{Profile: c.profile, Schema: 3})
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
				t.Fatal(err)
			}
			if err == nil {
				closeDB(t, db)
				break
			}
			refused++
			if !errors.Is(err, ErrRefused) || errors.Is(err, ErrDamaged) {
				t.Errorf("profile %v, room for %d files: %v", c.profile, room, err)
			}
		}
		if refused < 5 {
			t.Errorf("profile %v: refused %d times only", c.profile, refused)
		}
	}
}

func TestKilledWhileMakingFiles(t *testing.T) {
	for name, files := range map[string][]string{
		"log of values": {"000200.vlog"}, "table in memory": {"00099.mem"}, "both": {"000200.vlog", "00099.mem"},
		"manifest": {"MANIFEST-REWRITE"}, "lock": {"LOCK"},
	} {
		for _, old := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, old=%t", name, old), func(t *testing.T) {
				dir := t.TempDir()
				if old {
					db := openDB(t, dir, Durable)
					if err := db.Update(func(x *Txn) error { return x.Set([]byte("k"), []byte("v")) }); err != nil {
						t.Fatal(err)
					}
					closeDB(t, db)
				}
				for _, f := range files {
					if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 {
					db := openDB(t, dir, Durable)
					err := db.View(func(x *Txn) error {
						_, err := x.Get([]byte("k"))
						return err
					})
					if old && err != nil || !old && !errors.Is(err, ErrNotFound) {
						t.Errorf("what was committed: %v", err)
					}
					closeDB(t, db)
				}
			})
		}
	}
}

func TestDurableRemembers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	for round := range 3 {
		db := openDB(t, dir, Durable)
		err := db.Update(func(x *Txn) error {
			for i := range round {
				if v, err := x.Get(fmt.Appendf(nil, "k%d", i)); err != nil || string(v) != "v" {
					t.Errorf("round %d: %q, %v", round, v, err)
				}
			}
			if err := x.Delete([]byte("none")); err != nil {
				return err
			}
			return x.Set(fmt.Appendf(nil, "k%d", round), []byte("v"))
		})
		if err != nil {
			t.Error(err)
		}
		err = db.View(func(x *Txn) error {
			if _, err := x.Get([]byte("none")); !errors.Is(err, ErrNotFound) {
				t.Errorf("no key: %v", err)
			}
			n := 0
			err := x.Scan([]byte("k"), func(_, _ []byte) error { n++; return nil })
			if n != round+1 {
				t.Errorf("%d keys in round %d", n, round)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		closeDB(t, db)
	}
}

func TestFailedUpdateLeavesNothing(t *testing.T) {
	db := openDB(t, t.TempDir(), Durable)
	defer closeDB(t, db)
	fail := errors.New("fail")
	err := db.Update(func(x *Txn) error {
		if err := x.Set([]byte("k"), []byte("v")); err != nil {
			t.Error(err)
		}
		return fail
	})
	if !errors.Is(err, fail) {
		t.Errorf("%v, want what the function returned", err)
	}
	if err := db.View(func(x *Txn) error { _, err := x.Get([]byte("k")); return err }); !errors.Is(err, ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
}

// Transactions that read and write one key all count.
func TestConflictsAreRetried(t *testing.T) {
	db := openDB(t, t.TempDir(), Durable)
	defer closeDB(t, db)
	key := []byte("counter")
	const each, by = 20, 4
	var wg sync.WaitGroup
	for range by {
		wg.Go(func() {
			for range each {
				err := db.Update(func(x *Txn) error {
					v, err := x.Get(key)
					if err != nil && !errors.Is(err, ErrNotFound) {
						return err
					}
					return x.Set(key, append(v, 'x'))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	err := db.View(func(x *Txn) error {
		v, err := x.Get(key)
		if len(v) != each*by {
			t.Errorf("%d updates count, want %d", len(v), each*by)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestConflictWithoutEnd(t *testing.T) {
	db := openDB(t, t.TempDir(), Durable)
	defer closeDB(t, db)
	key := []byte("k")
	tries := 0
	err := db.Update(func(x *Txn) error {
		tries++
		if _, err := x.Get(key); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if err := db.Update(func(y *Txn) error { return y.Set(key, []byte("other")) }); err != nil {
			return err
		}
		return x.Set([]byte("mine"), []byte("x"))
	})
	if !errors.Is(err, ErrConflict) || tries != conflictRetries {
		t.Errorf("after %d tries: %v, want ErrConflict", tries, err)
	}
}

// More than a transaction takes is split; a thing that alone is too large is refused, and what came before it stays.
func TestUpdateEach(t *testing.T) {
	db := openDB(t, t.TempDir(), Durable)
	defer closeDB(t, db)
	const n = 60000
	set := func(x *Txn, i int) error { return x.Set(fmt.Appendf(nil, "k%05d", i), []byte("value")) }
	if err := db.Update(func(x *Txn) error {
		for i := range n {
			if err := set(x, i); err != nil {
				return err
			}
		}
		return nil
	}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one transaction: %v, want ErrTooLarge", err)
	}
	if err := db.UpdateEach(n, set); err != nil {
		t.Fatal(err)
	}
	got := 0
	err := db.View(func(x *Txn) error { return x.Scan([]byte("k"), func(_, _ []byte) error { got++; return nil }) })
	if err != nil || got != n {
		t.Errorf("%d keys, %v; want %d", got, err, n)
	}
	err = db.UpdateEach(3, func(x *Txn, i int) error {
		for k := range 1 + i/2*n {
			if err := x.Set(fmt.Appendf(nil, "z%d-%d", i, k), []byte("value")); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v, want ErrTooLarge", err)
	}
	var left []string
	err = db.View(func(x *Txn) error {
		return x.Scan([]byte("z"), func(k, _ []byte) error { left = append(left, string(k)); return nil })
	})
	if want := []string{"z0-0", "z1-0"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("%q, %v; want %q", left, err, want)
	}
}

func TestBatchKeepsItsError(t *testing.T) {
	db := openDB(t, t.TempDir(), Builder)
	defer closeDB(t, db)
	b := db.NewBatch()
	if err := b.Put(nil, []byte("v")); err == nil {
		t.Error("an empty key is taken")
	}
	if err := b.Put([]byte("k"), []byte("v")); err == nil {
		t.Error("the batch forgot its error")
	}
	if err := b.Flush(); err == nil {
		t.Error("flush forgot the error")
	}
}

func TestLogIsQuiet(t *testing.T) {
	var info, all bytes.Buffer
	log := slog.New(slog.NewTextHandler(&info, nil))
	db, err := Open(t.TempDir(), Options{Profile: Durable, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	closeDB(t, db)
	if info.Len() > 0 {
		t.Errorf("said: %s", &info)
	}
	bridge{slog.New(slog.NewTextHandler(&all, &slog.HandlerOptions{Level: slog.LevelDebug}))}.Errorf("lost %d\n", 7)
	if !strings.Contains(all.String(), "database: lost 7") {
		t.Errorf("said: %s", &all)
	}
}
