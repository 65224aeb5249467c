package drivers

import (
	"context"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/internal/sys"
)

// Compare lists what newer has and older has not, as tarlayer.Compare does, and with each new name of a file all its
// other names: a stream in which they are not together would make a second file of it.
func Compare(ctx context.Context, older, newer *layer.Layer) ([]tarlayer.Change, error) {
	list, err := tarlayer.Compare(ctx, older, newer, tarlayer.CompareOptions{})
	if err != nil {
		return nil, err
	}
	src := tarlayer.NewDirSource(newer, tarlayer.DirOptions{})
	defer src.Close()
	return withAllNames(ctx, src, list)
}

type fileID struct{ dev, ino uint64 }

// withAllNames adds to a list of changes the unchanged names of files that have a new name.
func withAllNames(ctx context.Context, src tarlayer.Tree, list []tarlayer.Change) ([]tarlayer.Change, error) {
	listed := make(map[string]bool, len(list))
	missing := make(map[fileID]uint32) // names that are not listed, of files that have a new one
	added := make(map[fileID]bool)
	for _, c := range list {
		listed[c.Path] = true
		if c.Kind == tarlayer.Delete {
			continue
		}
		a, err := src.Lstat(c.Path)
		if sys.Gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look at /%s: %w", c.Path, err)
		}
		if a.Nlink < 2 || a.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		id := fileID{a.Dev, a.Ino}
		added[id] = added[id] || c.Kind == tarlayer.Add
		if n, ok := missing[id]; ok {
			missing[id] = n - 1
		} else {
			missing[id] = a.Nlink - 1
		}
	}
	for id, n := range missing {
		if n == 0 || !added[id] {
			delete(missing, id)
		}
	}
	if len(missing) == 0 {
		return list, nil
	}
	// Where the other names are, only a walk can tell.
	err := walk(ctx, src, func(p string, a tarlayer.Attr) {
		if _, wanted := missing[fileID{a.Dev, a.Ino}]; !wanted || listed[p] {
			return
		}
		for typ := a.Mode & unix.S_IFMT; p != "." && !listed[p]; p, typ = path.Dir(p), unix.S_IFDIR {
			listed[p] = true
			list = append(list, tarlayer.Change{Path: p, Kind: tarlayer.Modify, Type: typ})
		}
	})
	if err != nil {
		return nil, err
	}
	tarlayer.SortChanges(list)
	return list, nil
}

// everything lists all of a tree as added, parents before children.
func everything(ctx context.Context, root *layer.Layer) (list []tarlayer.Change, err error) {
	src := tarlayer.NewDirSource(root, tarlayer.DirOptions{})
	defer src.Close()
	err = walk(ctx, src, func(p string, a tarlayer.Attr) {
		list = append(list, tarlayer.Change{Path: p, Kind: tarlayer.Add, Type: a.Mode & unix.S_IFMT})
	})
	tarlayer.SortChanges(list)
	return list, err
}

// walk calls fn for all of a tree but its root, in no particular order. What goes meanwhile is no part of it.
func walk(ctx context.Context, src tarlayer.Tree, fn func(path string, a tarlayer.Attr)) error {
	for todo := []string{""}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := ctx.Err(); err != nil {
			return err
		}
		names, err := src.ReadDir(dir)
		if sys.Gone(err) && dir != "" {
			continue
		}
		if err != nil {
			return fmt.Errorf("list /%s: %w", dir, err)
		}
		for _, name := range names {
			p := path.Join(dir, name)
			a, err := src.Lstat(p)
			if sys.Gone(err) {
				continue
			}
			if err != nil {
				return fmt.Errorf("look at /%s: %w", p, err)
			}
			fn(p, a)
			if a.Mode&unix.S_IFMT == unix.S_IFDIR {
				todo = append(todo, p)
			}
		}
	}
	return nil
}
