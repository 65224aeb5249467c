package direct

import (
	"context"
	"errors"
	"sync"

	"plyfs/cow/layer"
	"plyfs/fs/union"
	"plyfs/metadata"
)

// memoryIndex is a stack index that was built a moment ago, in memory.
type memoryIndex struct {
	mu    sync.Mutex
	dirs  map[string]*metadata.Dir
	stale string
}

func (x *memoryIndex) Put(view string, r *metadata.Record) error {
	b, err := r.Encode(nil)
	if err != nil {
		return err
	}
	d, err := metadata.DecodeDir(b)
	if err != nil {
		return err
	}
	x.dirs[view] = d
	return nil
}

func (x *memoryIndex) PutDigests(string, []metadata.Digest) error { return nil }

// Dir implements union.StackIndex.
func (x *memoryIndex) Dir(view string) (*metadata.Dir, error) { return x.dirs[view], nil }

// MarkStale implements union.StackIndex.
func (x *memoryIndex) MarkStale(reason string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stale = reason
}

// describe indexes the lowers of o by opening them anew.
func describe(o union.Options) (*memoryIndex, error) {
	lower := union.Options{RedirectDir: o.RedirectDir, MaxOpenFiles: o.MaxOpenFiles}
	for _, l := range o.Lowers {
		again, err := layer.Open(l.Path)
		if err != nil {
			return nil, err
		}
		lower.Lowers = append(lower.Lowers, again)
	}
	u, err := union.New(lower)
	if err != nil {
		return nil, err
	}
	x := &memoryIndex{dirs: map[string]*metadata.Dir{}}
	return x, errors.Join(u.Describe(context.Background(), x, union.DescribeOptions{}), u.Close())
}

// Stale is the reason why the index of an Indexed engine is not believed any more, "" if it is.
func (t *Tree) Stale() string {
	if t.index == nil {
		return ""
	}
	t.index.mu.Lock()
	defer t.index.mu.Unlock()
	return t.index.stale
}
