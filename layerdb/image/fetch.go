package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// fetch downloads a blob into the store, unless it is there. What another process, or an earlier attempt, received of it
// is kept under partial, and the download goes on behind it. If it breaks off for good the error wraps ErrBrokenOff.
func (c *client) fetch(ctx context.Context, b *blobs, d ocispec.Descriptor, report Report) error {
	defer b.locks.Lock(d.Digest.String())()
	if _, ok := b.size(d.Digest); ok {
		return nil
	}
	p, err := b.resume(d)
	if err != nil {
		return err
	}
	defer p.f.Close()
	attempt := func() (progressed bool, err error) {
		before := p.n
		err = c.receive(ctx, p, report)
		return p.n > before, err
	}
	resumed := p.n > 0
	err = c.retrying(ctx, attempt)
	if resumed && errors.Is(err, layerdb.ErrDigest) {
		// A partial download is not synced: after a power cut it may hold other bytes than the registry gave.
		if err = p.restart(); err == nil {
			err = c.retrying(ctx, attempt)
		}
	}
	if errors.Is(err, layerdb.ErrDigest) {
		return errors.Join(err, p.discard())
	}
	if err != nil {
		return fmt.Errorf("blob %s: %d of %d bytes received: %w: %w", d.Digest, p.n, d.Size, err, ErrBrokenOff)
	}
	return b.publish(p.f, d.Digest)
}

// partial is a download that is under way.
type partial struct {
	f *os.File
	d ocispec.Descriptor
	// hash has seen the first n bytes, which are those of f.
	hash digest.Verifier
	n    int64
}

// resume opens what there is of a blob already, and hashes it.
func (b *blobs) resume(d ocispec.Descriptor) (p *partial, err error) {
	name := d.Digest.Algorithm().String() + "-" + d.Digest.Encoded()
	f, err := os.OpenFile(filepath.Join(b.dir, partialDir, name), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	p = &partial{f: f, d: d, hash: d.Digest.Verifier()}
	if p.n, err = io.Copy(p.hash, f); err == nil && p.n > d.Size {
		err = p.restart()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

// restart forgets what was received.
func (p *partial) restart() error {
	p.hash, p.n = p.d.Digest.Verifier(), 0
	if err := p.f.Truncate(0); err != nil {
		return err
	}
	_, err := p.f.Seek(0, io.SeekStart)
	return err
}

// discard removes what can't be right.
func (p *partial) discard() error { return removeIfThere(p.f.Name()) }

// Write implements io.Writer.
func (p *partial) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	p.n += int64(n)
	if _, herr := p.hash.Write(b[:n]); err == nil {
		err = herr
	}
	return n, err
}

// receive makes one attempt at the rest of a blob.
func (c *client) receive(ctx context.Context, p *partial, report Report) error {
	if p.n < p.d.Size || p.d.Size == 0 {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		body, err := c.get(ctx, p.d, p.n)
		if err != nil {
			return err
		}
		defer body.Close()
		if body.offset != p.n {
			if err := p.restart(); err != nil {
				return err
			}
		}
		state := Progress{Layer: p.d.Digest.String(), Phase: PhaseDownload, Done: p.n, Total: p.d.Size}
		r := report.counted(&watched{r: body, stall: c.o.Stall, cancel: cancel}, state)
		if _, err := io.Copy(p, io.LimitReader(r, p.d.Size-p.n)); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return err
		}
		if p.n < p.d.Size {
			return fmt.Errorf("the registry ended after %d bytes: %w", p.n, io.ErrUnexpectedEOF)
		}
		// One byte too many is another blob.
		if n, _ := io.ReadFull(r, make([]byte, 1)); n > 0 {
			return fmt.Errorf("more than the %d bytes of %s: %w", p.d.Size, p.d.Digest, layerdb.ErrDigest)
		}
	}
	if !p.hash.Verified() {
		return fmt.Errorf("what the registry gave for %s has another digest: %w", p.d.Digest, layerdb.ErrDigest)
	}
	return nil
}

// blobBody is the content of a blob from an offset on.
type blobBody struct {
	io.ReadCloser
	offset int64
}

// get asks for a blob from an offset on; the registry may give all of it instead.
func (c *client) get(ctx context.Context, d ocispec.Descriptor, offset int64) (*blobBody, error) {
	u := url.URL{
		Scheme: c.repo.Scheme(), Host: c.repo.RegistryStr(),
		Path: "/v2/" + c.repo.RepositoryStr() + "/blobs/" + d.Digest.String(),
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if offset > 0 {
		// With the end, too: some registries understand no open range.
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, d.Size-1))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable); err != nil {
		resp.Body.Close()
		return nil, registryError("blob "+d.Digest.String(), err)
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
		var start int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &start); err != nil || start != offset {
			resp.Body.Close()
			return nil, fmt.Errorf("blob %s: asked for bytes from %d, got %q: %w", d.Digest, offset,
				resp.Header.Get("Content-Range"), layerdb.ErrDigest)
		}
		return &blobBody{resp.Body, offset}, nil
	case http.StatusRequestedRangeNotSatisfiable:
		resp.Body.Close()
		if offset == 0 {
			return nil, fmt.Errorf("blob %s: the registry answers a plain request with %s", d.Digest, resp.Status)
		}
		return c.get(ctx, d, 0)
	}
	return &blobBody{resp.Body, 0}, nil
}

// errStalled is the cause of an attempt's end.
var errStalled = errors.New("nothing received for too long")

// watched ends an attempt in which nothing arrives.
type watched struct {
	r      io.Reader
	stall  time.Duration
	cancel context.CancelCauseFunc
}

// Read implements io.Reader.
func (w *watched) Read(b []byte) (int, error) {
	t := time.AfterFunc(w.stall, func() { w.cancel(errStalled) })
	defer t.Stop()
	return w.r.Read(b)
}

// retrying calls attempt until it succeeds, fails for good, or has failed too often in a row without any progress.
func (c *client) retrying(ctx context.Context, attempt func() (progressed bool, err error)) error {
	delay := c.o.Delay
	for failures := 0; ; {
		progressed, err := attempt()
		if err == nil || !transient(ctx, err) {
			return err
		}
		if progressed {
			failures, delay = 0, c.o.Delay
		}
		if failures++; failures >= c.o.Attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(delay):
		}
		delay *= 2
	}
}

// transient says whether another attempt may end better: not after a refusal, not with the wrong content, and not when
// this machine is the problem.
func transient(ctx context.Context, err error) bool {
	var te *transport.Error
	var pe *os.PathError
	switch {
	case ctx.Err() != nil, errors.Is(err, layerdb.ErrDigest), errors.Is(err, drivers.ErrNotSupported), errors.As(err, &pe):
		return false
	case errors.As(err, &te):
		return te.StatusCode >= http.StatusInternalServerError || te.StatusCode == http.StatusTooManyRequests ||
			te.StatusCode == http.StatusRequestTimeout
	}
	return true
}
