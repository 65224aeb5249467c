package image

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"

	"plyfs/layerdb"
)

// Classes of errors beside those of packages drivers and layerdb.
var (
	// ErrMalformed says that an archive, a manifest or a config is not what the specification says.
	ErrMalformed = errors.New("malformed image")
	// ErrBrokenOff says that a transfer ended early, and that what was received is kept for the next try.
	ErrBrokenOff = errors.New("transfer broke off")
	// ErrAmbiguous says that a short id, or an archive, stands for more than one image.
	ErrAmbiguous = errors.New("ambiguous")
)

// maxDocument is the largest manifest, index or config in bytes; registries refuse manifests beyond 4 MiB.
const maxDocument = 16 << 20

// verifier passes content on and, at its end, says whether it was what the digest stands for.
type verifier struct {
	r    io.Reader
	d    digest.Digest
	hash hash.Hash
	want int64 // negative if not known
	n    int64
}

// newVerifier returns a reader of r whose last read gives layerdb.ErrDigest in place of io.EOF if r does not have the digest, or
// not the size; a negative size is not compared. An empty digest compares nothing but the size. What is beyond the size
// is not read.
func newVerifier(d digest.Digest, size int64, r io.Reader) *verifier {
	v := &verifier{r: r, d: d, want: size}
	if d != "" {
		v.hash = d.Algorithm().Hash()
	}
	return v
}

// Read implements io.Reader.
func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.n += int64(n)
	if v.hash != nil {
		v.hash.Write(p[:n])
	}
	if v.want >= 0 && v.n > v.want {
		return n, fmt.Errorf("more than the %d bytes of %s: %w", v.want, v.d, layerdb.ErrDigest)
	}
	if errors.Is(err, io.EOF) {
		return n, v.end()
	}
	return n, err
}

// end is io.EOF if what was read is right.
func (v *verifier) end() error {
	if v.want >= 0 && v.n != v.want {
		return fmt.Errorf("%d of the %d bytes of %s: %w", v.n, v.want, v.d, io.ErrUnexpectedEOF)
	}
	if v.hash == nil {
		return io.EOF
	}
	if got := digest.NewDigest(v.d.Algorithm(), v.hash); got != v.d {
		return fmt.Errorf("content of %s has the digest %s: %w", v.d, got, layerdb.ErrDigest)
	}
	return io.EOF
}

// contextReader ends with its context's error.
type contextReader struct {
	ctx context.Context //nolint:containedctx // the context of one call that reads
	r   io.Reader
}

// Read implements io.Reader.
func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// readLimited reads all of r, and fails if that is more than limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("document is larger than %d bytes: %w", limit, ErrMalformed)
	}
	return data, nil
}
