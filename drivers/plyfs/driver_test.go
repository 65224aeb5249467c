package plyfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// newDriver opens a driver in a new store beneath base.
func newDriver(t *testing.T, base string, opts map[string]string) *Driver {
	t.Helper()
	all := map[string]string{"mount_program": testenv.Binary(t)}
	for k, v := range opts {
		all[k] = v
	}
	d, err := Open(t.Context(), drivers.Options{
		Home: filepath.Join(base, "home"), Run: filepath.Join(base, "run"), Options: all,
	})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	must(t, d.Cleanup(t.Context()))
	return d
}

var must = testenv.Must

func wants(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// image makes an image layer that holds the files with their names as content.
func image(t testing.TB, d drivers.Driver, id, parent string, files ...string) {
	t.Helper()
	ctx := context.Background()
	must(t, d.CreateReadWrite(ctx, "make-"+id, parent, nil))
	root, err := d.Get(ctx, "make-"+id, nil)
	must(t, err)
	for _, f := range files {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755))
		must(t, os.WriteFile(filepath.Join(root, f), []byte(f), 0o644))
	}
	must(t, d.Put(ctx, "make-"+id))
	must(t, d.Create(ctx, id, parent, nil))
	differ := drivers.DifferOf(d)
	r, err := differ.Diff(ctx, "make-"+id, parent, nil)
	must(t, err)
	_, err = differ.ApplyDiff(ctx, id, r, nil)
	must(t, errors.Join(err, r.Close(), d.Remove(ctx, "make-"+id)))
}

// TestPutSilent: a layer whose server hangs is in use, and costs one thread however often it is put back.
func TestPutSilent(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, nil)
	ctx := t.Context()
	must(t, d.CreateReadWrite(ctx, "c", "", nil))
	_, err := d.Get(ctx, "c", nil)
	must(t, err)
	pid := readRecord(t, base, "c").PID
	testenv.Stop(t, pid)
	defer func() { _ = unix.Kill(pid, unix.SIGCONT) }()
	for range 2 {
		err := d.Put(ctx, "c")
		wants(t, "Put of a layer whose server is stopped", err, drivers.ErrInUse)
		if err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("Put: %v", err)
		}
	}
	if n := threadsIn(t, unix.SYS_STATFS); n != 1 {
		t.Errorf("%d threads wait for an answer", n)
	}
	must(t, unix.Kill(pid, unix.SIGCONT))
	must(t, d.Put(ctx, "c"))
	if n := threadsIn(t, unix.SYS_STATFS); n != 0 {
		t.Errorf("%d threads wait for an answer after it came", n)
	}
}

// TestOpenBesideSilent: a layer whose server hangs keeps nobody from the others, not even who opens the driver anew, and one thread waits
// for it.
func TestOpenBesideSilent(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, nil)
	ctx := t.Context()
	for _, id := range []string{"c", "other"} {
		must(t, d.CreateReadWrite(ctx, id, "", nil))
	}
	_, err := d.Get(ctx, "c", nil)
	must(t, err)
	pid := readRecord(t, base, "c").PID
	testenv.Stop(t, pid)
	defer func() { _ = unix.Kill(pid, unix.SIGCONT) }()
	again := newDriver(t, base, nil)
	if n := again.References()["c"]; n != 1 {
		t.Errorf("the layer has %d references", n)
	}
	must(t, again.Cleanup(ctx))
	_, err = again.Get(ctx, "other", nil)
	must(t, err)
	must(t, again.Put(ctx, "other"))
	if n := threadsIn(t, unix.SYS_STATX); n != 1 {
		t.Errorf("%d threads wait for an answer", n)
	}
	must(t, unix.Kill(pid, unix.SIGCONT))
	must(t, again.Put(ctx, "c"))
}

// threadsIn counts the threads of this process that are in a system call.
func threadsIn(t *testing.T, call int) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/syscall")
	must(t, err)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		must(t, err)
		if strings.HasPrefix(string(b), strconv.Itoa(call)+" ") {
			n++
		}
	}
	return n
}

// TestServerLetsGo: after Put a server has nothing of the layer any more, whether it ended or stands by for another mount.
func TestServerLetsGo(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, nil)
	ctx := t.Context()
	image(t, d, "base", "", "etc/a", "etc/b")
	must(t, d.CreateReadWrite(ctx, "c", "base", nil))
	root, err := d.Get(ctx, "c", nil)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "etc/a"), []byte("new"), 0o644))
	rec := readRecord(t, base, "c")
	must(t, d.Put(ctx, "c"))
	for _, fd := range openBelow(t, rec.PID, filepath.Join(base, "home/")) {
		t.Errorf("process %d has %s open after Put", rec.PID, fd)
	}
	if b, err := os.ReadFile(filepath.Join(base, "home/c/diff/etc/a")); err != nil || string(b) != "new" {
		t.Errorf("the upper holds %q, %v", b, err)
	}
	if left, err := os.ReadDir(filepath.Join(base, "home/c/work/work")); err != nil || len(left) > 0 {
		t.Errorf("staged after Put: %v, %v", left, err)
	}
	list, err := d.Changes(ctx, "c", "base")
	must(t, err)
	if len(list) != 2 || list[0].String() != "C /etc" || list[1].String() != "C /etc/a" {
		t.Errorf("changes %v", list)
	}
}

