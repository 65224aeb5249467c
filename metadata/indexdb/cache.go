package indexdb

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
	"plyfs/metadata"
	"plyfs/metadata/kv"
)

// DefaultLimit is how many bytes the indexes of a cache take before the least recently used are removed.
const DefaultLimit = 1 << 30

// useInterval is how exactly the last use of an index is noted: a cache that is not changed at every mount is kinder to
// disks, and to those who share it read-only.
const useInterval = time.Hour

// What stands in a cache directory, see the package doc.
const (
	lockFile    = ".lock"
	buildPrefix = ".build-"
	oldPrefix   = ".old-"
	badMark     = ".bad-"
	dbDir       = "db"
	usedFile    = "used"
	staleFile   = "stale"
	nameLen     = 16
	staleLimit  = 4 << 10
)

// Cache is a directory of indexes. It is safe for concurrent use, by many processes too.
type Cache struct {
	dir  string
	root *os.Root
	log  *slog.Logger
}

// OpenCache opens the cache in dir, making it and its parents (mode 0700) if need be. A cache that cannot be written can
// be read. The error wraps ErrUnsafe if the directory belongs to someone else or others may write it: who can change
// an index decides what a mount shows. log, which may be nil, takes what nobody could do anything about.
func OpenCache(dir string, log *slog.Logger) (*Cache, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("index directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("index directory: %w (choose another with index=DIR)", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("index directory: %w", err)
	}
	if err := checkOwner(root, dir); err != nil {
		root.Close()
		return nil, err
	}
	return &Cache{dir: dir, root: root, log: log}, nil
}

func checkOwner(root *os.Root, dir string) error {
	d, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("index directory %s: %w", dir, err)
	}
	defer d.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return fmt.Errorf("index directory %s: %w", dir, err)
	}
	if uid := os.Geteuid(); int(st.Uid) != uid {
		return fmt.Errorf("%w %s: it belongs to user %d, not %d (give it away with chown, or choose another with index=DIR)",
			ErrUnsafe, dir, st.Uid, uid)
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("%w %s: others may write it (chmod 0700 it, or choose another with index=DIR)", ErrUnsafe, dir)
	}
	return nil
}

// Close gives the directory back. Indexes and builders that came from the cache live on, but a builder cannot be committed.
func (c *Cache) Close() error { return c.root.Close() }

// Dir is the absolute path of the cache.
func (c *Cache) Dir() string { return c.dir }

func (c *Cache) path(name string) string { return filepath.Join(c.dir, name) }

// lock makes the process the only one that publishes, sets aside or removes, until unlock is called. It blocks while
// another does, which is a few renames.
func (c *Cache) lock() (unlock func(), err error) {
	f, err := c.root.OpenFile(lockFile, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock index directory %s: %w", c.dir, err)
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock index directory %s: %w", c.dir, err)
	}
	return func() { f.Close() }, nil
}

func flock(f *os.File, how int) error {
	return sys.Retry(func() error { return unix.Flock(int(f.Fd()), how) })
}

// Open opens the index of a stack and notes its use. The error wraps ErrNotBuilt if there is none: an index that is damaged,
// not finished, or of another version counts as none, is set aside and said in the log. It wraps ErrStale if the layers
// changed since it was built.
func (c *Cache) Open(s *metadata.Stack) (*Index, error) {
	name := s.Name()
	x, err := c.load(name)
	if err != nil {
		if isBroken(err) {
			c.setAside(name, s, err)
			return nil, fmt.Errorf("index %s: %w: %w", c.path(name), ErrNotBuilt, err)
		}
		return nil, err
	}
	if x.stack != string(s.Encode()) {
		err := errors.Join(fmt.Errorf("%w: it is of another stack", kv.ErrForeign), x.Close())
		c.setAside(name, s, err)
		return nil, fmt.Errorf("index %s: %w: %w", c.path(name), ErrNotBuilt, err)
	}
	if reason := x.Info().Stale; reason != "" {
		return nil, errors.Join(fmt.Errorf("index %s: %w: %s", c.path(name), ErrStale, reason), x.Close())
	}
	x.touch()
	return x, nil
}

// OpenName opens an index by its name, whatever stack it is of and even if it is stale, without noting a use. The error
// wraps ErrNotBuilt if there is none of that name.
func (c *Cache) OpenName(name string) (*Index, error) {
	if !isName(name) {
		return nil, fmt.Errorf("index %q in %s: %w", name, c.dir, ErrNotBuilt)
	}
	return c.load(name)
}

// isName says that a directory of that name is an index.
func isName(name string) bool {
	return len(name) == nameLen && strings.Trim(name, "0123456789abcdef") == ""
}

// IsSetAside says whether an index of that name is one that was found to be of no use, and is kept for those who want to know why.
func IsSetAside(name string) bool {
	return len(name) > nameLen && isName(name[:nameLen]) && strings.HasPrefix(name[nameLen:], badMark)
}

// isBroken says that an error means that an index is of no use to anyone.
func isBroken(err error) bool {
	for _, e := range []error{kv.ErrUnclean, kv.ErrForeign, kv.ErrVersion, kv.ErrDamaged, metadata.ErrDamaged} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// load opens the index and changes nothing.
func (c *Cache) load(name string) (*Index, error) {
	x := &Index{log: c.log, info: metadata.Info{Name: name, Path: c.path(name), Schema: metadata.SchemaVersion}}
	err := x.open(c)
	if err == nil {
		return x, nil
	}
	return nil, errors.Join(fmt.Errorf("index %s: %w", x.info.Path, err), x.release())
}

// setAside renames what has the name of the stack's index but is of no use, so that it can be built again, and lets go of
// those set aside before.
func (c *Cache) setAside(name string, s *metadata.Stack, cause error) {
	bad, replaced := name+badMark+"1", false
	err := c.exclusively(func(drop func(string) error) error {
		// Another may have done it meanwhile, and a third have built a new one.
		x, err := c.load(name)
		if err == nil {
			replaced = x.stack == string(s.Encode())
			if err := x.Close(); err != nil || replaced {
				return err
			}
		} else if !isBroken(err) {
			return err
		}
		names, err := c.names(IsSetAside)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := drop(n); err != nil {
				return err
			}
		}
		return c.root.Rename(name, bad)
	})
	switch {
	case err != nil:
		c.log.Warn("an index is of no use and stays where it is", "index", c.path(name), "cause", cause, "error", err)
		return
	case replaced:
		return
	}
	c.log.Warn("an index is of no use and was set aside", "index", c.path(name), "kept", c.path(bad), "cause", cause)
}

// exclusively runs fn while no other process changes what is in the cache. What fn drops disappears at once, and is
// removed when others may go on.
func (c *Cache) exclusively(fn func(drop func(name string) error) error) error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	var old []string
	err = fn(func(name string) error {
		to := oldPrefix + rand.Text()
		if err := c.root.Rename(name, to); err != nil {
			return err
		}
		old = append(old, to)
		return nil
	})
	unlock()
	for _, name := range old {
		err = errors.Join(err, c.root.RemoveAll(name))
	}
	return err
}

// names lists the cache's entries for which pick is true, sorted.
func (c *Cache) names(pick func(string) bool) ([]string, error) {
	entries, err := fs.ReadDir(c.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("index directory %s: %w", c.dir, err)
	}
	var names []string
	for _, e := range entries {
		if pick(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// readSmall reads a small file of text.
func readSmall(root *os.Root, name string) (string, error) {
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, staleLimit))
	return strings.TrimSpace(string(b)), err
}
