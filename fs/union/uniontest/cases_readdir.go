package uniontest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

func readdirCases() []Case {
	return []Case{
		{Name: "readdir/dots-and-types", Lowers: []Layer{{Reg("d/f", ""), Dirs("d/s"), Sym("d/l", "x"), Fifo("d/p")}, {Reg("d/f", ""), Reg("d/g", "")}}, Run: caseReaddirTypes},
		{Name: "readdir/merge-hundred", Lowers: hundredLowers(), Run: func(c *C) {
			names := c.Names("d")
			Eq(c, "entries", len(names), 101)
			c.Has("d/common", "0")
			c.Put("d/new", "")
			Eq(c, "entries", len(c.Names("d")), 102)
		}},
		{Name: "readdir/seek", Lowers: []Layer{manyFiles("d", 0, 500), manyFiles("d", 400, 1000)}, Run: caseReaddirSeek},
		{Name: "readdir/concurrent-change", Lowers: []Layer{manyFiles("d", 0, 700), manyFiles("d", 600, 1500)}, Run: caseReaddirConcurrent},
		{Name: "readdir/delete-while-reading", Lowers: []Layer{manyFiles("d", 0, 700), manyFiles("d", 600, 1500)}, Run: caseReaddirDelete},
		{Name: "readdir/removed-directory", Lowers: []Layer{{Reg("d/f", "")}}, Run: func(c *C) {
			d, err := c.OpenDir("d")
			c.OK(err)
			c.Remove("d")
			list, err := d.Next()
			if err == nil {
				for _, e := range list {
					if e.Name == "f" {
						c.Error("a removed directory lists what was in it")
					}
				}
			} else {
				c.Fails(err, unix.ENOENT)
			}
			c.OK(d.Close())
			c.Absent("d")
		}},
		{Name: "readdir/sees-changes-after-rewind", Lowers: []Layer{{Reg("d/a", ""), Reg("d/b", "")}, {Reg("d/c", "")}}, Run: func(c *C) {
			d, err := c.OpenDir("d")
			c.OK(err)
			Eq(c, "entries", len(drain(c, d)), 5)
			c.Put("d/n", "")
			c.OK(c.Unlink("d/a"))
			c.OK(c.Unlink("d/c"))
			c.OK(d.SeekTo(0))
			Eq(c, "entries after rewinding", len(drain(c, d)), 4)
			c.OK(d.Close())
		}},
		{Name: "readdir/100000", Serial: true, NoFinal: "three fingerprints of so many entries take long", Lowers: []Layer{manyFiles("d", 0, 50_000), manyFiles("d", 40_000, 100_000)}, Run: caseReaddirHuge},
	}
}

// manyFiles makes empty files f000000 and so on, quickly.
func manyFiles(dir string, from, to int) Layer {
	return Layer{func(l *LayerDir) error {
		root := l.path(dir)
		if err := os.MkdirAll(root, 0o755); err != nil {
			return err
		}
		for i := from; i < to; i++ {
			if err := unix.Mknod(filepath.Join(root, fileName(i)), unix.S_IFREG|0o644, 0); err != nil {
				return err
			}
		}
		return nil
	}}
}

func fileName(i int) string { return fmt.Sprintf("f%06d", i) }

func hundredLowers() []Layer {
	var all []Layer
	for i := range 100 {
		all = append(all, Layer{Reg(fmt.Sprintf("d/own%d", i), ""), Reg("d/common", fmt.Sprint(i))})
	}
	return all
}

// drain reads an open directory to its end.
func drain(c *C, d DirHandle) []Dirent {
	c.Helper()
	var all []Dirent
	for {
		some, err := d.Next()
		c.OK(err)
		if len(some) == 0 {
			return all
		}
		all = append(all, some...)
	}
}

