package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// testRegistry is a registry on loopback that wants a password, and whose blobs a test may spoil.
type testRegistry struct {
	host string

	mu sync.Mutex
	// spoil, if not nil, answers a request for a blob in place of the registry, unless it returns false. Guarded by mu.
	spoil func(w http.ResponseWriter, r *http.Request, next http.Handler) bool
	// asked are the requests for blobs of layers: path and range. Guarded by mu.
	asked []string
}

const (
	testUser     = "user"
	testPassword = "secret"
)

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	tr := &testRegistry{}
	next := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != testUser || p != testPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"DENIED"}]}`, http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			tr.mu.Lock()
			tr.asked = append(tr.asked, r.URL.Path+" "+r.Header.Get("Range"))
			spoil := tr.spoil
			tr.mu.Unlock()
			if spoil != nil && spoil(w, r, next) {
				return
			}
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	tr.host = strings.TrimPrefix(srv.URL, "http://")
	return tr
}

func (tr *testRegistry) set(spoil func(w http.ResponseWriter, r *http.Request, next http.Handler) bool) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.spoil, tr.asked = spoil, nil
}

// requests are those for a blob since the last set.
func (tr *testRegistry) requests(d digest.Digest) (all []string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, a := range tr.asked {
		if strings.Contains(a, d.String()+" ") {
			all = append(all, a[strings.IndexByte(a, ' ')+1:])
		}
	}
	return all
}

func (tr *testRegistry) name(t testing.TB, repo string) Name {
	t.Helper()
	n, err := ParseName(tr.host + "/" + repo)
	must(t, err)
	return n
}

// keys has the credentials.
func keys() authn.Keychain {
	return fixedKeychain{&authn.Basic{Username: testUser, Password: testPassword}}
}

type fixedKeychain struct{ a authn.Authenticator }

func (k fixedKeychain) Resolve(authn.Resource) (authn.Authenticator, error) { return k.a, nil }

func access() RegistryOptions {
	return RegistryOptions{Keychain: keys(), Attempts: 2, Delay: time.Millisecond}
}

// pushed pushes the image of twoLayers, with the blobs that it came with, and returns its layout.
func pushImage(t testing.TB, tr *testRegistry, n Name) (files, Image) {
	t.Helper()
	f, _ := twoLayers(t)
	s := newStore(t)
	i := importOne(t, s, f.dir(t), ImportOptions{Blobs: KeepBlobs})
	r, err := s.Push(t.Context(), i, n, PushOptions{Registry: access()})
	if err != nil || r.Rewritten || r.Manifest != i.Manifest.Digest {
		t.Fatalf("%+v, %v", r, err)
	}
	if i, err = s.Find(t.Context(), n.Repository()+"@"+r.Manifest.String()); err != nil {
		t.Errorf("what was pushed is not found by its digest: %v", err)
	}
	return f, i
}

// What is pushed with its blobs is what is pulled, by tag and by digest, byte for byte; a second pull downloads no layer.
func TestPushPull(t *testing.T) {
	tr := newRegistry(t)
	n := tr.name(t, "some/app:1")
	f, pushed := pushImage(t, tr, n)
	s := newStore(t)
	i, err := s.Pull(t.Context(), n, PullOptions{Registry: access()})
	must(t, err)
	if i.ID != pushed.ID || i.Manifest.Digest != pushed.Manifest.Digest || len(i.Names) != 1 || i.Names[0] != n.String() {
		t.Errorf("%+v", i)
	}
	m, err := s.Manifest(t.Context(), i)
	if err != nil || !bytes.Equal(m, f[blobName(i.Manifest.Digest)]) {
		t.Errorf("manifest: %v", err)
	}
	tr.set(nil)
	byDigest := n
	byDigest.Tag, byDigest.Digest = "", i.Manifest.Digest
	if again, err := s.Pull(t.Context(), byDigest, PullOptions{Registry: access()}); err != nil || again.ID != i.ID || len(again.Names) != 1 {
		t.Errorf("%+v, %v", again, err)
	}
	for _, l := range i.Layers {
		if asked := tr.requests(l.Blob.Digest); len(asked) > 0 {
			t.Errorf("layer %s is downloaded again: %v", l.Blob.Digest, asked)
		}
	}
	if _, err := s.Remove(t.Context(), i.ID.String(), Careful); err != nil {
		t.Error(err)
	}
	mustBeEmpty(t, s)
}

// Without the blobs a push compresses anew and says so; what arrives has the same id.
func TestPushRewrites(t *testing.T) {
	tr := newRegistry(t)
	_, pushed := pushImage(t, tr, tr.name(t, "app:1"))
	s := newStore(t)
	i, err := s.Pull(t.Context(), tr.name(t, "app:1"), PullOptions{Registry: access()})
	must(t, err)
	for _, p := range []Packing{PackAsCame, PackZstd, PackPlain} {
		to := tr.name(t, "other:"+"p"+string(p))
		r, err := s.Push(t.Context(), i, to, PushOptions{Registry: access(), Packing: p})
		if err != nil || !r.Rewritten {
			t.Fatalf("%s: %+v, %v", p, r, err)
		}
		other := newStore(t)
		got, err := other.Pull(t.Context(), to, PullOptions{Registry: access()})
		if err != nil || got.ID != pushed.ID || got.Manifest.Digest != r.Manifest {
			t.Errorf("%s: %+v, %v", p, got, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	tr := newRegistry(t)
	n := tr.name(t, "app:1")
	pushImage(t, tr, n)
	s := newStore(t)
	for _, k := range []authn.Keychain{
		fixedKeychain{authn.Anonymous}, fixedKeychain{&authn.Basic{Username: testUser, Password: "wrong"}},
	} {
		o := access()
		o.Keychain = k
		_, err := s.Pull(t.Context(), n, PullOptions{Registry: o})
		mustBe(t, err, ErrUnauthorized)
	}
	_, err := s.Pull(t.Context(), tr.name(t, "app:2"), PullOptions{Registry: access()})
	mustBe(t, err, drivers.ErrNotFound)
	mustBeEmpty(t, s)
}

// cut answers as the registry would, but ends the connection after n bytes of content.
func cut(n int) func(http.ResponseWriter, *http.Request, http.Handler) bool {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		if rec.Body.Len() <= n {
			return false
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()[:n])
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler)
	}
}

// largest is the blob of the largest layer.
func largest(i Image) ocispec.Descriptor {
	var d ocispec.Descriptor
	for _, l := range i.Layers {
		if l.Blob.Size > d.Size {
			d = *l.Blob
		}
	}
	return d
}

// A download that breaks off again and again goes on where it ended, as long as something arrives.
func TestDownloadResumesWithinPull(t *testing.T) {
	tr := newRegistry(t)
	_, pushed := pushImage(t, tr, tr.name(t, "app:1"))
	d := largest(pushed)
	step := int(d.Size/3) + 1
	tr.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		return strings.HasSuffix(r.URL.Path, d.Digest.String()) && cut(step)(w, r, next)
	})
	s := newStore(t)
	i, err := s.Pull(t.Context(), tr.name(t, "app:1"), PullOptions{Registry: access()})
	must(t, err)
	want := []string{"", fmt.Sprintf("bytes=%d-%d", step, d.Size-1), fmt.Sprintf("bytes=%d-%d", 2*step, d.Size-1)}
	if got := tr.requests(d.Digest); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("asked for %q, want %q", got, want)
	}
	if i.ID != pushed.ID {
		t.Errorf("%+v", i)
	}
}

// A pull that gives up leaves no image; the next one, of another process, goes on where it ended.
func TestDownloadResumesInNextPull(t *testing.T) {
	tr := newRegistry(t)
	n := tr.name(t, "app:1")
	_, pushed := pushImage(t, tr, n)
	d := largest(pushed)
	part := int(d.Size / 2)
	first := true
	tr.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if !strings.HasSuffix(r.URL.Path, d.Digest.String()) {
			return false
		}
		if first {
			first = false
			return cut(part)(w, r, next)
		}
		panic(http.ErrAbortHandler)
	})
	root := filepath.Join(t.TempDir(), "store")
	s := openStore(t, root)
	_, err := s.Pull(t.Context(), n, PullOptions{Registry: access()})
	mustBe(t, err, ErrBrokenOff)
	if images, err := s.List(t.Context()); err != nil || len(images) > 0 {
		t.Errorf("%v, %v", images, err)
	}
	must(t, s.layers.Close())
	s = openStore(t, root)
	tr.set(nil)
	i, err := s.Pull(t.Context(), n, PullOptions{Registry: access()})
	must(t, err)
	if want := fmt.Sprintf("[bytes=%d-%d]", part, d.Size-1); fmt.Sprint(tr.requests(d.Digest)) != want {
		t.Errorf("asked for %q, want %s", tr.requests(d.Digest), want)
	}
	if _, err := s.Remove(t.Context(), i.ID.Encoded()[:8], Careful); err != nil {
		t.Error(err)
	}
	mustBeEmpty(t, s)
	if left, err := os.ReadDir(filepath.Join(s.blobs.dir, partialDir)); err != nil || len(left) > 0 {
		t.Errorf("partial downloads left: %v, %v", left, err)
	}
}

// What an earlier pull received was never synced: after a power cut other bytes may be there. Then the download begins anew.
func TestDownloadBeginsAnewBehindLostBytes(t *testing.T) {
	tr := newRegistry(t)
	n := tr.name(t, "app:1")
	_, pushed := pushImage(t, tr, n)
	d := largest(pushed)
	for name, size := range map[string]int64{"part": d.Size / 2, "all": d.Size} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			partial := filepath.Join(s.blobs.dir, partialDir, d.Digest.Algorithm().String()+"-"+d.Digest.Encoded())
			must(t, os.WriteFile(partial, make([]byte, size), 0o600))
			if _, err := s.Pull(t.Context(), n, PullOptions{Registry: access()}); err != nil {
				t.Error(err)
			}
		})
	}
}

// mustBeCollectable fails the test if collecting leaves anything of what a pull left for the next one.
func mustBeCollectable(t testing.TB, s *Store) {
	t.Helper()
	if _, err := s.layers.GC(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := s.GC(t.Context()); err != nil {
		t.Error(err)
	}
	mustBeEmpty(t, s)
	if left, err := os.ReadDir(filepath.Join(s.blobs.dir, partialDir)); err != nil || len(left) > 0 {
		t.Errorf("partial downloads left: %v, %v", left, err)
	}
}

// Registries that ignore ranges, or give other content than was asked for, are told apart from those that break off.
func TestBadDownloads(t *testing.T) {
	tr := newRegistry(t)
	n := tr.name(t, "app:1")
	_, pushed := pushImage(t, tr, n)
	d := largest(pushed)
	forBlob := func(fn func(w http.ResponseWriter, r *http.Request, data []byte)) func(http.ResponseWriter, *http.Request, http.Handler) bool {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			if !strings.HasSuffix(r.URL.Path, d.Digest.String()) {
				return false
			}
			whole := r.Clone(r.Context())
			whole.Header.Del("Range")
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, whole)
			fn(w, r, rec.Body.Bytes())
			return true
		}
	}
	half := false
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request, data []byte)
		want   error
	}{
		"other content": {func(w http.ResponseWriter, _ *http.Request, data []byte) {
			_, _ = w.Write(bytes.Repeat([]byte{1}, len(data)))
		}, layerdb.ErrDigest},
		"more content": {func(w http.ResponseWriter, _ *http.Request, data []byte) {
			_, _ = w.Write(append(data, 1))
		}, layerdb.ErrDigest},
		"less content": {func(w http.ResponseWriter, _ *http.Request, data []byte) {
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write(data[:len(data)/2])
		}, ErrBrokenOff},
		"another range": {func(w http.ResponseWriter, r *http.Request, data []byte) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data[:len(data)/2])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(data)
		}, layerdb.ErrDigest},
		"not there": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			http.Error(w, "{}", http.StatusNotFound)
		}, drivers.ErrNotFound},
		"failure of the registry": {func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			http.Error(w, "{}", http.StatusInternalServerError)
		}, ErrBrokenOff},
		"no ranges, broken off once": {func(w http.ResponseWriter, _ *http.Request, data []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			if !half {
				half = true
				_, _ = w.Write(data[:len(data)/2])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(data)
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tr.set(forBlob(c.answer))
			s := newStore(t)
			_, err := s.Pull(t.Context(), n, PullOptions{Registry: access()})
			if c.want == nil {
				must(t, err)
				return
			}
			mustBe(t, err, c.want)
			if images, lerr := s.List(t.Context()); lerr != nil || len(images) > 0 {
				t.Errorf("%v, %v", images, lerr)
			}
			mustBeCollectable(t, s)
		})
	}
}

// A registry is not spoken to in plain text unless it is this machine's, or the user asked for it.
func TestPlainHTTPIsRefused(t *testing.T) {
	g := &guard{base: &http.Transport{}}
	for url, refused := range map[string]bool{
		"http://registry.example/v2/": true, "http://10.0.0.1/v2/": true, "http://192.168.1.1:5000/v2/": true, "http://127.0.0.1:1/v2/": false,
		"http://localhost:1/v2/": false, "http://[::1]:1/v2/": false,
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		must(t, err)
		resp, err := g.RoundTrip(r)
		if err == nil {
			resp.Body.Close()
		}
		if errors.Is(err, drivers.ErrNotSupported) != refused {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// A registry on the net may not lead this process to an address that only this process can reach.
func TestRedirectsStayOutside(t *testing.T) {
	for _, c := range []struct {
		from, to string
		refused  bool
	}{
		{"https://registry.example/b", "https://cdn.example/b", false},
		{"https://registry.example/b", "https://169.254.169.254/latest", true},
		{"https://registry.example/b", "https://127.0.0.1/b", true},
		{"https://registry.example/b", "https://10.1.2.3/b", true},
		// The kernel connects to this machine by these two, too.
		{"https://registry.example/b", "https://localhost:8443/b", true},
		{"https://registry.example/b", "https://0.0.0.0:8443/b", true},
		{"https://registry.example/b", "https://[::]:8443/b", true},
		{"https://registry.example/b", "https://[::ffff:10.1.2.3]/b", true},
		{"http://127.0.0.1:5000/b", "http://127.0.0.1:5001/b", false},
		{"https://10.1.2.3/b", "https://10.1.2.3/c", false},
	} {
		from, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.from, nil)
		must(t, err)
		to, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.to, nil)
		must(t, err)
		if err := checkRedirect(to, []*http.Request{from}); (err != nil) != c.refused {
			t.Errorf("%s to %s: %v", c.from, c.to, err)
		}
	}
}

// Two pulls of one image at once download each layer once, and both get it.
func TestPullsAtOnce(t *testing.T) {
	tr := newRegistry(t)
	n := tr.name(t, "app:1")
	_, pushed := pushImage(t, tr, n)
	tr.set(nil)
	s := newStore(t)
	errs := make(chan error)
	const pulls = 8
	for range pulls {
		go func() {
			i, err := s.Pull(t.Context(), n, PullOptions{Registry: access(), Blobs: KeepBlobs})
			if err == nil && i.ID != pushed.ID {
				err = fmt.Errorf("got image %s", i.ID)
			}
			errs <- err
		}()
	}
	for range pulls {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, l := range pushed.Layers {
		if asked := tr.requests(l.Blob.Digest); len(asked) != 1 {
			t.Errorf("%d downloads of one layer", len(asked))
		}
		if got, err := s.blobs.read(l.Blob.Digest); err != nil || digest.NewDigestFromBytes(digest.SHA256, sum(got)) != l.Blob.Digest {
			t.Errorf("blob %s: %v", l.Blob.Digest, err)
		}
	}
}

func sum(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}
