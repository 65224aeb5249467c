package tarlayer

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

const (
	// ioBuffer is how much of a file is read and written at a time.
	ioBuffer = 1 << 20
	// holePage is the run of zeros that becomes a hole.
	holePage = 4 << 10
)

// writeContent writes the object's content into the new file fd, with holes for pages of zeros: a stream does not say
// where the holes were (archive/tar fills those that it does say).
func (a *applier) writeContent(fd int, ob *object) error {
	var sum *xxhash.Digest
	if a.o.Sum {
		sum = xxhash.New()
	}
	end := int64(0) // of what was written
	for off := int64(0); off < ob.size; {
		buf := a.buffer()
		buf = buf[:min(ob.size-off, int64(len(buf)))]
		n, err := io.ReadFull(ob.content, buf)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("ends after %d of %d bytes: %w", off+int64(n), ob.size, err)
		}
		if sum != nil {
			_, _ = sum.Write(buf) // never fails
		}
		written, err := a.writeSpans(fd, buf, off)
		if err != nil {
			return err
		}
		end = max(end, written)
		off += int64(n)
	}
	if sum != nil {
		ob.sum = sum.Sum64()
	}
	if end < ob.size {
		return a.m.Truncate(fd, ob.size)
	}
	return nil
}

// buffer is for whoever reads content.
func (a *applier) buffer() []byte {
	if a.buf == nil {
		a.buf = make([]byte, ioBuffer)
	}
	return a.buf
}

// writeSpans writes the parts of p that are no pages of zeros to where they belong, off being that of p. It returns the
// offset behind the last byte written.
func (a *applier) writeSpans(fd int, p []byte, off int64) (end int64, err error) {
	for start := 0; start < len(p); {
		if n := zeroPages(p[start:]); n > 0 {
			start += n
			continue
		}
		stop := start
		for stop < len(p) && zeroPages(p[stop:]) == 0 {
			stop = min(stop+holePage, len(p))
		}
		for at := start; at < stop; {
			n, err := a.m.Pwrite(fd, p[at:stop], off+int64(at))
			if err != nil {
				return end, fmt.Errorf("write: %w", err)
			}
			if n == 0 {
				return end, fmt.Errorf("write: %w", unix.EIO)
			}
			at += n
		}
		end, start = off+int64(stop), stop
	}
	return end, nil
}

// zeroPages is the number of bytes at the beginning of p that are whole pages of zeros. Buffers hold whole pages, but
// for the last one of a file: the part of a page there counts, too.
func zeroPages(p []byte) int {
	n := 0
	for n < len(p) {
		end := min(n+holePage, len(p))
		if !allZero(p[n:end]) {
			break
		}
		n = end
	}
	return n
}

// allZero says whether p is nothing but zeros. Most of what is not says so in its first bytes.
func allZero(p []byte) bool {
	if len(p) == 0 || p[0] != 0 {
		return len(p) == 0
	}
	return bytes.Equal(p[:len(p)-1], p[1:])
}
