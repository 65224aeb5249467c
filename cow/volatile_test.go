package cow_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/internal/testenv"
)

// envStarved hands the file system of a test on to its run in a user namespace.
const envStarved = "PLYFS_COW_TEST_STARVED"

// starved returns a file system whose write-back can be made to fail, and an empty work directory on it.
func starved(t *testing.T) (testenv.Starved, string) {
	t.Helper()
	var s testenv.Starved
	if testenv.InUserNamespace() {
		dir := os.Getenv(envStarved)
		s = testenv.Starved{Root: filepath.Join(dir, "root"), Pool: filepath.Join(dir, "pool")}
	} else {
		s = testenv.NewStarved(t)
	}
	dir := filepath.Join(s.Root, "w")
	must(t, os.Mkdir(dir, 0o755))
	return s, dir
}

// rootless runs the test once more in a user namespace, whose root owns the file system.
func rootless(t *testing.T, pattern string) {
	t.Helper()
	t.Run("rootless", func(t *testing.T) {
		s := testenv.NewStarved(t)
		must(t, os.Chmod(s.Root, 0o777))
		t.Setenv(envStarved, filepath.Dir(s.Root))
		testenv.RunInUserNamespace(t, pattern)
	})
}

// lose lets the kernel fail to write a file of the file system back.
func lose(t *testing.T, s testenv.Starved) {
	t.Helper()
	path := filepath.Join(s.Root, "lost")
	must(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	s.Starve(t)
	if err := testenv.WriteBack(path); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
		t.Fatalf("write-back to a full device: %v", err)
	}
}

// syncFS is sync -f: it tells an error that was not told yet.
func syncFS(t *testing.T, s testenv.Starved) error {
	t.Helper()
	fd, err := unix.Open(s.Root, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

func TestWriteBackError(t *testing.T) {
	testenv.CheckLeaks(t)
	s, dir := starved(t)
	w := openWork(t, dir, cow.WorkOptions{Volatile: true})
	plain := openWork(t, s.Root, cow.WorkOptions{})
	if got := stages(t, dir); !slices.Equal(got, []string{"incompat"}) {
		t.Errorf("before data was written: %q", got)
	}
	must(t, w.WriteBackError(), w.BeginData(), plain.BeginData())
	for range 2 {
		must(t, w.WriteBackError())
	}
	lose(t, s)
	first := w.WriteBackError()
	if !errors.Is(first, unix.EIO) && !errors.Is(first, unix.ENOSPC) {
		t.Fatalf("after a failed write-back: %v", first)
	}
	if err := plain.WriteBackError(); err != nil {
		t.Errorf("of a mount that is not volatile: %v", err)
	}
	s.Feed(t)
	must(t, os.Remove(filepath.Join(s.Root, "lost")))
	for range 2 {
		if err := w.WriteBackError(); !errors.Is(err, first) {
			t.Errorf("later: %v, at first %v", err, first)
		}
		_ = syncFS(t, s) // tells the error, which the mount must not forget for that
	}
	w.Close()
	plain.Close()
	if got := stages(t, dir); !slices.Equal(got, []string{"incompat"}) {
		t.Errorf("left: %q", got)
	}
	if !testenv.InUserNamespace() {
		rootless(t, "^TestWriteBackError$")
	}
}

// An error from before the mount, which nobody was told of, can't be told apart from a later one. It may be about what the upper
// of a work directory that was in use holds; elsewhere it only keeps data from being written.
func TestVolatileRefused(t *testing.T) {
	testenv.CheckLeaks(t)
	s, dir := starved(t)
	fresh := openWork(t, s.Root, cow.WorkOptions{Volatile: true})
	must(t, os.Mkdir(filepath.Join(dir, "work"), 0o700))
	lose(t, s)
	s.Feed(t)
	base := openLayer(t, dir)
	w, err := cow.OpenWork(base, cow.WorkOptions{Volatile: true})
	if err == nil {
		w.Close()
	}
	if !errors.Is(err, cow.ErrUnseenWriteBack) || !errors.Is(err, unix.EIO) {
		t.Errorf("with an error that nobody saw: %v", err)
	}
	if got := stages(t, dir); len(got) != 0 {
		t.Errorf("a refused mount left %q", got)
	}
	for range 2 {
		if err := fresh.BeginData(); !errors.Is(err, cow.ErrUnseenWriteBack) || !errors.Is(err, unix.EIO) {
			t.Errorf("data over an error that nobody saw: %v", err)
		}
		must(t, fresh.WriteBackError())
	}
	if err := syncFS(t, s); err == nil {
		t.Error("syncfs tells no error")
	}
	time.Sleep(time.Second)
	must(t, fresh.BeginData(), fresh.WriteBackError())
	fresh.Close()
	w, err = cow.OpenWork(base, cow.WorkOptions{Volatile: true})
	must(t, err, w.WriteBackError())
	w.Close()
	must(t, base.Close())
	if !testenv.InUserNamespace() {
		rootless(t, "^TestVolatileRefused$")
	}
}

// TestVolatileKilled: what a killed volatile mount leaves is swept by the next, once its mark was removed.
func TestVolatileKilled(t *testing.T) {
	testenv.CheckLeaks(t)
	_, dir := starved(t)
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), envChild+"="+dir, envVolatile+"=1")
	stdin, err := child.StdinPipe()
	must(t, err)
	defer stdin.Close()
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "staged\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	live := slices.DeleteFunc(stages(t, dir), func(n string) bool { return n == "incompat" })
	if len(live) != 1 || !slices.Contains(names(t, filepath.Join(dir, "work", live[0])), "volatile") {
		t.Fatalf("the other process made %q", live)
	}
	must(t, child.Process.Kill())
	_ = child.Wait() // killed
	must(t, os.RemoveAll(filepath.Join(dir, "work/incompat/volatile")))
	openWork(t, dir, cow.WorkOptions{}).Close()
	if got := stages(t, dir); !slices.Equal(got, []string{"incompat"}) {
		t.Errorf("left: %q", got)
	}
	if !testenv.InUserNamespace() {
		rootless(t, "^TestVolatileKilled$")
	}
}

// TestVolatileUnwatched: the upper of an overlay can't be an overlay that has one below already.
func TestVolatileUnwatched(t *testing.T) {
	testenv.CheckLeaks(t)
	base := testenv.Ext4(t, 16<<20)
	for _, name := range []string{"l", "u", "w", "m"} {
		must(t, os.Mkdir(filepath.Join(base, name), 0o755))
	}
	m := filepath.Join(base, "m")
	must(t, testenv.MountOverlay(testenv.Overlay{Lowers: []string{base + "/l"}, Upper: base + "/u", Work: base + "/w"}, m))
	defer testenv.Unmount(t, m)
	l, err := layer.Open(m)
	must(t, err)
	defer l.Close()
	w, err := cow.OpenWork(l, cow.WorkOptions{Volatile: true})
	must(t, err)
	defer w.Close()
	must(t, w.BeginData())
	if err := w.WriteBackError(); !errors.Is(err, cow.ErrUnwatched) || !strings.Contains(fmt.Sprint(err), "overlay option") {
		t.Errorf("over an overlay: %v", err)
	}
	for _, name := range stages(t, m) {
		if name != "incompat" && len(names(t, filepath.Join(m, "work", name))) != 0 {
			t.Errorf("staged: %q", names(t, filepath.Join(m, "work", name)))
		}
	}
}