// openBelow lists the open files and the working directory of a process that are below dir; none if it has ended.
func openBelow(t *testing.T, pid int, dir string) (list []string) {
	t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	for _, fd := range fds {
		// Descriptors may be closed meanwhile.
		if path, err := os.Readlink(filepath.Join(proc, "fd", fd.Name())); err == nil && strings.HasPrefix(path, dir+"/") {
			list = append(list, path)
		}
	}
	return list
}

func readRecord(t *testing.T, base, id string) (rec serverRecord) {
	t.Helper()
	s := &servers{dir: filepath.Join(base, "run/servers")}
	rec, err := s.read(id)
	must(t, err)
	return rec
}

// A restarted engine unmounts what the one before mounted, and waits for a server that is not its child.
func TestServerOfEarlierProcess(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, nil)
	ctx := t.Context()
	image(t, d, "base", "", "f")
	must(t, d.CreateReadWrite(ctx, "c", "base", nil))
	_, err := d.Get(ctx, "c", nil)
	must(t, err)
	rec := readRecord(t, base, "c")
	again := newDriver(t, base, nil)
	must(t, again.Put(ctx, "c"))
	if left := openBelow(t, rec.PID, filepath.Join(base, "home")); len(left) > 0 {
		t.Errorf("process %d goes on with %v", rec.PID, left)
	}
	wants(t, "second Put", again.Put(ctx, "c"), drivers.ErrInvalid)
	must(t, again.Remove(ctx, "c"))
}

// alive says whether the process runs; a zombie does not.
func alive(rec serverRecord) bool {
	fd, err := unix.PidfdOpen(rec.PID, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return n == 0
}

func kill(t *testing.T, rec serverRecord) {
	t.Helper()
	must(t, unix.Kill(rec.PID, unix.SIGKILL))
	for alive(rec) {
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestServerKilled(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, nil)
	ctx := t.Context()
	image(t, d, "base", "", "f")
	must(t, d.CreateReadWrite(ctx, "c", "base", nil))
	root, err := d.Get(ctx, "c", nil)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "f"), []byte("written"), 0o644))
	rec := readRecord(t, base, "c")
	kill(t, rec)
	root, err = d.Get(ctx, "c", nil)
	must(t, err)
	if b, err := os.ReadFile(filepath.Join(root, "f")); err != nil || string(b) != "written" {
		t.Errorf("after the server was killed: %q, %v", b, err)
	}
	must(t, d.Put(ctx, "c"))
	// Killed again, and given back.
	_, err = d.Get(ctx, "c", nil)
	must(t, err)
	rec = readRecord(t, base, "c")
	kill(t, rec)
	must(t, d.Put(ctx, "c"))
	must(t, d.Remove(ctx, "c"))
}

// A mount whose server is gone is given back also while somebody has something open in it.
func TestServerKilledInUse(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, nil)
	image(t, d, "base", "", "f")
	must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
	root, err := d.Get(t.Context(), "c", nil)
	must(t, err)
	f, err := os.Open(root)
	must(t, err)
	defer f.Close()
	kill(t, readRecord(t, base, "c"))
	must(t, d.Put(t.Context(), "c"))
	must(t, d.Remove(t.Context(), "c"))
}

// Who wants to be alone is told of a server that others started.
func TestGetAlone(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, nil)
	image(t, d, "base", "", "f")
	must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
	root, err := d.Get(t.Context(), "c", &drivers.GetOptions{Alone: true})
	must(t, err)
	_, err = d.Get(t.Context(), "c", &drivers.GetOptions{Alone: true})
	must(t, errors.Join(err, d.Put(t.Context(), "c"))) // its own is none of others
	// A copy of the mount keeps the server.
	elsewhere := filepath.Join(base, "elsewhere")
	must(t, errors.Join(os.Mkdir(elsewhere, 0o755), unix.Mount(root, elsewhere, "", unix.MS_BIND, "")))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	must(t, d.Put(ctx, "c"))
	if _, err := d.Get(t.Context(), "c", &drivers.GetOptions{Alone: true}); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("beside a server of others: %v, want ErrInUse", err)
	}
	must(t, unix.Unmount(elsewhere, 0))
	for { // the server ends behind the unmount
		if _, err = d.Get(t.Context(), "c", &drivers.GetOptions{Alone: true}); !errors.Is(err, drivers.ErrInUse) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	must(t, errors.Join(err, d.Put(t.Context(), "c")))
}

