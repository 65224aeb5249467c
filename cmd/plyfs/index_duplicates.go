package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/fs/mountopt"
	"plyfs/fs/server"
	"plyfs/internal/exit"
	"plyfs/metadata"
	"plyfs/metadata/indexdb"
)

const indexDuplicatesUsage = "plyfs index duplicates [--json] [--min SIZE] [--dir DIR]"

// listedGroups is how many groups are printed for people, listedPaths how many files of each.
const (
	listedGroups = 20
	listedPaths  = 4
)

// indexDuplicatesCommand is plyfs index duplicates.
func indexDuplicatesCommand() *cli.Command {
	return &cli.Command{
		Name:      "duplicates",
		Usage:     "say how many bytes the indexed layers hold more than once",
		UsageText: indexDuplicatesUsage,
		Description: "Compares the digests of all indexes that have them. Files are equal if size and digest are; the\n" +
			"digest is no defence against malice, so compare files before you replace one by another.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "min", Usage: "leave out files smaller than `SIZE`; K, M and G stand for powers of 1024", Value: "1"},
			jsonFlag(), dirFlag(),
		},
		OnUsageError: indexUsageError(indexDuplicatesUsage),
		Action:       runIndexDuplicates,
	}
}

func runIndexDuplicates(c *cli.Context) error {
	least, err := parseSize(c.String("min"))
	switch {
	case err != nil:
		return faultf(indexUsage, "--min=%s: is no size; give a number of bytes, with K, M or G behind it", c.String("min"))
	case c.NArg() > 0:
		return faultf(indexUsage, "unexpected argument %s; usage: %s", c.Args().First(), indexDuplicatesUsage)
	}
	ctx, stop := interruptible(c)
	defer stop()
	server.RaiseFileLimit()
	d := &duplicates{least: max(least, 1)}
	cache, err := existingIndexCache(c, mountopt.Options{}, warnLog())
	if err != nil {
		return err
	}
	if cache != nil {
		defer cache.Close()
		if err := d.find(ctx, cache); err != nil {
			return indexFault(err)
		}
	}
	return printed(c, indexFailed, func(w io.Writer) { printDuplicates(w, c.Bool("json"), d.report()) })
}

// parseSize reads a number of bytes.
func parseSize(text string) (uint64, error) {
	shift := 10 * (1 + strings.Index("KMG", strings.ToUpper(text[max(len(text)-1, 0):])))
	if text == "" || shift == 0 {
		return strconv.ParseUint(text, 10, 64)
	}
	n, err := strconv.ParseUint(text[:len(text)-1], 10, 64-shift)
	return n << shift, err
}

// content is what equal files have in common.
type content struct{ size, sum uint64 }

// copyOf is one inode with some content. Device numbers are those of now: every layer is open when they are taken.
type copyOf struct {
	content
	dev, ino uint64
}

// duplicates is one search. It holds 32 bytes for each file of each index, and paths of duplicates only.
type duplicates struct {
	least   uint64
	used    int
	skipped []skippedIndex
	copies  []copyOf
	groups  map[content]*duplicateGroup
}

// duplicateGroup is files of equal content, as in the output of --json.
type duplicateGroup struct {
	Size   uint64 `json:"size"`
	Digest string `json:"digest"`
	// Copies counts inodes; Extra are the bytes that all but one of them take.
	Copies uint64 `json:"copies"`
	Extra  uint64 `json:"extra_bytes"`
	// Paths are those of one name of each inode.
	Paths []string `json:"paths"`

	seen map[[2]uint64]bool
}

// skippedIndex is an index that was left out.
type skippedIndex struct {
	Name   string   `json:"name"`
	Reason string   `json:"reason"`
	Layers []string `json:"layers"`
}

// find looks through all indexes twice: for what is there more than once, then for its paths.
func (d *duplicates) find(ctx context.Context, cache *indexdb.Cache) error {
	infos, err := cache.List()
	if err != nil {
		return err
	}
	var good []string
	for _, i := range infos {
		reason, err := d.visit(ctx, cache, i, func(f indexedFile) { d.copies = append(d.copies, f.copyOf) })
		if err != nil {
			return err
		}
		if reason == "" {
			good = append(good, i.Name)
		} else {
			d.skipped = append(d.skipped, skippedIndex{Name: i.Name, Reason: reason, Layers: append([]string{}, i.Layers...)})
		}
	}
	d.used = len(good)
	d.group()
	for _, i := range infos {
		if len(d.groups) == 0 || !slices.Contains(good, i.Name) {
			continue
		}
		if _, err := d.visit(ctx, cache, i, d.name); err != nil {
			return err
		}
	}
	return nil
}

// group keeps what more than one inode holds.
func (d *duplicates) group() {
	slices.SortFunc(d.copies, func(a, b copyOf) int {
		return cmp.Or(cmp.Compare(a.size, b.size), cmp.Compare(a.sum, b.sum),
			cmp.Compare(a.dev, b.dev), cmp.Compare(a.ino, b.ino))
	})
	d.copies = slices.Compact(d.copies)
	d.groups = map[content]*duplicateGroup{}
	for i := 0; i < len(d.copies); {
		k := i + 1
		for k < len(d.copies) && d.copies[k].content == d.copies[i].content {
			k++
		}
		if n := uint64(k - i); n > 1 {
			c := d.copies[i].content
			d.groups[c] = &duplicateGroup{
				Size: c.size, Digest: fmt.Sprintf("%016x", c.sum), Copies: n, Extra: (n - 1) * c.size, seen: map[[2]uint64]bool{},
			}
		}
		i = k
	}
	d.copies = nil
}

