package tarlayer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxZstdWindow is the largest window that zstd uses without being told to (--ultra -22, --long=27).
const maxZstdWindow = 128 << 20

// Decompress detects by its first bytes how r is compressed and returns the decompressed stream, which is r itself for
// anything that is no known format. Formats that consist of several members (gzip, zstd, bzip2 and xz files one after
// the other) are read to the end; anything else behind the first member is an error. No program is started.
//
// Errors of the reader name the format; they wrap io.ErrUnexpectedEOF for a stream that breaks off and ErrLimit for one
// that is too large. Close releases what the decoder holds and leaves r open.
func Decompress(r io.Reader, o DecompressOptions) (io.ReadCloser, Compression, error) {
	br := bufio.NewReaderSize(r, readBuffer)
	head, err := br.Peek(len(magics[Xz]))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, Plain, fmt.Errorf("decompress: %w", err)
	}
	c := detect(head)
	d := &decompressor{format: c, limit: o.Bytes, close: func() {}, check: func() error { return nil }}
	switch {
	case d.limit == 0:
		d.limit = defaultBytes
	case d.limit < 0:
		d.limit = 1<<63 - 1
	}
	switch c {
	case Gzip:
		d.r, err = gzip.NewReader(br)
	case Zstd:
		var dec *zstd.Decoder
		dec, err = zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(1))
		if err == nil {
			d.r, d.close = dec, dec.Close
		}
	case Bzip2:
		d.r, err = bzip2.NewReader(br), nil
	case Xz:
		end := &xzEnd{r: br}
		d.r, err = xz.NewReader(end)
		d.check = end.check
	default:
		d.r, err = br, nil
	}
	if err != nil {
		return nil, c, d.wrap(err)
	}
	return d, c, nil
}

// magics are the first bytes of each format.
var magics = [...]string{Plain: "", Gzip: "\x1f\x8b\x08", Zstd: "\x28\xb5\x2f\xfd", Bzip2: "BZh", Xz: "\xfd7zXZ\x00"}

func detect(head []byte) Compression {
	for c := Gzip; c <= Xz; c++ {
		if bytes.HasPrefix(head, []byte(magics[c])) {
			return c
		}
	}
	// A skippable frame of zstd: its first byte is any of sixteen.
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte("\x2a\x4d\x18")) {
		return Zstd
	}
	return Plain
}

type decompressor struct {
	format Compression
	r      io.Reader
	limit  int64
	total  int64
	close  func()
	// check says whether the compressed stream may end where it does.
	check func() error
}

// Read implements io.Reader.
func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if d.total += int64(n); d.total > d.limit {
		return 0, fmt.Errorf("decompressed stream: more than %d bytes (DecompressOptions.Bytes): %w", d.limit, ErrLimit)
	}
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		if cerr := d.check(); cerr != nil {
			return n, d.wrap(cerr)
		}
		return n, io.EOF
	}
	return n, d.wrap(err)
}

func (d *decompressor) wrap(err error) error {
	if d.format == Plain {
		return err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%s: %w", d.format, err)
}

// Close implements io.Closer.
func (d *decompressor) Close() error {
	d.close()
	return nil
}

// Compress returns a writer that compresses to w. level is that of the format, zero for its default; the bytes depend
// on nothing else. The caller closes the writer, which flushes it and leaves w open. bzip2 can't be written
// (errors.ErrUnsupported).
func Compress(w io.Writer, c Compression, level int) (io.WriteCloser, error) {
	switch c {
	case Plain:
		return nopCloser{w}, nil
	case Gzip:
		if level == 0 {
			level = gzip.DefaultCompression
		}
		z, err := gzip.NewWriterLevel(w, level)
		if err != nil {
			return nil, fmt.Errorf("gzip level %d: %w: %w", level, ErrInvalid, err)
		}
		return z, nil
	case Zstd:
		speed := zstd.SpeedDefault
		if level != 0 {
			speed = zstd.EncoderLevelFromZstd(level)
		}
		return zstd.NewWriter(w, zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(1))
	case Xz:
		return xz.NewWriter(w)
	}
	return nil, fmt.Errorf("write %v: %w", c, errors.ErrUnsupported)
}

// xzEnd sees whether an xz stream ends with a stream footer: the decoder takes an end between two of its parts for that
// of the stream.
type xzEnd struct {
	r    io.Reader
	last [2]byte // of what was read, but for padding
}

// Read implements io.Reader.
func (x *xzEnd) Read(p []byte) (int, error) {
	n, err := x.r.Read(p)
	switch b := bytes.TrimRight(p[:n], "\x00"); len(b) {
	case 0:
	case 1:
		x.last = [2]byte{x.last[1], b[0]}
	default:
		x.last = [2]byte(b[len(b)-2:])
	}
	return n, err
}

func (x *xzEnd) check() error {
	if string(x.last[:]) != "YZ" {
		return io.ErrUnexpectedEOF
	}
	return nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
