package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// partialDir, beneath ROOT/blobs, holds downloads that broke off, under algorithm-hex. They are resumed, or collected.
const partialDir = "partial"

// blobs keeps content by digest: ROOT/blobs/<algorithm>/<hex>, as in an OCI layout. A file there is complete, was
// verified, and is on disk. It has no lock of its own: files appear by rename and are never changed.
type blobs struct {
	dir string
	// tmp is a directory on the same file system, which the layer store empties when it is opened.
	tmp string
	// locks serialises the downloads of one blob.
	locks drivers.Locks
}

// openBlobs makes the directories.
func openBlobs(dir, tmp string) (*blobs, error) {
	return &blobs{dir: dir, tmp: tmp}, os.MkdirAll(filepath.Join(dir, partialDir), 0o700)
}

// path is where the blob of a valid digest is.
func (b *blobs) path(d digest.Digest) string {
	return filepath.Join(b.dir, d.Algorithm().String(), d.Encoded())
}

// validDigest says whether d can name content: of a known algorithm and of the right length, and so no path but its own.
func validDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w: %w", string(d), err, ErrMalformed)
	}
	return nil
}

// size is the length of a blob; ok is false if it is not there.
func (b *blobs) size(d digest.Digest) (n int64, ok bool) {
	fi, err := os.Lstat(b.path(d))
	if err != nil || !fi.Mode().IsRegular() {
		return 0, false
	}
	return fi.Size(), true
}

// open opens a blob. The error wraps drivers.ErrNotFound if it is not there.
func (b *blobs) open(d digest.Digest) (*os.File, error) {
	f, err := os.Open(b.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", d, drivers.ErrNotFound)
	}
	return f, err
}

// read returns a small blob, compared with its digest.
func (b *blobs) read(d digest.Digest) ([]byte, error) {
	f, err := b.open(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readLimited(f, maxDocument)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	if got := d.Algorithm().FromBytes(data); got != d {
		return nil, fmt.Errorf("blob %s: the content has the digest %s: %w", d, got, drivers.ErrDamaged)
	}
	return data, nil
}

// put stores what r gives, if it has the digest and the size; a negative size is not compared. It is on disk when put
// returns. Nothing of it stays after an error.
func (b *blobs) put(ctx context.Context, d digest.Digest, size int64, r io.Reader) (err error) {
	if _, ok := b.size(d); ok {
		return nil
	}
	f, err := b.temp()
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			err = errors.Join(fmt.Errorf("store blob %s: %w", d, err), removeIfThere(f.Name()))
		}
	}()
	v := newVerifier(d, size, contextReader{ctx, r})
	if _, err = io.Copy(f, v); err != nil {
		return err
	}
	return b.publish(f, d)
}

// putBytes stores a document and returns its digest.
func (b *blobs) putBytes(ctx context.Context, data []byte) (digest.Digest, error) {
	d := digest.FromBytes(data)
	return d, b.put(ctx, d, int64(len(data)), strings.NewReader(string(data)))
}

// temp makes a file to write to, which the next opening of the store removes.
func (b *blobs) temp() (*os.File, error) {
	return os.CreateTemp(b.tmp, "blob-")
}

// scratch makes a file without a name, for content that is needed for a moment.
func (b *blobs) scratch() (*os.File, error) {
	f, err := b.temp()
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// publish gives a complete, verified file its place.
func (b *blobs) publish(f *os.File, d digest.Digest) error {
	if err := f.Sync(); err != nil {
		return err
	}
	to := b.path(d)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), to); err != nil {
		return err
	}
	return sys.SyncDir(filepath.Dir(to))
}

// remove deletes a blob; one that is not there is no error.
func (b *blobs) remove(d digest.Digest) error { return removeIfThere(b.path(d)) }

// list calls fn for every blob with its size.
func (b *blobs) list(fn func(d digest.Digest, size int64) error) error {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		names, err := os.ReadDir(filepath.Join(b.dir, alg.String()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range names {
			d := digest.NewDigestFromEncoded(alg, e.Name())
			if d.Validate() != nil {
				continue
			}
			size, _ := b.size(d)
			if err := fn(d, size); err != nil {
				return err
			}
		}
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
