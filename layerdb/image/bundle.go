package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// bundle is the files of an OCI layout or an archive, by their names in it.
type bundle interface {
	// open opens a regular file and says how long it is. The error wraps drivers.ErrNotFound if it is not there.
	open(name string) (io.ReadCloser, int64, error)
	close() error
}

// dirBundle is a directory. Nothing outside it is reached, whatever symlinks are in it.
type dirBundle struct{ root *os.Root }

func openDirBundle(dir string) (*dirBundle, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &dirBundle{root}, nil
}

func (b *dirBundle) open(name string) (io.ReadCloser, int64, error) {
	fi, err := b.root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0, fmt.Errorf("%s: %w", name, drivers.ErrNotFound)
	case err != nil:
		return nil, 0, fmt.Errorf("%w: %w", err, ErrMalformed)
	case !fi.Mode().IsRegular():
		return nil, 0, fmt.Errorf("%s is no regular file: %w", name, ErrMalformed)
	}
	f, err := b.root.Open(name)
	return f, fi.Size(), err
}

func (b *dirBundle) close() error { return b.root.Close() }

// maxMembers bounds the members of an archive; one image has three and its layers.
const maxMembers = 1 << 16

// tarBundle is a tar file: where each member's content is.
type tarBundle struct {
	f       *os.File
	members map[string]member
}

type member struct {
	offset, size int64
	// link is the target of a symlink: old docker archives refer to the layers that images share so.
	link string
}

// openTarBundle reads the headers of an uncompressed tar file, which from then on is the bundle's, also after an error.
func openTarBundle(ctx context.Context, f *os.File) (b *tarBundle, err error) {
	b = &tarBundle{f: f, members: make(map[string]member)}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	for r := tar.NewReader(f); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return nil, fmt.Errorf("archive after %d members: %w: %w", len(b.members), err, ErrMalformed)
		}
		if len(b.members) >= maxMembers {
			return nil, fmt.Errorf("archive of more than %d members: %w", maxMembers, tarlayer.ErrLimit)
		}
		// The reader takes headers by blocks and skips content by seeking, so the file stands at the content.
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if err := b.add(h, at); err != nil {
			return nil, err
		}
	}
}

func (b *tarBundle) add(h *tar.Header, at int64) error {
	name := memberName(h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return fmt.Errorf("archive member %q is sparse: %w", h.Name, drivers.ErrNotSupported)
			}
		}
		b.members[name] = member{offset: at, size: h.Size}
	case tar.TypeGNUSparse:
		return fmt.Errorf("archive member %q is sparse: %w", h.Name, drivers.ErrNotSupported)
	case tar.TypeSymlink, tar.TypeLink:
		target := memberName(h.Linkname)
		if h.Typeflag == tar.TypeSymlink {
			target = memberName(path.Join(path.Dir("/"+name), h.Linkname))
		}
		b.members[name] = member{link: target}
	}
	return nil
}

// memberName is the key of a member: without "./" and leading slashes, and with ".." taken as within the archive.
func memberName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// maxLinks bounds a chain of symlinks in an archive.
const maxLinks = 8

func (b *tarBundle) open(name string) (io.ReadCloser, int64, error) {
	at := memberName(name)
	for range maxLinks {
		m, ok := b.members[at]
		switch {
		case !ok:
			return nil, 0, fmt.Errorf("%s: no such member of the archive: %w", name, drivers.ErrNotFound)
		case m.link == "":
			return io.NopCloser(io.NewSectionReader(b.f, m.offset, m.size)), m.size, nil
		}
		at = m.link
	}
	return nil, 0, fmt.Errorf("%s: too many links in the archive: %w", name, ErrMalformed)
}

func (b *tarBundle) close() error { return b.f.Close() }

// openBundle opens a directory or a tar file in any compression. Without a name the tar file comes from r.
func openBundle(ctx context.Context, name string, r io.Reader, b *blobs) (bundle, error) {
	if r != nil {
		return spool(ctx, r, b)
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, drivers.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	switch {
	case fi.IsDir():
		f.Close()
		return openDirBundle(name)
	case !fi.Mode().IsRegular():
		defer f.Close()
		return spool(ctx, f, b)
	}
	plain, err := isPlain(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	if plain {
		return openTarBundle(ctx, f)
	}
	defer f.Close()
	return spool(ctx, f, b)
}

// isPlain says whether f is not compressed.
func isPlain(f *os.File) (bool, error) {
	r, c, err := tarlayer.Decompress(io.NewSectionReader(f, 0, 1<<62), tarlayer.DecompressOptions{})
	if err != nil {
		return false, fmt.Errorf("%s: %w: %w", f.Name(), err, ErrMalformed)
	}
	return c == tarlayer.Plain, r.Close()
}

// spool copies a stream, decompressed, to a file without a name: an archive may give a layer before it says what it is.
func spool(ctx context.Context, r io.Reader, b *blobs) (bundle, error) {
	dr, _, err := tarlayer.Decompress(contextReader{ctx, r}, tarlayer.DecompressOptions{})
	if err != nil {
		return nil, fmt.Errorf("archive: %w: %w", err, ErrMalformed)
	}
	defer dr.Close()
	f, err := b.scratch()
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(f, dr); err != nil {
		f.Close()
		if ctx.Err() == nil {
			err = fmt.Errorf("archive: %w: %w", err, ErrMalformed)
		}
		return nil, err
	}
	return openTarBundle(ctx, f)
}

// readDocument reads a small file of a bundle.
func readDocument(b bundle, name string) ([]byte, error) {
	r, size, err := b.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("%s: %d bytes, a document has at most %d: %w", name, size, maxDocument, ErrMalformed)
	}
	data, err := readLimited(r, maxDocument)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}