// A server that was killed, and has not let go of the upper yet, is waited for; and not for ever.
func TestGetAloneAfterKill(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, nil)
	image(t, d, "base", "", "f")
	must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
	alone := &drivers.GetOptions{Alone: true}
	_, err := d.Get(t.Context(), "c", alone)
	must(t, err)
	kill(t, readRecord(t, base, "c"))
	file := filepath.Join(base, "run/servers/c")
	for _, err := os.Stat(file); err == nil; _, err = os.Stat(file) {
		time.Sleep(time.Millisecond)
	}
	// In its place another process goes on, and what it would still hold this one does.
	dying := exec.Command("sleep", "60")
	must(t, dying.Start())
	var ending sync.WaitGroup
	end := sync.OnceFunc(func() {
		_ = dying.Process.Kill() // it sleeps
		_ = dying.Wait()
	})
	defer ending.Wait()
	defer end()
	started, err := startTime(dying.Process.Pid)
	must(t, err)
	record, err := json.Marshal(serverRecord{PID: dying.Process.Pid, Started: started})
	must(t, err)
	must(t, os.WriteFile(file, record, 0o600))
	release := holdWork(t, filepath.Join(base, "home/c/work"))
	again := newDriver(t, base, nil) // it knows servers from their records alone
	if _, err := again.Get(t.Context(), "c", alone); !errors.Is(err, drivers.ErrInUse) {
		t.Errorf("beside a server that does not end: %v, want ErrInUse", err)
	}
	ending.Go(func() {
		time.Sleep(50 * time.Millisecond)
		release()
		end()
	})
	_, err = again.Get(t.Context(), "c", alone)
	must(t, err)
	must(t, again.Put(t.Context(), "c"))
}

// holdWork uses a work directory as a server does, until release.
func holdWork(t *testing.T, dir string) (release func()) {
	t.Helper()
	base, err := layer.Open(dir)
	must(t, err)
	w, err := cow.OpenWork(base, cow.WorkOptions{})
	must(t, err)
	return func() {
		w.Close()
		must(t, base.Close())
	}
}

// TestVolatile: the mark of a volatile mount goes when its server has ended.
func TestVolatile(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, map[string]string{"mountopt": "volatile"})
	must(t, d.CreateReadWrite(t.Context(), "c", "", nil))
	for range 2 {
		root, err := d.Get(t.Context(), "c", nil)
		must(t, err)
		if _, err := os.Stat(filepath.Join(base, "home/c/work/work/incompat/volatile")); err != nil {
			t.Errorf("the mount is not volatile: %v", err)
		}
		must(t, os.WriteFile(filepath.Join(root, "f"), nil, 0o644))
		must(t, d.Put(t.Context(), "c"))
	}
}

// TestMappedWrites: what was written through a mapping is in the difference of a running container.
func TestMappedWrites(t *testing.T) {
	d := newDriver(t, testenv.Scratch(t), nil)
	image(t, d, "base", "", "f")
	must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
	root, err := d.Get(t.Context(), "c", nil)
	must(t, err)
	f, err := os.OpenFile(filepath.Join(root, "f"), os.O_RDWR, 0)
	must(t, err)
	m, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	m[0] = 'g'
	// Without being asked, the kernel waits for half a minute.
	for end := time.Now().Add(10 * time.Second); ; {
		list, err := d.Changes(t.Context(), "c", "base")
		must(t, err)
		if len(list) == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("changes %v", list)
		}
	}
	r, err := d.Diff(t.Context(), "c", "base", nil)
	must(t, err)
	content, err := io.ReadAll(r)
	must(t, errors.Join(err, r.Close(), unix.Munmap(m), f.Close(), d.Put(t.Context(), "c")))
	if !bytes.Contains(content, []byte("\x00g\x00")) {
		t.Errorf("the stream has not what was written: %q", content)
	}
}

func TestMountFails(t *testing.T) {
	base := testenv.Scratch(t)
	d := newDriver(t, base, nil)
	ctx := t.Context()
	must(t, d.CreateReadWrite(ctx, "c", "", nil))
	must(t, os.RemoveAll(filepath.Join(base, "home/c/work")))
	if _, err := d.Get(ctx, "c", nil); err == nil {
		t.Fatal("mounted without a work directory")
	} else {
		t.Log(err)
	}
	if drivers.IsMountPoint(filepath.Join(base, "home/c/merged")) {
		t.Error("something is mounted")
	}
	wants(t, "Put", d.Put(ctx, "c"), drivers.ErrInvalid)
	must(t, d.Remove(ctx, "c"))
}

func TestProbe(t *testing.T) {
	base := testenv.Scratch(t)
	rep := Factory().Probe(t.Context(), drivers.Options{
		Home: filepath.Join(base, "not/there"), Options: map[string]string{"mount_program": testenv.Binary(t)},
	})
	if !rep.Usable {
		t.Errorf("not usable: %s; %s", rep.Why, rep.Todo)
	}
	if left, err := os.ReadDir(base); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	rep = Factory().Probe(t.Context(), drivers.Options{Home: base, Options: map[string]string{"mount_program": "/nowhere/plyfs"}})
	if rep.Usable || rep.Why == "" || rep.Todo == "" {
		t.Errorf("without a program: %+v", rep)
	}
}
