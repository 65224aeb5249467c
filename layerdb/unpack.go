package layerdb

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
)

// streamLevel is how hard the split stream is compressed: it is made while others wait, and is headers only.
const streamLevel = 1

// unpacking is a layer on its way from a stream into the driver.
type unpacking struct {
	store *Store
	w     work
	in    *input
	opt   RegisterOptions
	below func(context.Context) error // drivers.ApplyOptions.Below

	hash hash.Hash // of the uncompressed stream
	size int64     // of it, in bytes
	out  *fanOut
	// stop ends all goroutines, with a reason.
	stop context.CancelCauseFunc
}

// unpack reads the stream once, and at the same time hashes it, splits it, and has the driver unpack it into w's layer, which is empty.
// Then it makes the file of the stream durable; the driver's layer is not synced. The layer that it returns lacks Parent and ID. below
// is drivers.ApplyOptions.Below.
func (s *Store) unpack(
	ctx context.Context, w work, in *input, o RegisterOptions, below func(context.Context) error,
) (l Layer, err error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	u := &unpacking{store: s, w: w, in: in, opt: o, below: below, hash: sha256.New(), out: newFanOut(2), stop: stop}
	f, err := os.CreateTemp(s.path(tempDir), "split-*")
	if err != nil {
		return Layer{}, err
	}
	defer func() {
		f.Close()
		os.Remove(f.Name()) // it has another name, or is removed when the store is opened
	}()
	sum := newSummed(f)
	inexact, res, err := u.run(ctx, sum)
	if err != nil {
		return Layer{}, err
	}
	l = Layer{
		DiffID: digest.NewDigest(digest.SHA256, u.hash), Size: u.size, Content: res.Bytes, Entries: res.Entries, Sum: res.Sum,
		Created: time.Now().UTC(), Stream: StreamSplit, CacheID: w.ID,
	}
	if o.ExpectDiffID != "" && l.DiffID != o.ExpectDiffID {
		return Layer{}, fmt.Errorf("the layer's stream has DiffID %s, not %s: %w", l.DiffID, o.ExpectDiffID, ErrDigest)
	}
	if inexact == "" && res.Replaced {
		inexact = "a member replaces another, to which a symlink leads"
	}
	if inexact != "" {
		s.log.Info("a layer's stream is kept whole", "layer", l.DiffID, "reason", inexact)
		l.Stream = StreamWhole
		if sum, err = u.keepWhole(f); err != nil {
			return Layer{}, err
		}
	}
	l.StreamSum = sum.digest()
	if err := publishFile(f, s.streamPath(l)); err != nil {
		return Layer{}, fmt.Errorf("keep the stream of layer %s: %w", l.DiffID, err)
	}
	return l, nil
}

// run feeds the stream to the splitter and to the driver. It returns why the split form and the tree do not suffice to make the stream
// again ("" if they do), and what the driver unpacked.
func (u *unpacking) run(ctx context.Context, split io.Writer) (inexact string, res tarlayer.ApplyResult, err error) {
	plain, _, err := tarlayer.Decompress(u.in, tarlayer.DecompressOptions{Bytes: u.opt.Limits.Bytes})
	if err != nil {
		return "", res, err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	feeding, splitting := make(chan error, 1), make(chan error, 1)
	go func() {
		feeding <- u.out.run(&contextReader{ctx, plain}, u.see)
	}()
	go func() {
		var err error
		inexact, err = u.split(split)
		if err != nil {
			u.stop(err)
		}
		splitting <- err
	}()
	res, err = u.apply(ctx)
	if err != nil {
		// The splitter alone must not go on: nothing bounds what it takes, and the stream may not end.
		u.stop(err)
	}
	fed, was := <-feeding, <-splitting
	switch {
	case was != nil && !errors.Is(was, errAbandoned) && (fed == nil || !errors.Is(was, fed)):
		// The reason for which the others were stopped.
		return "", res, fmt.Errorf("split the stream: %w", was)
	case err != nil:
		return "", res, err
	case fed != nil:
		return "", res, fmt.Errorf("read the stream: %w", fed)
	}
	return inexact, res, nil
}

// see hashes and counts each chunk of the stream, and stops all when the disk gets full.
func (u *unpacking) see(b []byte) {
	u.hash.Write(b)
	before := u.size / spaceInterval
	if u.size += int64(len(b)); u.size/spaceInterval > before {
		if err := u.store.needSpace(unpackSpace); err != nil {
			u.stop(err)
		}
	}
}

// apply gives the stream to the driver, and reads the rest that the driver did not need, so that the hash covers all of it.
func (u *unpacking) apply(ctx context.Context) (tarlayer.ApplyResult, error) {
	r := u.out.readers[1]
	defer r.Close()
	res, err := u.store.differ.ApplyDiff(ctx, u.w.ID, r, &drivers.ApplyOptions{
		Limits: u.opt.Limits, Progress: u.opt.Progress, AcceptUnterminated: u.opt.ExpectDiffID != "",
		Below: u.below,
	})
	if err != nil {
		return res, err
	}
	_, err = io.Copy(io.Discard, r)
	return res, err
}

// split writes the split form of the stream.
func (u *unpacking) split(w io.Writer) (inexact string, err error) {
	r := u.out.readers[0]
	defer r.Close()
	z, err := tarlayer.Compress(w, tarlayer.Zstd, streamLevel)
	if err != nil {
		return "", err
	}
	s := newSplitter(z)
	if err := s.run(r); err != nil {
		return "", errors.Join(err, z.Close())
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	if s.inexact == "" && r.total != s.bytes {
		s.inexact = "tar-split does not account for all of it"
	}
	return s.inexact, nil
}

// keepWhole replaces what is in f by the stream as it came.
func (u *unpacking) keepWhole(f *os.File) (*summed, error) {
	r, err := u.in.again()
	if err != nil {
		return nil, fmt.Errorf("keep the whole stream: %w", err)
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	sum := newSummed(f)
	if _, err := io.Copy(sum, r); err != nil {
		return nil, fmt.Errorf("keep the whole stream: %w", err)
	}
	return sum, nil
}

// summed is a file with the digest of what is written to it.
type summed struct {
	f   *os.File
	sum hash.Hash
}

func newSummed(f *os.File) *summed { return &summed{f, sha256.New()} }

func (s *summed) Write(p []byte) (int, error) {
	n, err := s.f.Write(p)
	s.sum.Write(p[:n])
	return n, err
}

func (s *summed) digest() digest.Digest { return digest.NewDigest(digest.SHA256, s.sum) }

// contextReader fails with the cause of ctx's end.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
