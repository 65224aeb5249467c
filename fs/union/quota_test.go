package union

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// withQuota opens the stack's layers with a quota.
func (s *stack) withQuota(q Quota) *Union {
	u := s.open(nil)
	u.opt.Quota = q
	if err := u.openQuota(); err != nil {
		s.t.Fatal(err)
	}
	return u
}

func okT(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// exact checks that the account is what a recount finds.
func exact(t testing.TB, u *Union) {
	t.Helper()
	use := u.QuotaUse()
	if err := u.RecountQuota(); err != nil {
		t.Fatal(err)
	}
	if found := u.QuotaUse(); found != use {
		t.Errorf("the account has %+v, the upper %+v", use, found)
	}
}

// TestQuotaOfKilled: what a server that was killed had open without a name does not count in the next one.
func TestQuotaOfKilled(t *testing.T) {
	s := newStack(t)
	root := &Caller{}
	q := Quota{Bytes: 64 << 10}
	u := s.withQuota(q)
	n, _, err := u.Create(root, u.Root(), "new", 0o644, unix.O_EXCL)
	okT(t, err)
	_, err = u.Write(n, make([]byte, 48<<10), 0, KeepSetID)
	okT(t, err)
	exact(t, u)
	if _, err := u.Write(n, make([]byte, 48<<10), 48<<10, KeepSetID); !errors.Is(err, unix.EDQUOT) {
		t.Errorf("wrote beyond the quota: %v", err)
	}
	// u is abandoned.
	v := s.withQuota(q)
	defer v.Close()
	if got, want := v.QuotaUse().Bytes, u.QuotaUse().Bytes; got != want {
		t.Errorf("the next mount counts %d bytes, the killed one %d", got, want)
	}
	okT(t, v.Unlink(v.Root(), "new"))
	if got := v.QuotaUse().Bytes; got >= 48<<10 {
		t.Errorf("%d bytes are in use after the file is gone", got)
	}
	exact(t, v)
	u.Forget(n, 1)
	okT(t, u.Close())
}

// TestQuotaManyNodes: more files are written than descriptors and ledgers are kept for, while others recount.
func TestQuotaManyNodes(t *testing.T) {
	s := newStack(t)
	root := &Caller{}
	u := s.withQuota(Quota{Bytes: 1 << 40, Inodes: 1 << 30})
	defer u.Close()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			var nodes []*Node
			for i := range 2 * manyLedgers {
				n, _, err := u.Create(root, u.Root(), fmt.Sprintf("%d.%d", w, i), 0o644, unix.O_EXCL)
				if err != nil {
					t.Error(err)
					return
				}
				nodes = append(nodes, n)
				if _, err := u.Write(n, make([]byte, 5000), int64(i%3)*4000, KeepSetID); err != nil {
					t.Error(err)
				}
			}
			if err := u.RecountQuota(); err != nil {
				t.Error(err)
			}
			for i, n := range nodes {
				if i%2 == 0 {
					if err := u.Unlink(u.Root(), fmt.Sprintf("%d.%d", w, i)); err != nil {
						t.Error(err)
					}
				}
				u.Forget(n, 1)
			}
		})
	}
	wg.Wait()
	if ledgers := len(u.quota.ledgers); ledgers > 2*manyLedgers {
		t.Errorf("%d ledgers are kept", ledgers)
	}
	use := u.QuotaUse()
	okT(t, u.RecountQuota())
	found := u.QuotaUse()
	slack := u.quota.slack
	if use.Bytes < found.Bytes || use.Inodes < found.Inodes || slack != (amount{}) {
		t.Errorf("the account has %+v, the upper %+v, slack %+v", use, found, slack)
	}
}

// TestQuotaSweptMeanwhile: what an operation gives back is found out also if everything is settled while it ends.
func TestQuotaSweptMeanwhile(t *testing.T) {
	u := newStack(t).withQuota(Quota{Bytes: 1 << 30})
	defer func() { okT(t, u.Close()) }()
	n, _, err := u.Create(&Caller{}, u.Root(), "new", 0o644, unix.O_EXCL)
	okT(t, err)
	defer u.Forget(n, 1)
	empty := u.QuotaUse()
	var sweeper sync.WaitGroup
	defer sweeper.Wait()
	done := make(chan struct{})
	defer close(done)
	sweeper.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				u.QuotaUse()
			}
		}
	})
	data := make([]byte, 64<<10)
	for range 5000 {
		_, err := u.Write(n, data, 0, KeepSetID)
		okT(t, err)
		_, err = u.SetAttr(&Caller{}, n, &SetAttrIn{Valid: SetSize})
		okT(t, err)
		if use := u.QuotaUse(); use != empty {
			t.Fatalf("the account has %+v, the upper %+v", use, empty)
		}
	}
}

// TestQuotaForgottenMeanwhile: an object is not refused while the one that makes room for it is being forgotten.
func TestQuotaForgottenMeanwhile(t *testing.T) {
	root := &Caller{}
	u := newStack(t).withQuota(Quota{Inodes: 2})
	defer func() { okT(t, u.Close()) }()
	n, _, err := u.Create(root, u.Root(), "0", 0o644, unix.O_EXCL)
	okT(t, err)
	for i := range 2000 {
		okT(t, u.Unlink(u.Root(), fmt.Sprint(i)))
		var forgotten sync.WaitGroup
		forgotten.Go(func() { u.Forget(n, 1) })
		next, _, err := u.Create(root, u.Root(), fmt.Sprint(i+1), 0o644, unix.O_EXCL)
		forgotten.Wait()
		if err != nil {
			t.Fatalf("object %d: %v", i+1, err)
		}
		n = next
	}
	u.Forget(n, 1)
	exact(t, u)
}

// BenchmarkQuota measures what a quota adds to a created and written file, and to an overwrite.
func BenchmarkQuota(b *testing.B) {
	for name, q := range map[string]Quota{"without": {}, "with": {Bytes: 1 << 40, Inodes: 1 << 30}} {
		b.Run(name, func(b *testing.B) {
			u := newStack(b).withQuota(q)
			defer u.Close()
			root, data := &Caller{}, make([]byte, 4096)
			b.Run("create-write-unlink", func(b *testing.B) {
				for b.Loop() {
					n, _, err := u.Create(root, u.Root(), "new", 0o644, unix.O_EXCL)
					okB(b, err)
					_, err = u.Write(n, data, 0, KeepSetID)
					okB(b, err)
					okB(b, u.Unlink(u.Root(), "new"))
					u.Forget(n, 1)
				}
			})
			b.Run("write", func(b *testing.B) {
				n, _, err := u.Create(root, u.Root(), "g", 0o644, unix.O_EXCL)
				okB(b, err)
				defer u.Forget(n, 1)
				for b.Loop() {
					_, err = u.Write(n, data, 0, KeepSetID)
					okB(b, err)
				}
			})
		})
	}
}
