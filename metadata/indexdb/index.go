package indexdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
	"plyfs/metadata"
	"plyfs/metadata/kv"
)

// The first byte of a key says what is stored under it, see the package doc.
const (
	keyMeta    = 'm'
	keyDir     = 'd'
	keyDigests = 'h'

	metaStack = "stack"
	metaInfo  = "info"
)

// keyRoom is for most keys the room that they need, so that looking one up allocates none.
const keyRoom = 256

func appendKey(buf []byte, kind byte, rest string) []byte {
	return append(append(buf, kind), rest...)
}

// Index answers what the merged view of a stack shows. What it says never changes; MarkStale is all that can be written. It
// is safe for concurrent use, until Close.
type Index struct {
	log   *slog.Logger
	root  *os.Root // the directory of the index
	dir   *os.File // the same; its shared flock says that the index is in use
	db    *kv.DB
	stack string

	// keep says that nothing is noted on disk.
	keep bool

	mu   sync.Mutex
	info metadata.Info // Stale is guarded by mu, the rest is as at Open
}

// open opens the index that x.info names. What it opened before an error, release gives back.
func (x *Index) open(c *Cache) error {
	var err error
	if x.root, err = c.root.OpenRoot(x.info.Name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return ErrNotBuilt
		}
		if errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("%w: %w", kv.ErrForeign, err)
		}
		return err
	}
	if x.dir, err = x.root.Open("."); err != nil {
		return err
	}
	if err := flock(x.dir, unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w: another process removes it", ErrNotBuilt)
	} else if err != nil {
		return fmt.Errorf("flock: %w", err)
	}
	x.info.Stale, err = readSmall(x.root, staleFile)
	if err == nil && x.info.Stale == "" {
		x.info.Stale = "no reason is noted"
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if st, err := x.root.Stat(usedFile); err == nil {
		x.info.Used = st.ModTime()
	}
	x.db, err = kv.Open(sys.ProcPath(int(x.dir.Fd()))+"/"+dbDir, kv.Options{
		Profile: kv.Reader, Schema: metadata.SchemaVersion, Name: x.info.Path, Log: x.log,
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%w: %w", kv.ErrForeign, err)
	} else if err != nil {
		return err
	}
	return x.describe()
}

// describe reads what the database says of itself.
func (x *Index) describe() error {
	for _, name := range []string{metaStack, metaInfo} {
		v, ok, err := x.db.Get(appendKey(nil, keyMeta, name))
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%w: it has no key %q", kv.ErrForeign, name)
		}
		if name == metaStack {
			x.stack = v
		} else if err := metadata.DecodeInfo(v, &x.info); err != nil {
			return err
		}
	}
	x.info.Bytes = diskUse(x.root)
	return nil
}

// diskUse is how many bytes the files below root take on disk.
func diskUse(root *os.Root) int64 {
	var sum int64
	// What cannot be looked at counts as nothing.
	_ = fs.WalkDir(root.FS(), ".", func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir
		}
		if st, err := e.Info(); err == nil {
			if s, ok := st.Sys().(*syscall.Stat_t); ok {
				sum += s.Blocks * 512
			}
		}
		return nil
	})
	return sum
}

func (x *Index) release() error {
	var errs []error
	if x.db != nil {
		errs = append(errs, x.db.Close())
	}
	if x.dir != nil {
		errs = append(errs, x.dir.Close())
	}
	if x.root != nil {
		errs = append(errs, x.root.Close())
	}
	return errors.Join(errs...)
}

// Close ends the use of the index. No call may be under way; directories that it gave out live on.
func (x *Index) Close() error {
	if err := x.release(); err != nil {
		return fmt.Errorf("close index %s: %w", x.info.Path, err)
	}
	return nil
}

// touch notes a use of the index.
func (x *Index) touch() {
	now := time.Now()
	if age := now.Sub(x.info.Used); age >= 0 && age < useInterval {
		return
	}
	if err := x.root.Chtimes(usedFile, now, now); err != nil {
		x.log.Debug("the use of an index is not noted", "index", x.info.Path, "error", err)
	}
}

// Dir returns the merged directory at a view path, nil if it is not recorded. It reads the disk at most once. The error wraps
// metadata.ErrDamaged: the layers have to be asked, and the index is stale from then on.
func (x *Index) Dir(view string) (*metadata.Dir, error) {
	v, ok, err := x.get(keyDir, view)
	if err != nil || !ok {
		return nil, err
	}
	d, err := metadata.DecodeDirString(v)
	if err != nil {
		return nil, x.damaged(view, err)
	}
	return d, nil
}

// Digests returns the digests of the regular files in the merged directory at a view path, nil if there are none. The error
// is as that of Dir.
func (x *Index) Digests(view string) ([]metadata.Digest, error) {
	v, ok, err := x.get(keyDigests, view)
	if err != nil || !ok {
		return nil, err
	}
	ds, err := metadata.DecodeDigests(v)
	if err != nil {
		return nil, x.damaged(view, err)
	}
	return ds, nil
}

func (x *Index) get(kind byte, view string) (value string, ok bool, err error) {
	if len(view) > metadata.MaxView {
		return "", false, nil
	}
	var room [keyRoom]byte
	value, ok, err = x.db.Get(appendKey(room[:0], kind, view))
	if err != nil {
		return "", false, x.damaged(view, err)
	}
	return value, ok, nil
}

// damaged marks the index and returns the error of a directory.
func (x *Index) damaged(view string, err error) error {
	err = fmt.Errorf("index %s: directory %q: %w", x.info.Path, "/"+view, asDamage(err))
	x.MarkStale(err.Error())
	return err
}

// Walk calls fn for every directory in the order of the bytes of their paths, until fn returns an error or ctx is done, which
// it returns. Other errors wrap metadata.ErrDamaged, as those of Dir do.
func (x *Index) Walk(ctx context.Context, fn func(view string, d *metadata.Dir) error) error {
	var fnErr error
	err := x.db.Scan([]byte{keyDir}, func(key, value string) error {
		if fnErr = ctx.Err(); fnErr != nil {
			return fnErr
		}
		view := key[1:]
		d, err := metadata.DecodeDirString(value)
		if err != nil {
			return x.damaged(view, err)
		}
		fnErr = fn(view, d)
		return fnErr
	})
	if fnErr != nil {
		return fnErr
	}
	if err = asDamage(err); errors.Is(err, metadata.ErrDamaged) {
		x.MarkStale(err.Error())
	}
	return err
}

// Keep has MarkStale leave the disk alone from now on. It is called before the index is shared.
func (x *Index) Keep() { x.keep = true }

// Info describes the index.
func (x *Index) Info() metadata.Info {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.info
}

// MarkStale says that the layers are not as the index describes them, or that the index is damaged: nobody opens it any more,
// and the next builder replaces it. The first reason stays. It does nothing in a cache that is read-only, or after Keep, but that
// this Index knows.
func (x *Index) MarkStale(reason string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.info.Stale != "" {
		return
	}
	x.info.Stale = reason
	if x.keep {
		return
	}
	f, err := x.root.OpenFile(staleFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = f.WriteString(reason + "\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		x.log.Debug("that an index is stale is not noted", "index", x.info.Path, "reason", reason, "error", err)
	}
}
