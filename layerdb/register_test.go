package layerdb

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/internal/testenv"
)

func compressed(t testing.TB, c tarlayer.Compression, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := tarlayer.Compress(&out, c, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sparse is a member in the PAX form of a sparse file: one byte at the end of a megabyte.
func sparseStream(t testing.TB) []byte {
	t.Helper()
	const size = 1 << 20
	body := make([]byte, 512+1)
	copy(body, fmt.Sprintf("1\n%d\n1\n", size-1))
	body[512] = 'x'
	var b bytes.Buffer
	record := func(k, v string) string {
		for n := len(k) + len(v) + 3; ; n++ {
			if s := fmt.Sprintf("%d %s=%s\n", n, k, v); len(s) == n {
				return s
			}
		}
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "holey") +
		record("GNU.sparse.realsize", fmt.Sprint(size))
	raw := func(name string, kind byte, content []byte) {
		var h [512]byte
		copy(h[:], name)
		copy(h[100:], "0000644\x000000000\x000000000\x00")
		copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00", len(content), 1700000000))
		h[156] = kind
		copy(h[257:], "ustar\x0000")
		sum := 8 * int(' ')
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		b.Write(h[:])
		b.Write(content)
		b.Write(make([]byte, (512-len(content)%512)%512))
	}
	raw("PaxHeaders/holey", 'x', []byte(pax))
	raw("GNUSparseFile/holey", '0', body)
	b.Write(make([]byte, 1024))
	return b.Bytes()
}

// Whatever comes in goes out as the same bytes, and verifies.
func TestExact(t *testing.T) {
	plain := stream(t, file{name: "a", content: "one"}, file{name: "dir/", kind: '5'}, file{name: "dir/b", content: strings.Repeat("x", 70000)},
		file{name: "link", kind: '2', content: "dir"}, file{name: "hard", kind: '1', content: "a"}, file{name: "empty"},
		file{name: "new\nline \xff", content: "y"})
	cases := map[string]struct {
		tar  []byte
		want Stream
	}{
		"plain":                 {plain, StreamSplit},
		"long padding":          {append(bytes.Clone(plain), make([]byte, 3<<20)...), StreamSplit},
		"nothing":               {make([]byte, 1024), StreamSplit},
		"twice":                 {stream(t, file{name: "a", content: "one"}, file{name: "./a", content: "two"}), StreamWhole},
		"file, then symlink":    {stream(t, file{name: "a", content: "one"}, file{name: "a", kind: '2', content: "b"}), StreamWhole},
		"directory twice":       {stream(t, file{name: "d/", kind: '5'}, file{name: "d/f", content: "x"}, file{name: "d/", kind: '5'}), StreamSplit},
		"directory, then file":  {stream(t, file{name: "d/", kind: '5'}, file{name: "d/f", content: "x"}, file{name: "d", content: "y"}), StreamWhole},
		"through a symlink":     {stream(t, file{name: "d/", kind: '5'}, file{name: "l", kind: '2', content: "d"}, file{name: "l/f", content: "x"}), StreamWhole},
		"whiteout with content": {stream(t, file{name: ".wh.gone", content: "x"}), StreamWhole},
		"hidden by itself":      {stream(t, file{name: "f", content: "x"}, file{name: ".wh.f"}), StreamWhole},
		"opaque":                {stream(t, file{name: "d/", kind: '5'}, file{name: "d/.wh..wh..opq"}, file{name: "d/.wh.x"}, file{name: "d/f", content: "x"}), StreamSplit},
		"books with content":    {stream(t, file{name: ".wh..wh.plnk/", kind: '5'}, file{name: ".wh..wh.plnk/1.2", content: "x"}), StreamWhole},
		"sparse":                {sparseStream(t), StreamWhole},
		"dot-dot":               {stream(t, file{name: "none/../f", content: "x"}), StreamSplit},
	}
	s := newStore(t)
	for name, c := range cases {
		for _, form := range []tarlayer.Compression{tarlayer.Plain, tarlayer.Gzip, tarlayer.Zstd, tarlayer.Xz} {
			if name != "plain" && form > tarlayer.Gzip {
				continue // the form has no influence on what is exact
			}
			b := compressed(t, form, c.tar)
			for how, r := range map[string]io.Reader{"seek": bytes.NewReader(b), "pipe": io.MultiReader(bytes.NewReader(b))} {
				t.Run(fmt.Sprintf("%s/%s/%s", name, form, how), func(t *testing.T) {
					ctx := context.Background()
					l, err := s.Register(ctx, r, "", RegisterOptions{Hold: &Holder{Kind: "test", Key: "it"}})
					if err != nil {
						t.Fatal(err)
					}
					if l.DiffID != diffID(c.tar) || l.Size != int64(len(c.tar)) || l.Stream != c.want {
						t.Errorf("%+v; want DiffID %s, size %d, stream %s", l, diffID(c.tar), len(c.tar), c.want)
					}
					if !bytes.Equal(export(t, s, l.ID), c.tar) {
						t.Error("it goes out changed")
					}
					if err := s.Verify(ctx, l.ID); err != nil {
						t.Error(err)
					}
					if err := s.Release(ctx, Ref{"test", "it"}); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
	mustBeEmpty(t, s)
}

// Two names of a stream are one in the tree where a symlink of the layers below leads from one to the other.
func TestExactThroughLowerSymlink(t *testing.T) {
	s := newStore(t)
	below := register(t, s, "", stream(t, file{name: "d/", kind: '5'}, file{name: "l", kind: '2', content: "d"}),
		RegisterOptions{Hold: &Holder{Kind: "test", Key: "below"}})
	b := stream(t, file{name: "l/f", content: "one"}, file{name: "d/f", content: "two"})
	l := register(t, s, below.ID, b, RegisterOptions{Hold: &Holder{Kind: "test", Key: "it"}})
	if !bytes.Equal(export(t, s, l.ID), b) {
		t.Error("it goes out changed")
	}
}

// A layer is verified where its members went, also if the symlink on the way there is gone at the end.
func TestVerifyThroughRemovedSymlink(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct{ below, members []file }{
		"whiteout": {
			[]file{{name: "b", kind: '2', content: "./c/a/c"}},
			[]file{{name: "b/d/b", kind: '2', content: "../c"}, {name: ".wh.b"}, {name: "d", kind: '6'}, {name: "c/d/c", content: "x"}},
		},
		"whiteout, of content": {
			[]file{{name: "d/", kind: '5'}, {name: "l", kind: '2', content: "d"}},
			[]file{{name: "l/f", content: "x"}, {name: ".wh.l"}},
		},
		"replaced by a file": {
			[]file{{name: "d/", kind: '5'}, {name: "l", kind: '2', content: "d"}},
			[]file{{name: "l/f", content: "x"}, {name: "l", content: "y"}},
		},
		"replaced by a symlink": {
			[]file{{name: "d/", kind: '5'}, {name: "d/f", content: "x"}},
			[]file{{name: "l/f", content: "y"}, {name: "l", kind: '2', content: "d"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			below := register(t, s, "", stream(t, c.below...), RegisterOptions{Hold: &Holder{Kind: "test", Key: "below"}})
			b := stream(t, c.members...)
			l := register(t, s, below.ID, b, RegisterOptions{Hold: &Holder{Kind: "test", Key: "it"}})
			if !bytes.Equal(export(t, s, l.ID), b) {
				t.Error("it goes out changed")
			}
			if err := s.Verify(ctx, l.ID); err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(s.TempDir()); err != nil || len(left) > 0 {
				t.Errorf("left in the store: %v, %v", left, err)
			}
			root, err := s.drv.Get(ctx, l.CacheID, &drivers.GetOptions{Any: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"d", "c/d/c", "c/a/c/d/b", "d/f", "l"} {
				// Whatever of it the layer has.
				if err := os.Lchown(filepath.Join(root, f), 7, 7); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
					t.Fatal(err)
				}
			}
			if err := s.drv.Put(ctx, l.CacheID); err != nil {
				t.Fatal(err)
			}
			if err := s.Verify(ctx, l.ID); !errors.Is(err, drivers.ErrDamaged) {
				t.Errorf("damage is not found: %v", err)
			}
		})
	}
}

// A stream whose digest is known may end behind its last member, and within the padding of that.
func TestExactWithoutEnd(t *testing.T) {
	s := newStore(t)
	whole := stream(t, file{name: "f", content: "x"})
	for size, want := range map[int]Stream{513: StreamWhole, 700: StreamWhole, 1024: StreamSplit} {
		b := whole[:size]
		l := register(t, s, "", b, RegisterOptions{ExpectDiffID: diffID(b)})
		if l.Stream != want {
			t.Errorf("%d bytes are kept as %s, want %s", size, l.Stream, want)
		}
		if !bytes.Equal(export(t, s, l.ID), b) {
			t.Errorf("%d bytes go out changed", size)
		}
	}
	emptyStore(t, s)
}

// What cannot be registered gives an error of its class, and leaves nothing.
func TestRegisterRefuses(t *testing.T) {
	good := stream(t, file{name: "a", content: strings.Repeat("content", 1000)})
	gz := compressed(t, tarlayer.Gzip, good)
	other := digest.FromString("other")
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	cases := map[string]struct {
		ctx    context.Context
		b      []byte
		parent ChainID
		o      RegisterOptions
		want   error
	}{
		"cut plain":           {b: good[:600], want: io.ErrUnexpectedEOF},
		"cut gzip":            {b: gz[:len(gz)-9], want: io.ErrUnexpectedEOF},
		"no tar":              {b: bytes.Repeat([]byte("no tar stream at all "), 100), want: tar.ErrHeader},
		"other digest":        {b: good, o: RegisterOptions{ExpectDiffID: other}, want: ErrDigest},
		"bad digest":          {b: good, o: RegisterOptions{ExpectDiffID: "sha256:12"}, want: drivers.ErrInvalid},
		"no parent":           {b: good, parent: ChainID(other), want: drivers.ErrNotFound},
		"bad parent":          {b: good, parent: "x", want: drivers.ErrInvalid},
		"limit":               {b: good, o: RegisterOptions{Limits: tarlayer.Limits{Bytes: 100}}, want: tarlayer.ErrLimit},
		"cancelled":           {ctx: canceled, b: good, want: context.Canceled},
		"holder of no kind":   {b: good, o: RegisterOptions{Hold: &Holder{Key: "x"}}, want: drivers.ErrInvalid},
		"holder of a layer":   {b: good, o: RegisterOptions{Hold: &Holder{Kind: "layer", Key: "x"}}, want: drivers.ErrInvalid},
		"holder of nothing":   {b: good, o: RegisterOptions{Hold: &Holder{Kind: "test", Key: "x", Layers: []ChainID{ChainID(other)}}}, want: drivers.ErrNotFound},
		"leads out":           {b: stream(t, file{name: "../../x", content: "y"}), want: tarlayer.ErrInvalid},
		"garbage behind gzip": {b: append(bytes.Clone(gz), "garbage"...), want: io.ErrUnexpectedEOF},
	}
	s := newStore(t)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if c.ctx == nil {
				c.ctx = context.Background()
			}
			for _, r := range []io.Reader{bytes.NewReader(c.b), io.MultiReader(bytes.NewReader(c.b))} {
				_, err := s.Register(c.ctx, r, c.parent, c.o)
				if err == nil || c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("%v, want %v", err, c.want)
				}
			}
			mustBeEmpty(t, s)
		})
	}
}

// A layer that the store has is not read again if its digest is known, and not made twice if not.
func TestRegisterTwice(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	b := stream(t, file{name: "a", content: "x"})
	first := register(t, s, "", b, RegisterOptions{Hold: &Holder{Kind: "test", Key: "one"}})
	again, err := s.Register(ctx, failingReader{}, "", RegisterOptions{ExpectDiffID: first.DiffID, Hold: &Holder{Kind: "test", Key: "two"}})
	if err != nil || again != first {
		t.Errorf("%+v, %v; want %+v", again, err, first)
	}
	if got := register(t, s, "", b, RegisterOptions{}); got != first {
		t.Errorf("%+v, want %+v", got, first)
	}
	if users, err := s.Users(ctx, first.ID); err != nil || fmt.Sprint(users) != "[test one test two]" {
		t.Errorf("users %v, %v", users, err)
	}
	if err := s.Release(ctx, Ref{"test", "one"}, Ref{"test", "two"}); err != nil {
		t.Fatal(err)
	}
	mustBeEmpty(t, s)
}

// Many register the same layer at once, with and without its digest: all get the same one.
func TestRegisterAtOnce(t *testing.T) {
	s := newStore(t)
	b := stream(t, file{name: "a", content: strings.Repeat("x", 100000)})
	var wg sync.WaitGroup
	got := make([]Layer, 16)
	for i := range got {
		wg.Go(func() {
			o := RegisterOptions{Hold: &Holder{Kind: "test", Key: "same"}}
			if i%2 == 0 {
				o.ExpectDiffID = diffID(b)
			}
			l, err := s.Register(context.Background(), bytes.NewReader(b), "", o)
			if err != nil {
				t.Error(err)
			}
			got[i] = l
		})
	}
	wg.Wait()
	for _, l := range got {
		if l != got[0] {
			t.Errorf("%+v and %+v", l, got[0])
		}
	}
	emptyStore(t, s)
}

// meetingDriver lets the first two layers be unpacked only together.
type meetingDriver struct {
	*stackDriver
	mu   sync.Mutex
	now  int           // guarded by mu
	both chan struct{} // closed when two are being unpacked
}

func (d *meetingDriver) ApplyDiff(ctx context.Context, id string, r io.Reader, o *drivers.ApplyOptions) (tarlayer.ApplyResult, error) {
	d.mu.Lock()
	if d.now++; d.now == 2 {
		close(d.both)
	}
	d.mu.Unlock()
	select {
	case <-d.both:
	case <-ctx.Done():
		return tarlayer.ApplyResult{}, ctx.Err()
	}
	return d.stackDriver.ApplyDiff(ctx, id, r, o)
}

func openParallel(t *testing.T) *Store {
	t.Helper()
	o := optionsAt(filepath.Join(testenv.Scratch(t), "store"))
	o.Registry = drivers.NewRegistry(stackFactory("stack", func(d *stackDriver) drivers.Driver {
		return &meetingDriver{stackDriver: d, both: make(chan struct{})}
	}))
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func sourcesOf(tars [][]byte) []Source {
	var list []Source
	for _, b := range tars {
		list = append(list, Source{DiffID: diffID(b), Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(b)), nil
		}})
	}
	return list
}

func imageTars(t testing.TB, n int) (tars [][]byte) {
	for i := range n {
		tars = append(tars, stream(t, file{name: "d/", kind: '5'}, file{name: fmt.Sprintf("d/f%d", i), content: fmt.Sprint(i)},
			file{name: "d/same", content: strings.Repeat("y", i)}))
	}
	return tars
}

// The layers of an image are unpacked at once where the driver can, and one after the other elsewhere; what is there is not
// read.
func TestRegisterAll(t *testing.T) {
	ctx := context.Background()
	tars := imageTars(t, 8)
	for name, s := range map[string]*Store{"parallel": openParallel(t), "sequence": newStore(t)} {
		t.Run(name, func(t *testing.T) {
			hold := &Holder{Kind: "image", Key: "it", Data: []byte("config")}
			layers, err := s.RegisterAll(ctx, sourcesOf(tars), RegisterAllOptions{Hold: hold})
			if err != nil {
				t.Fatal(err)
			}
			for i, l := range layers {
				if !bytes.Equal(export(t, s, l.ID), tars[i]) {
					t.Errorf("layer %d goes out changed", i)
				}
			}
			broken := sourcesOf(tars)
			for i := range broken {
				broken[i].Open = func(context.Context) (io.ReadCloser, error) { return nil, errInjected }
			}
			again, err := s.RegisterAll(ctx, broken, RegisterAllOptions{Hold: &Holder{Kind: "image", Key: "other"}})
			if err != nil || len(again) != len(layers) || again[7] != layers[7] {
				t.Errorf("%v, %v", again, err)
			}
			if h, err := s.Holder(ctx, Ref{"image", "it"}); err != nil || string(h.Data) != "config" || len(h.Layers) != 1 {
				t.Errorf("%+v, %v", h, err)
			}
			if _, err := s.RegisterAll(ctx, nil, RegisterAllOptions{}); !errors.Is(err, drivers.ErrInvalid) {
				t.Error("no layers:", err)
			}
			emptyStore(t, s)
		})
	}
}

// When one layer fails, those below it stay for another attempt, and nothing of the others is left.
func TestRegisterAllFails(t *testing.T) {
	ctx := context.Background()
	tars := imageTars(t, 6)
	for name, c := range map[string]struct {
		r    func() (io.ReadCloser, error)
		want error
	}{
		"does not open": {func() (io.ReadCloser, error) { return nil, errInjected }, errInjected},
		"breaks off":    {func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tars[3][:700])), nil }, io.ErrUnexpectedEOF},
		"is another":    {func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tars[4])), nil }, ErrDigest},
	} {
		t.Run(name, func(t *testing.T) {
			s := openParallel(t)
			sources := sourcesOf(tars)
			sources[3].Open = func(context.Context) (io.ReadCloser, error) { return c.r() }
			_, err := s.RegisterAll(ctx, sources, RegisterAllOptions{Hold: &Holder{Kind: "image", Key: "it"}})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), string(diffID(tars[3]))) {
				t.Errorf("%v, want %v of layer 3", err, c.want)
			}
			layers, err := s.Layers(ctx)
			if err != nil || len(layers) > 3 {
				t.Errorf("%d layers are left, %v", len(layers), err)
			}
			if rep, err := s.Check(ctx, CheckOptions{}); err != nil || len(rep.Problems) > 0 {
				t.Errorf("%+v, %v", rep, err)
			}
			sources = sourcesOf(tars)
			if _, err := s.RegisterAll(ctx, sources, RegisterAllOptions{}); err != nil {
				t.Error(err)
			}
			emptyStore(t, s)
		})
	}
}