func caseReaddirTypes(c *C) {
	c.Put("d/up", "")
	list, err := c.ReadDir("d")
	c.OK(err)
	seen := make(map[string]uint32)
	for _, e := range list {
		if _, dup := seen[e.Name]; dup {
			c.Errorf("%s is listed twice", e.Name)
		}
		seen[e.Name] = e.Type
		if e.Ino == 0 {
			c.Errorf("%s has inode number 0", e.Name)
		}
	}
	want := map[string]uint32{
		".": unix.S_IFDIR, "..": unix.S_IFDIR, "f": unix.S_IFREG, "g": unix.S_IFREG, "s": unix.S_IFDIR, "l": unix.S_IFLNK,
		"p": unix.S_IFIFO, "up": unix.S_IFREG,
	}
	for n, typ := range want {
		Eq(c, "type of "+n, seen[n], typ)
	}
	Eq(c, "entries", len(seen), len(want))
}

func caseReaddirSeek(c *C) {
	d, err := c.OpenDir("d")
	c.OK(err)
	defer d.Close()
	all := drain(c, d)
	Eq(c, "entries", len(all), 1002)
	// From every offset the rest follows, in the same order, also backwards.
	for _, i := range []int{1001, 0, 500, 3, 999, 250, 1} {
		c.OK(d.SeekTo(all[i].Next))
		rest := drain(c, d)
		if !slices.EqualFunc(rest, all[i+1:], func(a, b Dirent) bool { return a.Name == b.Name }) {
			c.Errorf("after entry %d (%s) come %d entries, want %d", i, all[i].Name, len(rest), len(all)-i-1)
		}
	}
	c.OK(d.SeekTo(0))
	Eq(c, "entries after rewinding", len(drain(c, d)), 1002)
}

// caseReaddirConcurrent creates and removes other entries between the reads of a listing: what exists all the while must
// be listed exactly once.
func caseReaddirConcurrent(c *C) {
	d, err := c.OpenDir("d")
	c.OK(err)
	defer d.Close()
	seen := make(map[string]int)
	removed := make(map[string]bool)
	for round := 0; ; round++ {
		some, err := d.Next()
		c.OK(err)
		if len(some) == 0 {
			break
		}
		for _, e := range some {
			seen[e.Name]++
		}
		c.Put(fmt.Sprintf("d/new%d", round), "")
		for k := range 3 {
			n := fileName((round*3 + k) * 37 % 1500)
			if !removed[n] {
				removed[n] = true
				c.OK(c.Unlink("d/" + n))
			}
		}
		if n := fileName(1499 - round); !removed[n] {
			removed[n] = true
			c.OK(c.Rename("d/"+n, fmt.Sprintf("d/renamed%d", round), 0))
		}
	}
	for i := range 1500 {
		n := fileName(i)
		if !removed[n] && seen[n] != 1 || seen[n] > 1 {
			c.Errorf("%s was listed %d times", n, seen[n])
		}
	}
}

// caseReaddirDelete removes each entry as it is listed, as rm -r does.
func caseReaddirDelete(c *C) {
	d, err := c.OpenDir("d")
	c.OK(err)
	defer d.Close()
	count := 0
	for {
		some, err := d.Next()
		c.OK(err)
		if len(some) == 0 {
			break
		}
		for _, e := range some {
			if e.Name != "." && e.Name != ".." {
				c.OK(c.Unlink("d/" + e.Name))
				count++
			}
		}
	}
	Eq(c, "entries removed", count, 1500)
	c.OK(c.Rmdir("d"))
	c.Absent("d")
}

func caseReaddirHuge(c *C) {
	start := time.Now()
	list, err := c.ReadDir("d")
	c.OK(err)
	Eq(c, "entries", len(list), 100_002)
	seen := make(map[string]bool, len(list))
	for _, e := range list {
		seen[e.Name] = true
	}
	Eq(c, "different names", len(seen), 100_002)
	c.Elapsed("listing 100,000 merged entries", start, 20*time.Second)
	// Held open, as the kernel's cache holds a directory that is in use.
	held, err := c.OpenDir("d")
	c.OK(err)
	start = time.Now()
	for i := range 200 {
		c.Put(fmt.Sprintf("d/new%d", i), "")
		c.OK(c.Unlink("d/" + fileName(i*311)))
	}
	c.Elapsed("400 changes in a huge directory", start, 10*time.Second)
	c.OK(held.Close())
	for range 2 {
		list, err = c.ReadDir("d")
		c.OK(err)
		Eq(c, "entries", len(list), 100_002)
		c.OK(c.Remount())
	}
}
