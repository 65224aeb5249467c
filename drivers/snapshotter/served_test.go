package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"plyfs/drivers"
	"plyfs/drivers/plyfs"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

// newServed is a workbench of the driver plyfs whose snapshotter mounts, with an image.
func newServed(t *testing.T) *workbench {
	t.Helper()
	w := newWorkbenchWith(t, testenv.Scratch(t), plyfs.Factory(), installPlyfs(t), Options{Served: true})
	w.image(t)
	return w
}

// mountsOf returns the only mount of a snapshot.
func (w *workbench) mountsOf(t *testing.T, ctx context.Context, key string) mount.Mount { //nolint:revive // t is first everywhere
	t.Helper()
	m, err := w.Mounts(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(m) != 1 {
		t.Fatalf("mounts of %s: %+v", key, m)
	}
	return m[0]
}

func isServed(m mount.Mount) bool { return m.Type == typeBind && drivers.IsMountPoint(m.Source) }

// remove removes a snapshot, and holds that nothing is mounted any more.
func (w *workbench) remove(t *testing.T, key string, served mount.Mount) {
	t.Helper()
	if err := w.Remove(t.Context(), key); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(served.Source); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of the removed snapshot is left: %s, %v", served.Source, err)
	}
}

// What containerd prepares it has to mount; what it asks for the mounts of is mounted, once, until it is committed.
func TestServed(t *testing.T) {
	w := newServed(t)
	if m := w.prepare(t, "box", "top"); !strings.HasPrefix(m[0].Type, "fuse3.") {
		t.Errorf("a prepared snapshot is mounted as %+v", m)
	}
	box := w.mountsOf(t, t.Context(), "box")
	if !isServed(box) || !slices.Equal(box.Options, []string{"rbind", "rw"}) {
		t.Fatalf("it is mounted as %+v", box)
	}
	w.at(t, []mount.Mount{box}, func(root string) {
		change(t, root)
		if again := w.mountsOf(t, t.Context(), "box"); again.Source != box.Source {
			t.Errorf("it is mounted as %+v, and then as %+v", box, again)
		}
		// dockerd mounts that of a running container again, to commit it.
		second := mount.Mount{Type: box.Type, Source: box.Source, Options: []string{"rbind", "ro"}}
		w.at(t, []mount.Mount{second}, func(second string) {
			if text, err := os.ReadFile(filepath.Join(second, "dir/two")); err != nil || string(text) != "changed" {
				t.Errorf("the second mount shows %q, %v", text, err)
			}
			if err := os.WriteFile(filepath.Join(second, "more"), nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("writing to the second mount: %v, want EROFS", err)
			}
		})
		// The difference of what is in use, by the driver.
		view, err := w.View(t.Context(), "look", "top")
		if err != nil {
			t.Fatal(err)
		}
		d, err := w.differ.Compare(w.context(t), view, []mount.Mount{box})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(w.log.String(), "walking") {
			t.Error("the difference was made by walking")
		}
		w.extract(t, "copy", "top", d)
	})
	if err := w.Commit(t.Context(), "done", "box"); err != nil {
		t.Fatal(err)
	}
	if drivers.IsMountPoint(box.Source) {
		t.Error("it is mounted behind the commit")
	}
	w.mustShow(t, "copy", "done")
}

// Owners may be mapped only by who mounts; a quota bounds everybody; views and layers without a parent are as ever.
func TestServedOrNot(t *testing.T) {
	w := newServed(t)
	for _, c := range []struct {
		name   string
		labels map[string]string
		served bool
	}{
		{"plain", nil, true},
		{"labelled", map[string]string{"a": "b"}, true},
		{"mapped", map[string]string{
			snapshots.LabelSnapshotUIDMapping: "0:1000:65536", snapshots.LabelSnapshotGIDMapping: "0:1000:65536",
		}, false},
		{"bounded", map[string]string{snapshots.LabelSnapshotMaxSize: "1048576"}, true},
	} {
		if _, err := w.Prepare(t.Context(), c.name, "top", snapshots.WithLabels(c.labels)); err != nil {
			t.Fatal(err)
		}
		m := w.mountsOf(t, t.Context(), c.name)
		if isServed(m) != c.served || !c.served && !strings.HasPrefix(m.Type, "fuse3.") {
			t.Errorf("%s: mounted as %+v", c.name, m)
		}
		if c.name == "bounded" {
			err := os.WriteFile(filepath.Join(m.Source, "large"), make([]byte, 4<<20), 0o644)
			if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
				t.Errorf("4 MiB in a snapshot of 1 MiB: %v", err)
			}
		}
		if c.served {
			w.remove(t, c.name, m)
		}
	}
	if _, err := w.View(t.Context(), "view", "top"); err != nil {
		t.Fatal(err)
	}
	if m := w.mountsOf(t, t.Context(), "view"); !strings.HasPrefix(m.Type, "fuse3.") {
		t.Errorf("a view is mounted as %+v", m)
	}
	w.prepare(t, "first", "")
	if m := w.mountsOf(t, t.Context(), "first"); m.Type != typeBind || drivers.IsMountPoint(m.Source) {
		t.Errorf("a first layer is mounted as %+v", m)
	}
}

