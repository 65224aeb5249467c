package layerdb

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// Export writes the layer's uncompressed tar stream to w, the same bytes from which the layer was made. They are hashed on the
// way: the error wraps drivers.ErrDamaged if the DiffID is another one at the end, or if a file of the tree is not what it
// was, and then w has had some bytes already.
func (s *Store) Export(ctx context.Context, id ChainID, w io.Writer) error {
	return s.withLayer(id, func(r, _ Record) error { return s.export(ctx, s.drv, *r.Layer, w) })
}

// export writes the stream of a pinned layer from the tree that drv has of it.
func (s *Store) export(ctx context.Context, drv drivers.Driver, l Layer, w io.Writer) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("export layer %s: %w", l.ID, err)
		}
	}()
	sum := sha256.New()
	w = &contextWriter{ctx, io.MultiWriter(w, sum)}
	err = s.withStream(l, func(r io.Reader) error {
		if l.Stream == StreamWhole {
			_, err := io.Copy(w, r)
			return err
		}
		return withTree(ctx, drv, l.CacheID, func(t *tree) error {
			return asm.WriteOutputTarStream(t, newEntries(r), w)
		})
	})
	if err != nil {
		return err
	}
	if has := digest.NewDigest(digest.SHA256, sum); has != l.DiffID {
		return fmt.Errorf("its stream has DiffID %s, not %s: %w", has, l.DiffID, drivers.ErrDamaged)
	}
	return nil
}

// withStream calls fn with what the store keeps of the layer's stream, uncompressed.
func (s *Store) withStream(l Layer, fn func(r io.Reader) error) (err error) {
	f, err := os.Open(s.streamPath(l))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("what was kept of its stream: %w: %w", ErrMissing, err)
	} else if err != nil {
		return err
	}
	defer f.Close()
	r, _, err := tarlayer.Decompress(f, tarlayer.DecompressOptions{Bytes: -1})
	if err != nil {
		return fmt.Errorf("%s: %w: %w", f.Name(), drivers.ErrDamaged, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return fn(&damageReader{r, f.Name()})
}

// verifyStream compares what is kept of a layer's stream with its digest.
func (s *Store) verifyStream(l Layer) error {
	f, err := os.Open(s.streamPath(l))
	if errors.Is(err, os.ErrNotExist) {
		return nil // reported as missing
	} else if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if has := digest.NewDigest(digest.SHA256, sum); has != l.StreamSum {
		return fmt.Errorf("%s has digest %s, not %s: %w", f.Name(), has, l.StreamSum, drivers.ErrDamaged)
	}
	return nil
}

// damageReader makes errors of reading the store's own files wrap drivers.ErrDamaged.
type damageReader struct {
	r    io.Reader
	name string
}

func (d *damageReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a wrapped one is not the end of the stream
		err = fmt.Errorf("%s: %w: %w", d.name, drivers.ErrDamaged, err)
	}
	return n, err
}

type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c *contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// tree is what a layer shows, by the names of its stream. It implements tar-split's storage.FileGetter.
type tree struct{ root *layer.Layer }

// withTree calls fn with the tree of a layer of the driver.
func withTree(ctx context.Context, drv drivers.Driver, id string, fn func(t *tree) error) (err error) {
	root, err := drv.Get(ctx, id, &drivers.GetOptions{ReadOnly: true, Any: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drv.Put(context.WithoutCancel(ctx), id)) }()
	l, err := layer.OpenPlain(root)
	if err != nil {
		return err
	}
	defer l.Close()
	return fn(&tree{l})
}

// Get opens the regular file that the stream calls name. As when it was unpacked, a symlink on the way is followed as long as
// it stays inside.
func (t *tree) Get(name string) (io.ReadCloser, error) {
	// As when it was unpacked: dot-dot is resolved by its text, and a slash at the end says nothing.
	at := strings.TrimPrefix(path.Clean("/"+name), "/")
	fd, err := unix.Openat2(t.root.FD(), "./"+at, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENAMETOOLONG) {
		src := tarlayer.NewDirSource(t.root, tarlayer.DirOptions{})
		r, err := src.Open(at)
		if err != nil {
			return nil, errors.Join(t.bad(name, err), src.Close())
		}
		return readCloser{r, func() error { return errors.Join(r.Close(), src.Close()) }}, nil
	}
	if err != nil {
		return nil, t.bad(name, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("not a regular file")
	}
	if err != nil {
		unix.Close(fd)
		return nil, t.bad(name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (t *tree) bad(name string, err error) error {
	return fmt.Errorf("file %q of the layer: %w: %w", name, drivers.ErrDamaged, err)
}

type readCloser struct {
	io.Reader
	close func() error
}

func (r readCloser) Close() error { return r.close() }
