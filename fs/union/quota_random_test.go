package union

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// TestQuotaRandom: after any sequence of operations the account is what a recount finds.
func TestQuotaRandom(t *testing.T) {
	for _, form := range []WhiteoutForm{WhiteoutAuto, WhiteoutAUFS} {
		for _, plain := range []bool{false, true} {
			for seed := range uint64(12) {
				t.Run(fmt.Sprintf("%d-%v-%d", form, plain, seed), func(t *testing.T) { quotaRandom(t, form, plain, seed) })
			}
		}
	}
}

func quotaRandom(t *testing.T, form WhiteoutForm, plain bool, seed uint64) {
	s := newStackIn(t, t.TempDir())
	low2 := s.lower + "2"
	for _, d := range []string{s.lower + "/d", s.lower + "/d/e", s.lower + "/m", low2, low2 + "/m", low2 + "/m/k", low2 + "/d"} {
		okT(t, os.Mkdir(d, 0o755))
	}
	for _, f := range []string{"/d/a", "/d/b", "/m/a", "/c", "/d/e/a"} {
		okT(t, os.WriteFile(s.lower+f, make([]byte, 5000), 0o644))
	}
	okT(t, os.Link(s.lower+"/c", s.lower+"/d/c"))
	okT(t, os.WriteFile(low2+"/m/b", make([]byte, 5000), 0o644))
	okT(t, os.WriteFile(low2+"/d/b", make([]byte, 5000), 0o644))
	var ls []*layer.Layer
	for _, d := range []string{s.lower, low2, s.upper, s.work} {
		l, err := layer.Open(d)
		okT(t, err)
		ls = append(ls, l)
	}
	u, err := New(Options{
		Lowers: ls[:2], Upper: ls[2], Work: ls[3], Whiteout: form,
		Mutator: &sys.Mutator{NoRenameFlags: plain}, Quota: Quota{Bytes: 1 << 30, Inodes: 1 << 20},
	})
	okT(t, err)
	defer u.Close()
	r := rand.New(rand.NewPCG(seed, 7))
	c := &Caller{}
	names := []string{"a", "b", "c", "d", "e", "k", "m"}
	var held []*Node
	dir := func() (*Node, string) {
		at, path := u.Root(), ""
		for range r.IntN(3) {
			name := names[r.IntN(len(names))]
			n, _, err := u.Lookup(at, name)
			if err != nil {
				break
			}
			held = append(held, n)
			if !n.IsDir() {
				break
			}
			at, path = n, path+"/"+name
		}
		return at, path
	}
	log := ""
	do := func(f string, args ...any) { log += fmt.Sprintf(f, args...) + "\n" }
	var last Quota
	for i := range 300 {
		d, dp := dir()
		name := names[r.IntN(len(names))]
		var err error
		var n *Node
		var what string
		switch k := r.IntN(14); k {
		case 0:
			n, _, err = u.Create(c, d, name, 0o644, 0)
			what = "create"
		case 1:
			n, _, err = u.Mkdir(c, d, name, 0o755)
			what = "mkdir"
		case 2:
			n, _, err = u.Symlink(c, d, name, "x")
			what = "symlink"
		case 3:
			n, _, err = u.Mknod(c, d, name, unix.S_IFCHR, 0)
			what = "mknod"
		case 4, 5:
			err = u.Unlink(d, name)
			what = "unlink"
		case 6, 7:
			err = u.Rmdir(d, name)
			what = "rmdir"
		case 8, 9, 10:
			e, ep := dir()
			to := names[r.IntN(len(names))]
			flags := []uint32{0, 0, 0, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT, unix.RENAME_NOREPLACE}[r.IntN(6)]
			err = u.Rename(c, d, name, e, to, flags)
			what = fmt.Sprintf("rename to %s/%s %d", ep, to, flags)
		case 11:
			if n, _, err = u.Lookup(d, name); err == nil {
				what = "write"
				_, err = u.Write(n, make([]byte, 1+r.IntN(20000)), int64(r.IntN(30000)), KeepSetID)
			}
		case 12:
			if n, _, err = u.Lookup(d, name); err == nil {
				what = "setattr"
				in := &SetAttrIn{Valid: SetMode, Mode: 0o600}
				if n.mode == unix.S_IFREG && r.IntN(2) == 0 {
					in = &SetAttrIn{Valid: SetSize, Size: uint64(r.IntN(9000))}
				}
				_, err = u.SetAttr(c, n, in)
			}
		case 13:
			if n, _, err = u.Lookup(d, name); err == nil && !n.IsDir() {
				e, ep := dir()
				to := names[r.IntN(len(names))]
				what = fmt.Sprintf("link to %s/%s", ep, to)
				if _, err = u.Link(n, e, to); err == nil {
					held = append(held, n)
				}
			}
		}
		if n != nil && err == nil {
			held = append(held, n)
		}
		if what != "" {
			do("%d %s/%s %s: %v", i, dp, name, what, err)
		}
		if r.IntN(3) == 0 {
			for _, h := range held {
				u.Forget(h, 1)
			}
			held = nil
		}
		if err == nil {
			use := u.QuotaUse()
			okT(t, u.RecountQuota())
			found := u.QuotaUse()
			if found != use {
				t.Fatalf("account %+v, upper %+v, before %+v\n%s", use, found, last, lastLines(log, 6))
			}
			last = found
		}
	}
	for _, h := range held {
		u.Forget(h, 1)
	}
}

func lastLines(s string, n int) string {
	at := len(s)
	for i := len(s) - 1; i >= 0 && n >= 0; i-- {
		if s[i] == '\n' {
			n--
			at = i + 1
		}
	}
	return s[at:]
}
