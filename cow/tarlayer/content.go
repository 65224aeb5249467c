package tarlayer

import (
	"bytes"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

const (
	// ioBuffer is how much of a file is read and written at a time.
	ioBuffer = 1 << 20
	// readBuffer is that for readers that come in pairs, or feed one that has a buffer of its own.
	readBuffer = 256 << 10
	// holePage is the run of zeros that becomes a hole.
	holePage = 4 << 10
)

// content is what a file is to hold, piece by piece.
type content interface {
	// piece returns the next piece, at least one byte of what is left. All but the last consist of whole pages
	// (holePage). The memory is valid until the next call.
	piece() ([]byte, error)
}

// fileContent is content that a reader gives.
type fileContent struct {
	r    io.Reader
	left int64
	buf  []byte
}

func (f *fileContent) piece() ([]byte, error) {
	if f.buf == nil {
		f.buf = make([]byte, min(f.left, ioBuffer))
	}
	p := f.buf[:min(f.left, int64(len(f.buf)))]
	f.left -= int64(len(p))
	_, err := io.ReadFull(f.r, p)
	return p, unexpected(err)
}

// writeContent writes the object's content into the new file fd, with holes for pages of zeros: a stream does not say
// where the holes were (archive/tar fills those that it does say).
func (a *applier) writeContent(fd int, ob *object) error {
	var sum *xxhash.Digest
	if a.o.Sum {
		sum = xxhash.New()
	}
	end := int64(0) // of what was written
	for off := int64(0); off < ob.size; {
		buf, err := ob.content.piece()
		if err == nil && len(buf) == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("ends after %d of %d bytes: %w", off, ob.size, err)
		}
		if sum != nil {
			_, _ = sum.Write(buf) // never fails
		}
		written, err := a.writeSpans(fd, buf, off)
		if err != nil {
			return err
		}
		end = max(end, written)
		off += int64(len(buf))
	}
	if sum != nil {
		ob.sum = sum.Sum64()
	}
	if end < ob.size {
		return a.m.Truncate(fd, ob.size)
	}
	return nil
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

// zeroPages is the number of bytes at the beginning of p that are whole pages of zeros. Pieces hold whole pages, but
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