// Only who has the mounts of the snapshotter gets them.
func TestServedElsewhere(t *testing.T) {
	w := newServed(t)
	w.prepare(t, "box", "top")
	for _, c := range []struct {
		info   peerInfo
		served bool
	}{{peerInfo{}, false}, {peerInfo{sees: true}, true}} {
		m := w.mountsOf(t, peer.NewContext(t.Context(), &peer.Peer{AuthInfo: c.info}), "box")
		if isServed(m) != c.served {
			t.Errorf("%+v: mounted as %+v", c.info, m)
		}
		if c.served {
			w.remove(t, "box", m)
		}
	}
	if m, err := w.Mounts(peer.NewContext(t.Context(), &peer.Peer{}), "box"); err == nil {
		t.Errorf("a removed snapshot is mounted as %+v", m)
	}
}

// sleeping starts a program that sleeps, by way of another one, and returns its process number.
func sleeping(t *testing.T, args ...string) int {
	t.Helper()
	args = append(args, "sh", "-c", "echo; exec sleep 60")
	c := exec.Command(args[0], args[1:]...)
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill() // it sleeps
		_ = c.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return c.Process.Pid
}

func TestSeesMounts(t *testing.T) {
	if !seesMounts(os.Getpid()) || !seesMounts(sleeping(t, "env")) {
		t.Error("a process with the same mounts does not see them")
	}
	if seesMounts(sleeping(t, "unshare", "--mount")) {
		t.Error("a process in another mount namespace sees the mounts")
	}
	root := testenv.Scratch(t)
	if err := unix.Mount("/", root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if seesMounts(sleeping(t, "chroot", root)) {
		t.Error("a process with another root sees the mounts")
	}
	if seesMounts(0) || seesMounts(1<<22+1) {
		t.Error("a process that is not there sees the mounts")
	}
}

// Over the socket it is found out who calls.
func TestCredentials(t *testing.T) {
	w := newServed(t)
	w.prepare(t, "box", "top")
	socket := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(Credentials(slog.New(slog.DiscardHandler))))
	Register(server, w.Snapshotter, nil)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx := namespaces.WithNamespace(t.Context(), "test")
	m, err := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "plyfs").Mounts(ctx, "box")
	if err != nil || len(m) != 1 || !isServed(m[0]) {
		t.Errorf("mounted as %+v, %v", m, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	server.GracefulStop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.remove(t, "box", m[0])
}

// A container that is started again gets a mount that works, whatever happened to the server of the last one.
func TestServedKilled(t *testing.T) {
	w := newServed(t)
	w.prepare(t, "box", "top")
	for range 10 { // the dead mount may be seen before the server lets go of the upper
		box := w.mountsOf(t, t.Context(), "box")
		if !isServed(box) {
			t.Fatalf("after a server was killed it is mounted as %+v", box)
		}
		mustWrite(t, filepath.Join(box.Source, "written"))
		if err := unix.Kill(w.server(t), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for drivers.IsMountPoint(box.Source) {
			time.Sleep(time.Millisecond)
		}
	}
	box := w.mountsOf(t, t.Context(), "box")
	if b, err := os.ReadFile(filepath.Join(box.Source, "written")); err != nil || string(b) != "text" {
		t.Errorf("what was written before: %q, %v", b, err)
	}
	w.remove(t, "box", box)
}

// server returns the process of the only mount.
func (w *workbench) server(t *testing.T) (pid int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(w.store.Root(), "run/plyfs/servers/*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("servers: %v, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var server struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(b, &server); err != nil {
		t.Fatal(err)
	}
	return server.PID
}

// Where the snapshotter can't mount, containerd gets what it needs to do so.
func TestServedFails(t *testing.T) {
	installPlyfs(t)
	w := newWorkbenchWith(t, testenv.Scratch(t), plyfs.Factory(), map[string]string{"mount_program": "/bin/false"}, Options{Served: true})
	w.extract(t, "base", "", w.put(t, ocispec.MediaTypeImageLayerGzip, baseTar(t)))
	w.prepare(t, "box", "base")
	m := w.mountsOf(t, t.Context(), "box")
	if !strings.HasPrefix(m.Type, "fuse3.") {
		t.Fatalf("mounted as %+v", m)
	}
	if log := w.log.String(); !strings.Contains(log, "containerd has to mount a snapshot") || !strings.Contains(log, "/bin/false") {
		t.Errorf("the log does not say why:\n%s", log)
	}
	w.at(t, []mount.Mount{m}, func(root string) { change(t, root) })
	if err := w.Remove(t.Context(), "box"); err != nil {
		t.Error(err)
	}
}

// The mount of a snapshot shows what another one of the same layers, made by containerd, does.
func TestServedShowsTheSame(t *testing.T) {
	w := newServed(t)
	var trees [2]*fingerprint.Tree
	for i, key := range []string{"told", "served"} {
		m := w.prepare(t, key, "top")
		if key == "served" {
			m = []mount.Mount{w.mountsOf(t, t.Context(), key)}
		}
		w.at(t, m, func(root string) {
			change(t, root)
			tree, err := fingerprint.Take(root, fingerprint.Options{Fields: fingerprint.Default})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range tree.Entries {
				e.Mtime = fingerprint.Time{}
			}
			trees[i] = tree
		})
	}
	if d := fingerprint.Diff(trees[0], trees[1], fingerprint.Default); len(d) > 0 {
		t.Errorf("they differ:\n%s", fingerprint.Format(d, 20))
	}
	w.remove(t, "served", w.mountsOf(t, t.Context(), "served"))
}

// Beside a mount that containerd made before, none is served: two servers do not see at once what the other one writes.
func TestServedBesideOthers(t *testing.T) {
	w := newServed(t)
	told := w.prepare(t, "box", "top")
	w.at(t, told, func(root string) {
		if m := w.mountsOf(t, t.Context(), "box"); !strings.HasPrefix(m.Type, "fuse3.") {
			t.Errorf("mounted as %+v", m)
		}
		mustWrite(t, filepath.Join(root, "new"))
	})
	// The server ends some time after the unmount.
	var box mount.Mount
	for range 500 {
		if box = w.mountsOf(t, t.Context(), "box"); isServed(box) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if b, err := os.ReadFile(filepath.Join(box.Source, "new")); err != nil || string(b) != "text" {
		t.Errorf("mounted as %+v it shows %q, %v", box, b, err)
	}
	w.remove(t, "box", box)
}

// What is served stays so for a snapshotter that would not serve it, and goes when it can't any more.
func TestServedStays(t *testing.T) {
	base := testenv.Scratch(t)
	options := installPlyfs(t)
	var box mount.Mount
	t.Run("served", func(t *testing.T) {
		w := newWorkbenchWith(t, base, plyfs.Factory(), options, Options{Served: true})
		w.image(t)
		w.prepare(t, "box", "top")
		box = w.mountsOf(t, t.Context(), "box")
	})
	s, err := openAt(t.Context(), filepath.Join(base, "store"), plyfs.Factory(), options)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := &workbench{Snapshotter: s}
	if m := w.mountsOf(t, t.Context(), "box"); !isServed(m) || m.Source != box.Source {
		t.Errorf("mounted as %+v, before as %+v", m, box)
	}
	labels := map[string]string{snapshots.LabelSnapshotUIDMapping: "0:1000:65536", snapshots.LabelSnapshotGIDMapping: "0:1000:65536"}
	if _, err := w.Update(t.Context(), snapshots.Info{Name: "box", Labels: labels}); err != nil {
		t.Fatal(err)
	}
	if m := w.mountsOf(t, t.Context(), "box"); !strings.HasPrefix(m.Type, "fuse3.") || drivers.IsMountPoint(box.Source) {
		t.Errorf("with other owners it is mounted as %+v", m)
	}
	if err := w.Remove(t.Context(), "box"); err != nil {
		t.Error(err)
	}
}

// Who has a copy of the mount does not keep containerd waiting for long.
func TestServedCopies(t *testing.T) {
	w := newServed(t)
	for _, end := range []func(key string) error{
		func(key string) error { return w.Commit(t.Context(), "done", key) },
		func(key string) error { return w.Remove(t.Context(), key) },
	} {
		w.prepare(t, "box", "top")
		box := w.mountsOf(t, t.Context(), "box")
		w.at(t, []mount.Mount{box}, func(root string) {
			mustWrite(t, filepath.Join(root, "file"))
			if err := end("box"); err != nil {
				t.Error(err)
			}
			if drivers.IsMountPoint(box.Source) {
				t.Error("it is still mounted")
			}
		})
	}
	if tree := w.tree(t, "done"); tree.Entries["file"] == nil {
		t.Error("what was written is not in the committed snapshot")
	}
}
