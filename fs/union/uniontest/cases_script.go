package uniontest

import (
	"fmt"
	"math/rand/v2"
	"path"

	"golang.org/x/sys/unix"
)

// scriptCases mix operations of all kinds over a small tree of several layers. What one implementation wrote is then
// compared as the others show it.
func scriptCases() []Case {
	low := []Layer{
		{Reg("a/f", "top"), Dirs("a/sub"), Whiteout("b/gone"), Reg("c/x", "x"), Sym("c/link", "x"), Dirs("op"), Opaque("op"), Reg("op/new", "n")},
		{Reg("a/f", "below"), Reg("a/g", "g"), Reg("b/gone", "g"), Reg("b/h", "h"), Hard("b/h", "b/i"), Reg("op/old", "o"), RegMode("s", "set", 0o755), Perm("s", 0o4755)},
		{Reg("a/sub/deep/er/f", "deep"), Reg("z/1", "1"), Reg("z/2", "2"), Fifo("z/p"), Sparse("sparse", 1<<20, "data", 0, 1<<19)},
	}
	cases := []Case{{Name: "script/mixed", Lowers: low, Run: caseScript}}
	for seed := range uint64(12) {
		cases = append(cases, Case{
			Name: fmt.Sprintf("script/random-%d", seed), Lowers: low, Run: func(c *C) { caseRandomScript(c, seed) },
		})
	}
	return cases
}

func caseScript(c *C) {
	c.Append("a/f", "+")
	c.OK(c.Chmod("a/g", 0o600))
	c.OK(c.Chown("b/h", 1, 2))
	c.OK(c.Unlink("b/i"))
	c.OK(c.Mkdir("b/gone", 0o700))
	c.Put("b/gone/new", "new")
	c.OK(c.Rename("c/x", "c/y", 0))
	c.OK(c.Link("c/y", "op/y"))
	c.OK(c.Setxattr("s", "user.k", []byte("v"), 0))
	c.Remove("z")
	c.Put("z", "a file now")
	c.OK(c.Symlink("z", "op/l"))
	c.OK(c.Unlink("op/new"))
	if c.redirects() {
		c.OK(c.Rename("a/sub", "moved", 0))
		c.Append("moved/deep/er/f", "+")
		c.OK(c.Rename("moved/deep", "c/deep", 0))
		c.OK(c.Mkdir("a/sub", 0o755))
	}
	f := c.OpenFile("sparse", unix.O_RDWR, 0)
	c.WriteAll(f, "more", 1<<18)
	c.OK(f.Close())
	c.OK(c.Remount())
	c.Put("a/sub/x", "x")
	c.OK(c.Truncate("a/f", 2))
	c.OK(c.Unlink("c/link"))
	c.OK(c.Mknod("c/link", unix.S_IFIFO|0o600, 0))
	c.Has("a/f", "to")
}

// caseRandomScript makes random operations, most of which are possible; those that are not must fail and change
// nothing, which the remount in the end shows.
func caseRandomScript(c *C, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	names := []string{"a", "b", "c", "op", "z", "f", "g", "h", "sub", "deep", "x"}
	pick := func() string {
		p := names[r.IntN(len(names))]
		for range r.IntN(3) {
			p = path.Join(p, names[r.IntN(len(names))])
		}
		return p
	}
	done := 0
	for i := range 250 {
		p, q := pick(), pick()
		if c.randomOp(r, p, q) == nil {
			done++
		}
		if i%60 == 59 {
			c.OK(c.Remount())
		}
	}
	c.Logf("%d of 250 operations were possible", done)
}

func (c *C) randomOp(r *rand.Rand, p, q string) error {
	switch r.IntN(14) {
	case 0:
		return c.Mkdir(p, 0o755)
	case 1, 2:
		f, err := c.Open(p, unix.O_CREAT|unix.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		c.WriteAll(f, p, int64(r.IntN(100)))
		return f.Close()
	case 3:
		return c.Unlink(p)
	case 4:
		return c.Rmdir(p)
	case 5, 6:
		return c.Rename(p, q, 0)
	case 7:
		return c.Rename(p, q, unix.RENAME_EXCHANGE)
	case 8:
		return c.Link(p, q)
	case 9:
		return c.Symlink(q, p)
	case 10:
		return c.Chmod(p, uint32(0o600+r.IntN(64)))
	case 11:
		return c.Chown(p, r.IntN(5), r.IntN(5))
	case 12:
		return c.Setxattr(p, "user.k", []byte(q), 0)
	}
	return c.Truncate(p, int64(r.IntN(200)))
}
