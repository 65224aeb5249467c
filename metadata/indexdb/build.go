package indexdb

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
	"plyfs/metadata"
	"plyfs/metadata/kv"
)

// BuildOptions says how an index is built.
type BuildOptions struct {
	// Digests says that PutDigests will be called.
	Digests bool
	// Layers are the paths of the layers, for messages and Info.
	Layers []string
	// Limit is what the cache may hold when the index is committed, in bytes; 0 for DefaultLimit.
	Limit int64
}

// Builder fills a new index. Its methods may be called by any number of goroutines, but for Commit and Abort, which end
// it.
type Builder struct {
	cache *Cache
	name  string // of the index
	tmp   string // of the directory while it is built
	root  *os.Root
	dir   *os.File // flocked as long as the builder lives
	db    *kv.DB
	stack []byte
	opt   BuildOptions

	entries, dirs atomic.Uint64

	mu    sync.Mutex
	batch *kv.Batch // guarded by mu
	key   []byte    // scratch, guarded by mu
}

// buffers keeps room for encoded records between calls of Put.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Build begins an index of a stack in a temporary directory of the cache, and removes what dead builders left there. The
// caller ends it with Commit or Abort. That another process builds the same is found out at Commit.
func (c *Cache) Build(s *metadata.Stack, o BuildOptions) (*Builder, error) {
	b := &Builder{cache: c, name: s.Name(), tmp: buildPrefix + rand.Text(), stack: s.Encode(), opt: o}
	err := c.exclusively(func(drop func(string) error) error {
		if err := c.sweep(drop); err != nil {
			c.log.Debug("what a dead builder left stays", "index directory", c.dir, "error", err)
		}
		return b.claim()
	})
	if err == nil {
		b.db, err = kv.Open(sys.ProcPath(int(b.dir.Fd()))+"/"+dbDir, kv.Options{
			Profile: kv.Builder, Schema: metadata.SchemaVersion, Name: c.path(b.name), Log: c.log,
		})
	}
	if err != nil {
		b.discard()
		return nil, fmt.Errorf("build index %s: %w", c.path(b.name), err)
	}
	b.batch = b.db.NewBatch()
	return b, nil
}

// sweep drops the directories of builders that are dead. Precondition: the cache is locked.
func (c *Cache) sweep(drop func(string) error) error {
	names, err := c.names(func(n string) bool {
		return strings.HasPrefix(n, buildPrefix) || strings.HasPrefix(n, oldPrefix)
	})
	for _, name := range names {
		if c.isFree(name) {
			err = errors.Join(err, drop(name))
		}
	}
	return err
}

// isFree says that no live process holds the directory. Precondition: the cache is locked.
func (c *Cache) isFree(name string) bool {
	d, err := c.root.Open(name)
	if err != nil {
		return false
	}
	defer d.Close()
	return flock(d, unix.LOCK_EX|unix.LOCK_NB) == nil
}