// name notes a path of a file that is in a group.
func (d *duplicates) name(f indexedFile) {
	g := d.groups[f.content]
	at := [2]uint64{f.dev, f.ino}
	if g == nil || g.seen[at] {
		return
	}
	g.seen[at] = true
	g.Paths = append(g.Paths, f.path())
}

// indexedFile is a regular file with a digest.
type indexedFile struct {
	copyOf
	layer, dir, name string
}

func (f *indexedFile) path() string {
	p := f.layer
	if f.dir != "" {
		p += "/" + f.dir
	}
	return p + "/" + f.name
}

// visit calls fn for every file of an index that holds data of its own, unless there is a reason not to use the index.
func (d *duplicates) visit(
	ctx context.Context, cache *indexdb.Cache, i metadata.Info, fn func(indexedFile),
) (reason string, err error) {
	switch {
	case i.Broken != "":
		return "it is broken: " + i.Broken, nil
	case i.Stale != "":
		return "it is stale: " + i.Stale, nil
	case !i.Digests:
		return "it has no digests; make them with plyfs index build --digest and the options of its mount", nil
	}
	s, err := layersOfIndex(i)
	if err != nil {
		return exit.AsFault(err).Text, nil
	}
	defer s.Close()
	x, err := cache.OpenName(i.Name)
	if err != nil {
		return "", err
	}
	defer x.Close()
	return "", x.Walk(ctx, func(view string, dir *metadata.Dir) error {
		sums, err := x.Digests(view)
		if err != nil {
			return err
		}
		var e metadata.Entry
		for _, sum := range sums {
			ok, err := dir.Find(sum.Name, &e)
			if err != nil {
				return err
			}
			if !ok || sum.Size < d.least || e.Ask || borrowsData(&e) {
				continue
			}
			low := &dir.Lowers[e.First]
			if int(low.Layer) >= len(s.Lowers) {
				continue
			}
			l := s.Lowers[low.Layer]
			fn(indexedFile{
				copyOf: copyOf{content: content{sum.Size, sum.Sum}, dev: l.Dev, ino: e.Ino},
				layer:  l.Path, dir: low.Path, name: sum.Name,
			})
		}
		return nil
	})
}

// borrowsData says that an entry is a metadata-only copy, whose data is another file's.
func borrowsData(e *metadata.Entry) bool {
	return e.Mode&unix.S_IFMT != unix.S_IFREG || slices.ContainsFunc(e.Xattrs, func(x metadata.Xattr) bool {
		return x.Name == ovl.Trusted().Metacopy || x.Name == ovl.User().Metacopy
	})
}

// duplicatesReport is the output of --json.
type duplicatesReport struct {
	// Indexes were compared.
	Indexes int `json:"indexes"`
	// ExtraBytes are held by all copies but one of each content.
	ExtraBytes uint64            `json:"extra_bytes"`
	Groups     []*duplicateGroup `json:"groups"`
	Skipped    []skippedIndex    `json:"skipped"`
}

func (d *duplicates) report() *duplicatesReport {
	r := &duplicatesReport{Indexes: d.used, Groups: []*duplicateGroup{}, Skipped: append([]skippedIndex{}, d.skipped...)}
	for _, g := range d.groups {
		slices.Sort(g.Paths)
		r.Groups = append(r.Groups, g)
		r.ExtraBytes += g.Extra
	}
	slices.SortFunc(r.Groups, func(a, b *duplicateGroup) int {
		return cmp.Or(cmp.Compare(b.Extra, a.Extra), cmp.Compare(a.Digest, b.Digest))
	})
	return r
}

func printDuplicates(w io.Writer, asJSON bool, r *duplicatesReport) {
	if asJSON {
		fmt.Fprintln(w, jsonOf(r))
		return
	}
	for i, g := range r.Groups {
		if i == listedGroups {
			fmt.Fprintf(w, "and %s of smaller groups; --json lists all\n", plural(len(r.Groups)-i, "more", "more"))
			break
		}
		fmt.Fprintf(w, "%s in %d copies of %s\n", byteSize(int64(g.Extra)), g.Copies, byteSize(int64(g.Size)))
		for k, p := range g.Paths {
			if k == listedPaths {
				fmt.Fprintf(w, "    and %d more\n", len(g.Paths)-k)
				break
			}
			fmt.Fprintf(w, "    %s\n", printable(p))
		}
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(w, "left out: index %s of %s: %s\n", s.Name, layersOf(s.Layers), oneLine(s.Reason))
	}
	fmt.Fprintf(w, "%s held more than once, in %s of files; compared: %s\n", byteSize(int64(r.ExtraBytes)),
		plural(len(r.Groups), "group", "groups"), plural(r.Indexes, "index", "indexes"))
}