// A stream that ends while its reader waits, and one whose reader fails, are told apart from a whole one.
func TestReaderFails(t *testing.T) {
	s := newStore(t)
	b := stream(t, file{name: "a", content: strings.Repeat("x", 1<<20)})
	_, err := s.Register(context.Background(), io.MultiReader(bytes.NewReader(b[:1<<19]), failingReader{}), "", RegisterOptions{})
	if !errors.Is(err, errInjected) {
		t.Error(err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		pw.Write(b)
		pw.Close()
	}()
	l, err := s.Register(context.Background(), pr, "", RegisterOptions{})
	pr.Close()
	if err != nil || l.DiffID != diffID(b) {
		t.Errorf("%+v, %v", l, err)
	}
	emptyStore(t, s)
}

// Some archivers give directories and links a size that nothing in the stream has: the bytes that follow are not content.
func TestExactSizeOfWhatHasNoContent(t *testing.T) {
	b := stream(t, file{name: "f", content: "file"}, file{name: "d/", kind: tar.TypeDir}, file{name: "d/h", content: "f", kind: tar.TypeLink})
	const block = 512
	for _, header := range [][]byte{b[2*block : 3*block], b[3*block : 4*block]} { // those of d/ and d/h
		copy(header[124:], "00000001000\x00")
		copy(header[148:], "        ")
		sum := 0
		for _, c := range header {
			sum += int(c)
		}
		copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
	}
	s := newStore(t)
	l := register(t, s, "", b, RegisterOptions{})
	if l.Stream != StreamSplit {
		t.Errorf("the stream is kept as %v", l.Stream)
	}
	if !bytes.Equal(export(t, s, l.ID), b) {
		t.Error("the stream is another one")
	}
}

// Once the driver has refused a stream, nobody reads the rest of it: that may be endless, and the names in it are remembered.
func TestRegisterStopsReadingWhatIsRefused(t *testing.T) {
	s := newStore(t)
	many := &manyMembers{left: 1 << 18}
	_, err := s.Register(context.Background(), many, "", RegisterOptions{Limits: tarlayer.Limits{Entries: 10}})
	if !errors.Is(err, tarlayer.ErrLimit) {
		t.Errorf("error %v, want that of the limit", err)
	}
	if many.left == 0 {
		t.Error("all members were read for the first ten")
	}
	emptyStore(t, s)
}

// manyMembers is a stream of empty files, each of another name.
type manyMembers struct {
	left int
	buf  bytes.Buffer
}

func (m *manyMembers) Read(p []byte) (int, error) {
	if m.buf.Len() == 0 && m.left > 0 {
		w := tar.NewWriter(&m.buf)
		for range 1 << 10 {
			m.left--
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("f%d", m.left), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
				return 0, err
			}
		}
	}
	return m.buf.Read(p)
}