// claim makes the builder's directory. Precondition: the cache is locked, so that nobody takes it for a leftover.
func (b *Builder) claim() error {
	if err := b.cache.root.Mkdir(b.tmp, 0o700); err != nil {
		return err
	}
	var err error
	if b.root, err = b.cache.root.OpenRoot(b.tmp); err != nil {
		return err
	}
	if b.dir, err = b.root.Open("."); err != nil {
		return err
	}
	if err := flock(b.dir, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	return b.root.Mkdir(dbDir, 0o700)
}

// Put records a directory, in any order; r and what is in it can be reused at once. It blocks while a part of the index is
// written. A view path above MaxView is left out. The error wraps ErrInvalid if r cannot be recorded; after any other
// the index cannot be finished.
func (b *Builder) Put(view string, r *metadata.Record) error {
	buf, _ := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	v, err := r.Encode((*buf)[:0])
	if err != nil {
		return fmt.Errorf("build index: directory %q: %w", "/"+view, err)
	}
	*buf = v
	if err := b.put(keyDir, view, v); err != nil {
		return err
	}
	b.dirs.Add(1)
	b.entries.Add(uint64(len(r.Entries)))
	return nil
}

// PutDigests records the digests of the regular files of a directory. It is otherwise like Put.
func (b *Builder) PutDigests(view string, ds []metadata.Digest) error {
	buf, _ := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	*buf = metadata.EncodeDigests((*buf)[:0], ds)
	return b.put(keyDigests, view, *buf)
}

func (b *Builder) put(kind byte, rest string, value []byte) error {
	if len(rest) > metadata.MaxView {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.key = appendKey(b.key[:0], kind, rest)
	return b.batch.Put(b.key, value)
}

// Entries is the number of names recorded so far.
func (b *Builder) Entries() uint64 { return b.entries.Load() }

// Commit finishes the index, syncs it and gives it its name. If another process was first, its index is kept, unless it is
// stale, and this one dropped. Then indexes are removed until the cache is within its limit. After an error nothing is
// left.
func (b *Builder) Commit() error {
	if err := b.commit(); err != nil {
		b.Abort()
		return fmt.Errorf("build index %s: %w", b.cache.path(b.name), err)
	}
	b.discard()
	if _, err := b.cache.Trim(b.opt.Limit); err != nil {
		b.cache.log.Debug("the index directory is not trimmed", "index directory", b.cache.dir, "error", err)
	}
	return nil
}

func (b *Builder) commit() error {
	info := metadata.Info{
		Built: time.Now(), Dirs: b.dirs.Load(), Entries: b.entries.Load(), Digests: b.opt.Digests, Layers: b.opt.Layers,
	}
	if err := b.put(keyMeta, metaStack, b.stack); err != nil {
		return err
	}
	if err := b.put(keyMeta, metaInfo, metadata.EncodeInfo(&info)); err != nil {
		return err
	}
	batch := b.batch
	b.batch = nil
	if err := batch.Flush(); err != nil {
		return err
	}
	db := b.db
	b.db = nil
	if err := db.Seal(); err != nil {
		return err
	}
	if err := b.root.WriteFile(usedFile, nil, 0o600); err != nil {
		return err
	}
	if err := b.dir.Sync(); err != nil {
		return err
	}
	return b.cache.exclusively(b.publish)
}

// publish gives the index its name, unless another has it. Precondition: the cache is locked.
func (b *Builder) publish(drop func(string) error) error {
	c := b.cache
	if _, err := c.root.Lstat(b.name); err == nil {
		if _, err := c.root.Lstat(b.name + "/" + staleFile); err != nil {
			c.log.Debug("another process built the index first", "index", c.path(b.name))
			return nil
		}
		if err := drop(b.name); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// From its first moment with a name on readers may use it.
	if err := flock(b.dir, unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return err
	}
	if err := c.root.Rename(b.tmp, b.name); err != nil {
		return err
	}
	top, err := c.root.Open(".")
	if err != nil {
		return err
	}
	defer top.Close()
	return top.Sync()
}

// Abort drops what was built. It does nothing after Commit.
func (b *Builder) Abort() {
	if b.batch != nil {
		b.batch.Cancel()
		b.batch = nil
	}
	b.discard()
}

// discard gives everything back, and removes the directory if it still has its temporary name.
func (b *Builder) discard() {
	var errs []error
	if b.db != nil {
		errs = append(errs, b.db.Close())
		b.db = nil
	}
	if b.root == nil && b.dir == nil {
		return
	}
	errs = append(errs, b.cache.root.RemoveAll(b.tmp))
	if b.dir != nil {
		errs = append(errs, b.dir.Close())
	}
	errs = append(errs, b.root.Close())
	b.root, b.dir = nil, nil
	if err := errors.Join(errs...); err != nil {
		b.cache.log.Debug("leftovers of building an index", "index", b.cache.path(b.tmp), "error", err)
	}
}
