package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// A mount whose mount point lies in its own lower shows an empty directory there, and never itself in itself.
func TestMountPointInLower(t *testing.T) {
	for _, data := range []string{"noopen", "passthrough"} {
		t.Run(data, func(t *testing.T) {
			dir := unionTree(t)
			mkdirs(t, dir, "lower/m/covered", "lower/d")
			mustMount(t, dir, "plyfs", "mount", "-o", "data="+data+","+allLayers, "lower/m")
			script := `cd lower/m; ls -A m; test ! -e m/m; find . | sort | tr '\n' ' '
				for i in 1 2 3 4 5 6 7 8; do touch x$i; ls -Al m; rm x$i; done | sort -u
				echo >m/new; cat m/new; rm -rf m; ls -A`
			if got, want := shell(t, dir, script), ". ./d ./file ./m ./second total 0\n\nd\nfile\nsecond\n"; got != want {
				t.Errorf("%q, want %q", got, want)
			}
			mustMount(t, dir, "plyfs", "umount", "lower/m")
			waitGone(t, dir)
			if got := shell(t, dir, "ls lower/m"); got != "covered\n" {
				t.Errorf("under the mount point there is %q", got)
			}
		})
	}
}

// A look at a mount point in a layer asks the server of the mount for nothing, also when the kernel has no attributes of its root:
// the server here cannot answer. The layer lies on a local file system, and as if on another.
func TestLookAtOwnMount(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "lower/m")
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "lower/m")
	defer waitGone(t, dir)
	defer testenv.Unmount(t, filepath.Join(dir, "lower/m"))
	l, err := layer.Open(filepath.Join(dir, "lower"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var st unix.Statx_t
	if err := sys.Statx(l.FD(), "m", &st); err != nil {
		t.Fatal(err)
	}
	l.Avoid(sys.Dev(&st), true)
	remote := *l
	remote.FSType = unix.NFS_SUPER_MAGIC
	pids := servers(testenv.Binary(t), dir)
	signal := func(sig syscall.Signal) {
		for _, pid := range pids {
			if pid != os.Getpid() {
				_ = unix.Kill(pid, sig)
			}
		}
	}
	defer signal(unix.SIGCONT)
	for end := time.Now().Add(longest / 2); ; {
		shell(t, dir, "touch lower/m/x; rm lower/m/x") // which makes the attributes of the root unknown
		signal(unix.SIGSTOP)
		asks := look(func() error { return sys.Statx(l.FD(), "m", new(unix.Statx_t)) })
		select {
		case err := <-asks: // somebody has asked before
			if signal(unix.SIGCONT); err != nil || time.Now().After(end) {
				t.Fatalf("the attributes are always known: %v", err)
			}
			continue
		case <-time.After(50 * time.Millisecond):
		}
		lookUnasked(t, "local", l)
		lookUnasked(t, "remote", &remote)
		signal(unix.SIGCONT)
		if err := <-asks; err != nil {
			t.Error(err)
		}
		return
	}
}

func lookUnasked(t *testing.T, name string, l *layer.Layer) {
	t.Helper()
	var st unix.Statx_t
	select {
	case err := <-look(func() error { return l.StatRaw(l.FD(), "m", sys.StatMask, &st) }):
		if err != nil || !l.Avoids(&st) {
			t.Errorf("%s: %v, device %#x", name, err, sys.Dev(&st))
		}
	case <-time.After(longest / 4):
		t.Errorf("%s: the server is asked", name)
	}
}

// look runs f, which may not come back, beside the test.
func look(f func() error) chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}
