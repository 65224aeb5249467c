package tarlayer_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"plyfs/cow/tarlayer"
	"plyfs/internal/testenv"
)

// bzip2Hello is what bzip2(1) makes of "hello\n": this program only reads the format.
const bzip2Hello = "425a6839314159265359c1c080e2000001410000100244a00030cd00c3462997177245385090c1c080e2"

func decompress(b []byte, o tarlayer.DecompressOptions) (string, tarlayer.Compression, error) {
	r, c, err := tarlayer.Decompress(bytes.NewReader(b), o)
	if err != nil {
		return "", c, err
	}
	out, err := io.ReadAll(r)
	return string(out), c, errors.Join(err, r.Close())
}

func allFormats(t testing.TB) map[tarlayer.Compression][]byte {
	t.Helper()
	all := make(map[tarlayer.Compression][]byte)
	for c := tarlayer.Plain; c <= tarlayer.Xz; c++ {
		if c != tarlayer.Bzip2 {
			all[c] = compressed(t, c, []byte("hello\n"))
		}
	}
	b, err := hex.DecodeString(bzip2Hello)
	must(t, err)
	all[tarlayer.Bzip2] = b
	return all
}

func TestDecompress(t *testing.T) {
	for c, b := range allFormats(t) {
		out, got, err := decompress(b, tarlayer.DecompressOptions{})
		must(t, err)
		want(t, "format", got, c)
		want(t, "content of "+c.String(), out, "hello\n")
		out, _, err = decompress(append(bytes.Clone(b), b...), tarlayer.DecompressOptions{})
		must(t, err)
		want(t, "two members of "+c.String(), out, strings.Repeat("hello\n", 2))
		want(t, "bytes do not depend on the time", c == tarlayer.Bzip2 || bytes.Equal(compressed(t, c,
			[]byte("hello\n")), b), true)
		_, _, err = decompress(b, tarlayer.DecompressOptions{Bytes: 5})
		wantError(t, "limit of "+c.String(), err, tarlayer.ErrLimit, "DecompressOptions.Bytes")
		_, _, err = decompress(b, tarlayer.DecompressOptions{Bytes: 6})
		must(t, err)
		if c == tarlayer.Plain {
			continue
		}
		for cut := 6; cut < len(b); cut++ {
			if _, _, err := decompress(b[:cut], tarlayer.DecompressOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v cut at %d of %d: %v", c, cut, len(b), err)
			}
		}
		_, _, err = decompress(append(bytes.Clone(b), "trailing garbage"...), tarlayer.DecompressOptions{})
		if err == nil || !strings.Contains(err.Error(), c.String()) {
			t.Errorf("garbage behind %v: %v", c, err)
		}
	}
}

func TestDecompressOddities(t *testing.T) {
	out, c, err := decompress(nil, tarlayer.DecompressOptions{})
	must(t, err)
	want(t, "nothing", out, "")
	want(t, "format", c, tarlayer.Plain)
	skippable := append([]byte("\x5a\x2a\x4d\x18\x04\x00\x00\x00skip"), compressed(t, tarlayer.Zstd, []byte("x"))...)
	out, c, err = decompress(skippable, tarlayer.DecompressOptions{})
	must(t, err)
	want(t, "behind a skippable frame", out, "x")
	want(t, "format", c, tarlayer.Zstd)
	broken := errors.New("broken")
	_, _, err = tarlayer.Decompress(failing{broken}, tarlayer.DecompressOptions{})
	wantError(t, "reader's error", err, broken)
	_, err = tarlayer.Compress(io.Discard, tarlayer.Bzip2, 0)
	wantError(t, "bzip2", err, errors.ErrUnsupported)
	_, err = tarlayer.Compress(io.Discard, tarlayer.Gzip, 99)
	wantError(t, "level", err, tarlayer.ErrInvalid)
}

// A small stream that grows without end is stopped by the limit, and nothing of it is kept in memory.
func TestDecompressBomb(t *testing.T) {
	bomb := compressed(t, tarlayer.Gzip, make([]byte, 64<<20))
	_, _, err := decompress(bomb, tarlayer.DecompressOptions{Bytes: 1 << 20})
	wantError(t, "bomb", err, tarlayer.ErrLimit)
}

func TestApplyOfCompressedStreams(t *testing.T) {
	s := stream(t, file("f", "content"))
	for c := tarlayer.Plain; c <= tarlayer.Xz; c++ {
		if c == tarlayer.Bzip2 {
			continue
		}
		r, _, err := tarlayer.Decompress(bytes.NewReader(compressed(t, c, s)), tarlayer.DecompressOptions{})
		must(t, err)
		dir := testenv.Scratch(t)
		_, err = tarlayer.Apply(t.Context(), open(t, dir), r, tarlayer.ApplyOptions{})
		must(t, err, r.Close())
		wantPaths(t, dir, "f")
	}
}
