package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"plyfs/internal/testenv"
	"plyfs/layerdb/image"
)

// storeRun is a store and how the program is run on it.
type storeRun struct {
	t    *testing.T
	root string
	home string
	host string // of the registry

	// stall, while it holds a function, is called with each request for a blob before the registry is. A test sets it.
	stall atomic.Pointer[func(w http.ResponseWriter, q *http.Request) bool]
}

// newStoreRun starts a registry on loopback that wants a password, which is in the home directory of the runs.
func newStoreRun(t *testing.T) *storeRun {
	t.Helper()
	r := &storeRun{t: t, root: filepath.Join(testenv.Scratch(t), "store"), home: testenv.Scratch(t)}
	leavesNothing(t, r.root)
	next := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if u, p, _ := q.BasicAuth(); u != "user" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"DENIED"}]}`, http.StatusUnauthorized)
			return
		}
		if stall := r.stall.Load(); stall != nil && q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/") && (*stall)(w, q) {
			return
		}
		next.ServeHTTP(w, q)
	}))
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	r.login("user:secret")
	return r
}

// login stores a password as docker login does.
func (r *storeRun) login(credentials string) {
	r.t.Helper()
	mkdirs(r.t, r.home, ".docker")
	auth := base64.StdEncoding.EncodeToString([]byte(credentials))
	write(r.t, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.host, auth), r.home, ".docker/config.json")
}

// plyfs runs the program on the store.
func (r *storeRun) plyfs(args ...string) result {
	r.t.Helper()
	return finish(r.t, r.command(args...))
}

func (r *storeRun) command(args ...string) *exec.Cmd {
	r.t.Helper()
	cmd := command(r.t, r.home, "plyfs", args...)
	cmd.Env = append(os.Environ(), "HOME="+r.home, "PLYFS_ROOT="+r.root, "PLYFS_DRIVER=vfs", "XDG_RUNTIME_DIR=", "XDG_CONFIG_HOME=")
	return cmd
}

// ok runs the program, which must succeed, and returns what it printed.
func (r *storeRun) ok(args ...string) string {
	r.t.Helper()
	res := r.plyfs(args...)
	if res.code != 0 {
		r.t.Fatalf("plyfs %s: exit code %d\n%s%s", strings.Join(args, " "), res.code, res.stdout, res.stderr)
	}
	return strings.TrimSuffix(res.stdout, "\n")
}

// push makes an image in the registry.
func (r *storeRun) push(repo string, layers int64) v1.Image {
	r.t.Helper()
	img, err := random.Image(2048, layers)
	if err != nil {
		r.t.Fatal(err)
	}
	r.pushImage(repo, img)
	return img
}

func (r *storeRun) pushImage(repo string, img v1.Image) {
	r.t.Helper()
	ref, err := name.ParseReference(r.host + "/" + repo)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "user", Password: "secret"})); err != nil {
		r.t.Fatal(err)
	}
}

// unmarshal reads the output of --json, in which there must be nothing that v does not know.
func unmarshal(t *testing.T, text string, v any) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// TestStoreLife goes the way of an image through the store: pulled, run in, committed, exported, pushed, removed.
func TestStoreLife(t *testing.T) {
	r := newStoreRun(t)
	img := r.push("app:1", 2)
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	app := r.host + "/app:1"
	// The random image has no platform.
	if got := r.ok("image", "pull", "-q", app); got != id.String() {
		t.Fatalf("pulled %s, want %s", got, id)
	}
	if got := r.ok("image", "ls"); !strings.Contains(got, app) || !strings.Contains(got, id.Hex[:12]) {
		t.Errorf("ls:\n%s", got)
	}
	if got := r.ok("container", "create", app, "c1"); got != "c1" {
		t.Errorf("create: %s", got)
	}
	root := r.ok("container", "mount", "c1")
	write(t, "content", root, "new")
	if got := r.ok("container", "changes", "c1"); got != "A /new" {
		t.Errorf("changes: %s", got)
	}
	if got := r.ok("container", "ls"); !strings.Contains(got, "mounted (1)") || !strings.Contains(got, app) {
		t.Errorf("ls:\n%s", got)
	}
	committed := r.ok("container", "commit", "c1", "mine:2", "--message", "why", "--change", `CMD ["/new"]`)
	r.ok("container", "umount", "c1")
	if got := r.ok("image", "history", "mine:2"); !strings.Contains(got, "why") {
		t.Errorf("history:\n%s", got)
	}
	archive := filepath.Join(r.home, "mine.tar")
	if out := r.ok("image", "export", "mine:2", "-o", archive, "--format", "docker-archive"); !strings.HasPrefix(out, "sha256:") {
		t.Errorf("exported as %q", out)
	}
	other := newStoreRun(t)
	if got := other.ok("image", "import", archive); got != committed {
		t.Errorf("imported %s, want %s", got, committed)
	}
	if got := other.ok("layer", "changes", "mine:2"); got != "A /new" {
		t.Errorf("changes of the layer: %s", got)
	}
	r.ok("image", "push", "-q", "mine:2", r.host+"/mine:2")
	other.host = r.host
	other.login("user:secret")
	other.ok("image", "rm", "mine:2")
	if got := other.ok("image", "pull", r.host+"/mine:2"); got != committed {
		t.Errorf("pulled %s, want %s", got, committed)
	}
	r.ok("layer", "verify")
	if got := r.ok("layer", "check", "--content"); !strings.HasSuffix(got, "0 problems") {
		t.Errorf("check: %s", got)
	}
	r.ok("container", "rm", "c1")
	r.ok("image", "rm", "mine:2")
	r.ok("image", "rm", app)
	for _, what := range []string{"image", "layer", "container"} {
		if got := r.ok(what, "ls"); got != "" {
			t.Errorf("%s left:\n%s", what, got)
		}
	}
	if got := r.ok("layer", "gc", "--json"); got != `{"layers":0,"holders":0,"leftovers":0,"blobs":0,"bytes":0}` {
		t.Errorf("gc: %s", got)
	}
}

// TestStoreStreams: tar files go to files and pipes, and are what they should be.
func TestStoreStreams(t *testing.T) {
	r := newStoreRun(t)
	r.push("app:1", 1)
	app := r.host + "/app:1"
	r.ok("image", "pull", "--keep-blobs", app)
	var layers []layerLine
	unmarshal(t, r.ok("layer", "ls", "--json"), &layers)
	exported := r.ok("layer", "export", layers[0].ID)
	r.ok("layer", "export", "-o", filepath.Join(r.home, "layer.tar"), layers[0].DiffID[7:19])
	if got, err := os.ReadFile(filepath.Join(r.home, "layer.tar")); err != nil || string(got) != exported {
		t.Errorf("file and pipe differ: %v", err)
	}
	if diff := r.ok("layer", "diff", app); len(diff) == 0 || len(diff)%512 != 0 {
		t.Errorf("diff of %d bytes", len(diff))
	}
	r.ok("container", "create", "scratch", "c1")
	root := r.ok("container", "mount", "c1")
	write(t, "x", root, "file")
	first, second := r.ok("container", "diff", "c1"), r.ok("container", "diff", "c1")
	if first != second || !strings.HasPrefix(first, "file\x00") {
		t.Errorf("diffs of %d and %d bytes", len(first), len(second))
	}
	archive := r.ok("image", "export", "-o", "-", app)
	cmd := r.command("image", "import", "-", "--name", "again")
	cmd.Stdin = strings.NewReader(archive)
	if res := finish(t, cmd); res.code != 0 {
		t.Errorf("%s", res.stderr)
	}
	dir := filepath.Join(r.home, "layout")
	if got := r.ok("image", "export", "-o", dir, "--format", "oci", "--json", "again"); !strings.Contains(got, `"rewritten":false`) {
		t.Errorf("%s", got)
	}
	r.ok("image", "import", dir)
	r.ok("container", "rm", "--force", "c1")
	names, err := filepath.Glob(filepath.Join(r.home, ".plyfs-export-*"))
	if err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// TestStoreInterrupted: what a signal ended says so, and not in the words of the program's insides.
func TestStoreInterrupted(t *testing.T) {
	err := storeFault(fmt.Errorf("open store: %w", context.Canceled))
	var f *fault
	if !errors.As(err, &f) || f.Code != storeInterrupted || !strings.HasPrefix(f.Text, "interrupted: open store") {
		t.Errorf("%+v", err)
	}
}

// TestStoreExitCodes: what went wrong is in the exit code, and the way out in the message.
func TestStoreExitCodes(t *testing.T) {
	r := newStoreRun(t)
	r.push("app:1", 1)
	app := r.host + "/app:1"
	r.ok("image", "pull", app)
	r.ok("container", "create", app, "c1")
	r.ok("container", "create", app, "c2")
	r.ok("container", "mount", "c2")
	defer r.ok("container", "umount", "c2")
	write(t, "no archive", r.home, "text")
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"image inspect gone", storeNotFound, "plyfs image ls"},
		{"layer inspect gone", storeNotFound, "plyfs layer ls"},
		{"container mount gone", storeNotFound, "container gone: not found; plyfs container ls"},
		{"image import /gone", storeNotFound, "/gone"},
		{"image pull " + r.host + "/gone:1", storeNotFound, "gone"},
		{"image rm " + app, storeInUse, "container c"},
		{"container rm c2", storeInUse, "c2"},
		{"container create " + app + " c1", storeExists, "container c1: the name: already exists; choose another"},
		{"image export -o / " + app, storeExists, "directory"},
		{"image pull --platform bad/ x", storeUsage, "platform"},
		{"image pull Bad", storeUsage, "capital"},
		{"image pull", storeUsage, "usage: plyfs image pull"},
		{"image ls extra", storeUsage, "usage: plyfs image ls"},
		{"image ls --bogus", storeUsage, "bogus"},
		{"image export " + app, storeUsage, "-o FILE"},
		{"image export -o x --format zip " + app, storeUsage, "docker-archive"},
		{"image bogus", storeUsage, "plyfs image --help"},
		{"image", exitOK, ""},
		{"container create --quota x " + app, storeUsage, "--quota"},
		{"container create --label x " + app, storeUsage, "NAME=VALUE"},
		{"container commit c1 x --change BOGUS=1", storeUsage, "BOGUS"},
		{"layer migrate", storeUsage, "--to"},
		{"image import text", storeDamaged, "text"},
		{"image ls --driver overlay2", storeOther, "vfs"},
		{"image ls --driver aufs", storeUnsupported, "use plyfs or overlay2"},
		{"driver probe bogus", storeNotFound, "bogus"},
		{"driver probe aufs", storeUnsupported, ""},
	} {
		res := r.plyfs(strings.Fields(c.args)...)
		if res.code != c.code || !strings.Contains(res.stderr, c.says) {
			t.Errorf("%s: exit code %d, want %d; %q, want something about %q", c.args, res.code, c.code, res.stderr, c.says)
		}
		if n := strings.Count(res.stderr, "\n"); n > 1 {
			t.Errorf("%s: %d lines: %s", c.args, n, res.stderr)
		}
	}
	r.login("user:wrong")
	if res := r.plyfs("image", "pull", app); res.code != storeUnauthorized || !strings.Contains(res.stderr, "docker login") {
		t.Errorf("exit code %d, %q", res.code, res.stderr)
	}
}

// TestStoreKilledPull: a command that has the store open keeps others out, and what it received before it is killed serves the
// next one.
func TestStoreKilledPull(t *testing.T) {
	r := newStoreRun(t)
	img := r.push("app:1", 1)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	received, done := make(chan struct{}), make(chan struct{})
	defer close(done)
	half := func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.HasSuffix(q.URL.Path, d.String()) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:len(data)/2])
		w.(http.Flusher).Flush()
		close(received)
		<-done
		return true
	}
	r.stall.Store(&half)
	app := r.host + "/app:1"
	cmd := r.command("image", "pull", app)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-received
	part := filepath.Join(r.root, "blobs/partial", "sha256-"+d.Hex)
	testenv.Eventually(t, "a half is received", func() bool {
		fi, err := os.Stat(part)
		return err == nil && fi.Size() == int64(len(data)/2)
	})
	if res := r.plyfs("image", "ls", "--wait", "0s"); res.code != storeLocked || !strings.Contains(res.stderr, fmt.Sprint(cmd.Process.Pid)) {
		t.Errorf("exit code %d, %q; want one that names process %d", res.code, res.stderr, cmd.Process.Pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if got := r.ok("image", "ls"); got != "" {
		t.Errorf("an image of half a download: %s", got)
	}
	var asked atomic.Value
	note := func(_ http.ResponseWriter, q *http.Request) bool {
		if strings.HasSuffix(q.URL.Path, d.String()) {
			asked.Store(q.Header.Get("Range"))
		}
		return false
	}
	r.stall.Store(&note)
	r.ok("image", "pull", app)
	if want := fmt.Sprintf("bytes=%d-%d", len(data)/2, len(data)-1); asked.Load() != want {
		t.Errorf("asked for %q, want %s", asked.Load(), want)
	}
	r.ok("layer", "verify")
}

// TestProgressLine: the phase that is furthest behind is shown, with what is done of it.
func TestProgressLine(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "terminal"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := &progressLine{f: f, layers: make(map[string]image.Progress), start: time.Now()}
	for _, now := range []image.Progress{
		{Layer: "a", Phase: image.PhaseDownload, Done: 2048, Total: 2048},
		{Layer: "b", Phase: image.PhaseDownload, Done: 1024, Total: 4096},
		{Layer: "a", Phase: image.PhaseUnpack, Done: 1, Total: 10},
		{Layer: "c", Phase: image.PhaseExists},
	} {
		p.report(now)
	}
	p.mu.Lock()
	line := p.lineLocked()
	p.mu.Unlock()
	if !strings.HasPrefix(line, "download [============            ] 1/2 layers, 3.0 KiB of 6.0 KiB, ") {
		t.Errorf("%q", line)
	}
	p.report(image.Progress{Layer: "b", Phase: image.PhaseDownload, Done: 4096, Total: 4096})
	p.mu.Lock()
	line = p.lineLocked()
	p.mu.Unlock()
	if !strings.HasPrefix(line, "unpack ") {
		t.Errorf("%q", line)
	}
	p.end()
}

// keysOf lists the keys of JSON, those of lists with [].
func keysOf(prefix string, v any) (keys []string) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			keys = append(keys, prefix+k)
			keys = append(keys, keysOf(prefix+k+".", e)...)
		}
	case []any:
		for _, e := range v {
			keys = append(keys, keysOf(prefix+"[].", e)...)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// TestStoreJSON: the keys that programs rely on.
func TestStoreJSON(t *testing.T) {
	r := newStoreRun(t)
	r.push("app:1", 1)
	app := r.host + "/app:1"
	const imageKeys = "[].added [].created [].digests [].id [].keeps_blobs [].layers [].layers.[].blob [].layers.[].diff_id " +
		"[].layers.[].size [].manifest [].names [].platform [].size [].top"
	const layerKeys = "[].content [].created [].diff_id [].entries [].id [].parent [].size"
	const containerKeys = "created id image labels labels.a mounts name parent quota quota.inodes"
	for _, c := range []struct{ args, keys string }{
		{"image pull " + app, imageKeys},
		{"image ls", imageKeys},
		{"image history " + app, "[].author [].comment [].created [].created_by [].diff_id [].size"},
		{"layer ls", layerKeys},
		{"layer verify", "[].id [].ok"},
		{"layer check", "containers holders layers problems"},
		{"layer gc", "blobs bytes holders layers leftovers"},
		{"layer changes " + app, "[].kind [].path"},
		{"container create --label a=b " + app + " c1", strings.ReplaceAll(containerKeys, " quota.inodes", "")},
		{"container ls", indexed(strings.ReplaceAll(containerKeys, " quota.inodes", ""))},
		{"container changes c1", ""},
		{"container commit c1 x:1", strings.ReplaceAll(imageKeys, " [].manifest", "")},
		{"image push " + app, "[].image [].manifest [].rewritten"},
		{"image export -o out.tar " + app, "[].image [].manifest [].rewritten"},
		{"image rm x:1", "[].deleted [].untagged"},
		{"driver ls", "[].available [].name [].summary"},
		{"driver status", "driver root status status.[].label status.[].value"},
	} {
		out := r.ok(append([]string{}, append(strings.Fields(c.args), "--json")...)...)
		var v any
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			t.Errorf("%s: %v: %s", c.args, err, out)
			continue
		}
		if got := strings.Join(keysOf("", v), " "); got != c.keys {
			t.Errorf("%s:\n got %s\nwant %s", c.args, got, c.keys)
		}
		if strings.Count(out, "\n") > 0 {
			t.Errorf("%s: more than one line", c.args)
		}
	}
}

// indexed are the keys of a list of such objects.
func indexed(keys string) string {
	words := strings.Fields(keys)
	for i, w := range words {
		words[i] = "[]." + w
	}
	return strings.Join(words, " ")
}

// TestStoreRebuild: a store whose database is gone is made whole from what lies beside it.
func TestStoreRebuild(t *testing.T) {
	r := newStoreRun(t)
	r.push("app:1", 2)
	app := r.host + "/app:1"
	id := r.ok("image", "pull", app)
	r.ok("container", "create", app, "c1")
	if err := os.WriteFile(filepath.Join(r.root, "db", "MANIFEST"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"image", "ls"}, {"layer", "check"}} {
		if res := r.plyfs(args...); res.code != storeDamaged || !strings.Contains(res.stderr, "plyfs layer check --repair") {
			t.Errorf("%v: exit code %d, %q", args, res.code, res.stderr)
		}
	}
	r.ok("layer", "check", "--repair")
	if got := r.ok("image", "inspect", app); !strings.Contains(got, id) {
		t.Errorf("%s", got)
	}
	if got := r.ok("container", "ls"); !strings.Contains(got, "c1") {
		t.Errorf("%s", got)
	}
	r.ok("layer", "verify")
}

// TestStoreMigrate: a store moves to another driver with all it has, and commands on it go on.
func TestStoreMigrate(t *testing.T) {
	r := newStoreRun(t)
	r.push("app:1", 2)
	app := r.host + "/app:1"
	r.ok("image", "pull", app)
	r.ok("container", "create", app, "c1")
	write(t, "content", r.ok("container", "mount", "c1"), "new")
	r.ok("container", "umount", "c1")
	before := r.ok("layer", "export", app)
	r.ok("layer", "migrate", "--to", "overlay2")
	if res := r.plyfs("image", "ls"); res.code != storeOther || !strings.Contains(res.stderr, "plyfs layer migrate --to vfs") {
		t.Errorf("exit code %d, %q", res.code, res.stderr)
	}
	if got := r.ok("layer", "export", "--driver", "overlay2", app); got != before {
		t.Error("the layer is another")
	}
	if got := r.ok("container", "changes", "--driver", "overlay2", "c1"); got != "A /new" {
		t.Errorf("changes: %s", got)
	}
	r.ok("layer", "migrate", "--driver", "overlay2", "--remove-old")
	if got := r.ok("layer", "check", "--driver", "overlay2", "--content"); !strings.HasSuffix(got, "0 problems") {
		t.Errorf("check: %s", got)
	}
}

// TestStoreMistyped: a command that could not do anything leaves no store where a name was mistyped.
func TestStoreMistyped(t *testing.T) {
	r := newStoreRun(t)
	for args, code := range map[string]int{
		"container mount x": storeNotFound, "container rm x": storeNotFound, "container create x y": storeNotFound,
		"image inspect x": storeNotFound, "image export -o out x": storeNotFound, "layer export x": storeNotFound, "layer verify x": storeNotFound,
		"image ls --driver nope": storeNotFound, "image ls --driver aufs": storeUnsupported, "layer gc --driver-opt no=such": storeUsage,
	} {
		if res := r.plyfs(strings.Fields(args)...); res.code != code || res.stderr == "" {
			t.Errorf("%s: exit code %d, want %d; %s", args, res.code, code, res.stderr)
		}
		if names, err := os.ReadDir(filepath.Dir(r.root)); err != nil || len(names) > 0 {
			t.Fatalf("%s: left %v, %v", args, names, err)
		}
	}
	r.ok("container", "create", "scratch", "c1")
}
