package indexdb

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"plyfs/metadata"
)

// List describes the indexes in the cache, those too that were set aside, sorted by name. It opens each.
func (c *Cache) List() ([]metadata.Info, error) {
	names, err := c.names(func(n string) bool { return isName(n) || IsSetAside(n) })
	if err != nil {
		return nil, err
	}
	infos := make([]metadata.Info, 0, len(names))
	for _, name := range names {
		x, err := c.load(name)
		if errors.Is(err, ErrNotBuilt) {
			continue
		}
		if err != nil {
			i := c.outside(name)
			i.Broken = err.Error()
			infos = append(infos, i)
			continue
		}
		infos = append(infos, x.Info())
		if err := x.Close(); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

// outside describes an index as far as that can be seen without opening it.
func (c *Cache) outside(name string) metadata.Info {
	i := metadata.Info{Name: name, Path: c.path(name)}
	root, err := c.root.OpenRoot(name)
	if err != nil {
		return i
	}
	defer root.Close()
	i.Bytes = diskUse(root)
	if st, err := root.Stat(usedFile); err == nil {
		i.Used = st.ModTime()
	}
	return i
}

// Remove removes an index by its name. Mounts that use it go on with it. The error wraps ErrNotBuilt if there is none.
func (c *Cache) Remove(name string) error {
	if !isName(name) && !IsSetAside(name) {
		return fmt.Errorf("index %q in %s: %w", name, c.dir, ErrNotBuilt)
	}
	err := c.exclusively(func(drop func(string) error) error { return drop(name) })
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotBuilt
	}
	if err != nil {
		return fmt.Errorf("remove index %s: %w", c.path(name), err)
	}
	return nil
}

// Trim removes indexes until the others take at most limit bytes (0: DefaultLimit): those set aside first, then the least
// recently used. It never removes one that a live process has open, nor the one used last, which would only be
// built again. It returns what it removed; of each, Name, Path, Bytes and Used are known.
func (c *Cache) Trim(limit int64) (removed []metadata.Info, err error) {
	if limit <= 0 {
		limit = DefaultLimit
	}
	err = c.exclusively(func(drop func(string) error) error {
		names, err := c.names(func(n string) bool { return isName(n) || IsSetAside(n) })
		if err != nil {
			return err
		}
		var all []metadata.Info
		var total int64
		for _, n := range names {
			all = append(all, c.outside(n))
			total += all[len(all)-1].Bytes
		}
		slices.SortStableFunc(all, func(a, b metadata.Info) int {
			if x, y := IsSetAside(a.Name), IsSetAside(b.Name); x != y {
				if x {
					return -1
				}
				return 1
			}
			return cmp.Or(a.Used.Compare(b.Used), cmp.Compare(a.Name, b.Name))
		})
		for i, x := range all {
			if total <= limit || i == len(all)-1 && !IsSetAside(x.Name) {
				break
			}
			if !c.isFree(x.Name) {
				continue
			}
			if err := drop(x.Name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			total -= x.Bytes
			removed = append(removed, x)
		}
		return nil
	})
	if err != nil {
		return removed, fmt.Errorf("trim index directory %s: %w", c.dir, err)
	}
	return removed, nil
}
