package fuzz

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/internal/fingerprint"
)

// sampleLayers are streams with members of all kinds, well-meant and not.
func sampleLayers(f *testing.F) [][]byte {
	f.Helper()
	header := func(typ byte, name, link string) tar.Header {
		return tar.Header{Typeflag: typ, Name: name, Linkname: link, Mode: 0o755}
	}
	var all [][]byte
	for _, headers := range [][]tar.Header{
		{
			header(tar.TypeDir, "./", ""), header(tar.TypeDir, "d/", ""), header(tar.TypeReg, "d/f", ""),
			header(tar.TypeLink, "h", "d/f"),
		},
		{header(tar.TypeSymlink, "out", "/outside"), header(tar.TypeReg, "out/f", ""), header(tar.TypeSymlink, "up",
			".."), header(tar.TypeReg, "up/outside/f", "")},
		{header(tar.TypeReg, "d/.wh.f", ""), header(tar.TypeReg, "d/.wh..wh..opq", ""), header(tar.TypeReg, ".wh.d",
			""), header(tar.TypeReg, ".wh...", "")},
		{header(tar.TypeReg, "../outside/f", ""), header(tar.TypeDir, "/", ""), header(tar.TypeSymlink, ".",
			"/outside")},
		{
			header(tar.TypeFifo, "p", ""), header(tar.TypeReg, "p", ""), header(tar.TypeDir, "p/", ""),
			header(tar.TypeReg, "p/x", ""), header(tar.TypeSymlink, "p", "p"),
		},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			h.Size = 0
			if h.Typeflag == tar.TypeReg && !strings.Contains(h.Name, ".wh.") {
				h.Size = 5
			}
			h.Format = tar.FormatPAX
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "v", "SCHILY.xattr.trusted.overlay.opaque": "y"}
			if err := w.WriteHeader(&h); err != nil {
				f.Fatal(err)
			}
			if _, err := io.WriteString(w, "hello"[:h.Size]); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		all = append(all, b.Bytes())
	}
	return all
}

// fuzzLimits keep an input of some bytes from making gigabytes of holes, or more than the scratch directory takes.
func fuzzLimits() tarlayer.Limits {
	return tarlayer.Limits{Bytes: 4 << 20, Entries: 200, Depth: 50, Name: 4096}
}

func applyFuzzed(t *testing.T, dir string, data []byte, form tarlayer.WhiteoutForm) error {
	t.Helper()
	l, err := layer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = tarlayer.Apply(t.Context(), l, bytes.NewReader(data), tarlayer.ApplyOptions{
		Whiteouts: form, Names: ovl.User(), Owner: tarlayer.OwnerIgnore, Devices: tarlayer.DeviceSkip, Limits: fuzzLimits(), Sum: true,
	})
	return err
}

func takeFuzzed(t *testing.T, dir string, fields fingerprint.Field) *fingerprint.Tree {
	t.Helper()
	tree, err := fingerprint.Take(dir, fingerprint.Options{Fields: fields})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// FuzzApply holds that no stream, whatever it is, changes anything beside the tree that it is unpacked into, and that
// one that is refused is so by an error of the documented classes or of the file system.
func FuzzApply(f *testing.F) {
	for i, s := range sampleLayers(f) {
		f.Add(s, uint8(i))
		f.Add(s[:len(s)/2], uint8(i))
	}
	f.Add([]byte{}, uint8(0))
	const fields = fingerprint.Default | fingerprint.Ctime | fingerprint.Inode | fingerprint.DirNlink
	f.Fuzz(func(t *testing.T, data []byte, form uint8) {
		dir := t.TempDir()
		root, outside := filepath.Join(dir, "root"), filepath.Join(dir, "outside")
		for _, p := range []string{root, outside, filepath.Join(root, "d"), filepath.Join(outside, "d")} {
			if err := os.Mkdir(p, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.WriteFile(filepath.Join(outside, "f"), []byte("f"), 0o600), os.Symlink("../outside",
			filepath.Join(root, "out")),
			os.Symlink(outside, filepath.Join(root, "abs"))); err != nil {
			t.Fatal(err)
		}
		before := takeFuzzed(t, outside, fields)
		_ = applyFuzzed(t, root, data, tarlayer.WhiteoutForm(form%4))
		if diff := fingerprint.Diff(before, takeFuzzed(t, outside, fields), fields); diff != nil {
			t.Fatalf("outside the root:\n%s", fingerprint.Format(diff, 10))
		}
	})
}

// FuzzTarRoundTrip holds that a tree that any stream made is written as a stream that makes the same tree, and that in
// the same bytes.
func FuzzTarRoundTrip(f *testing.F) {
	for _, s := range sampleLayers(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		first, second := t.TempDir(), t.TempDir()
		if err := applyFuzzed(t, first, data, tarlayer.WhiteoutRemove); err != nil {
			return
		}
		written := writeFuzzed(t, first)
		if err := applyFuzzed(t, second, written, tarlayer.WhiteoutRemove); err != nil {
			t.Fatalf("the stream of an unpacked tree: %v", err)
		}
		if again := writeFuzzed(t, second); !bytes.Equal(written, again) {
			t.Fatalf("written %d bytes, then %d others", len(written), len(again))
		}
		fields := fingerprint.Default &^ fingerprint.Mtime // cut to seconds
		if diff := fingerprint.Diff(takeFuzzed(t, first, fields), takeFuzzed(t, second, fields), fields); diff != nil {
			t.Fatalf("trees differ:\n%s", fingerprint.Format(diff, 10))
		}
	})
}

func writeFuzzed(t *testing.T, dir string) []byte {
	t.Helper()
	l, err := layer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	src := tarlayer.NewDirSource(l, tarlayer.DirOptions{})
	defer src.Close()
	var b bytes.Buffer
	if err := tarlayer.WriteAll(t.Context(), &b, src, tarlayer.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// FuzzDecompress holds that no stream makes a decoder fail in another way than by an error, or give more than it may,
// and that what has no known beginning is given as it is.
func FuzzDecompress(f *testing.F) {
	for c := tarlayer.Plain; c <= tarlayer.Xz; c++ {
		var b bytes.Buffer
		w, err := tarlayer.Compress(&b, c, 0)
		if err != nil {
			continue
		}
		_, err = io.WriteString(w, strings.Repeat("hello", 100))
		if err = errors.Join(err, w.Close()); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte("BZh91AY&SY"))
	const limit = 1 << 20
	f.Fuzz(func(t *testing.T, data []byte) {
		r, c, err := tarlayer.Decompress(bytes.NewReader(data), tarlayer.DecompressOptions{Bytes: limit})
		if err != nil {
			return
		}
		defer r.Close()
		out, err := io.ReadAll(r)
		if len(out) > limit {
			t.Fatalf("%v: %d bytes, more than the limit", c, len(out))
		}
		if c == tarlayer.Plain && (err != nil || !bytes.Equal(out, data)) {
			t.Fatalf("plain stream of %d bytes: %d bytes, %v", len(data), len(out), err)
		}
	})
}
