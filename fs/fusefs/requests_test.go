package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listDir returns the names in dir, read anew.
func listDir(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func wantRequests(t *testing.T, what string, got, want map[string]uint64) {
	t.Helper()
	for name, n := range got {
		if name == "FORGET" || name == "BATCH_FORGET" || name == "readers_started" {
			continue // come when they like, the last when the machine is busy
		}
		if n > want[name] {
			t.Errorf("%s: %d requests %s, want at most %d (all: %v)", what, n, name, want[name], got)
		}
	}
}

// TestRequestsNoOpen pins down which requests are not sent, since that is what makes the mount fast.
func TestRequestsNoOpen(t *testing.T) {
	m := mountUnion(t, func(lower string) {
		must(t, os.Mkdir(lower+"/dir", 0o755))
		for i := range 20 {
			writeFile(t, fmt.Sprintf("%s/dir/f%d", lower, i), "content")
		}
		must(t, os.Symlink("target", lower+"/dir/link"))
	}, func(c *serverConfig) { c.Data = DataNoOpen })
	warm := func() {
		listDir(t, m.path("dir"))
		readFile(t, m.path("dir/f1"))
		_, err := os.Lstat(m.path("dir/f2"))
		must(t, err)
		_, err = os.Readlink(m.path("dir/link"))
		must(t, err)
		if _, err := os.Stat(m.path("dir/missing")); !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	warm()
	warm()
	got := m.requests(warm)
	for i := 0; i < 3 && len(got) > 0; i++ {
		got = m.requests(warm) // somebody on the machine may have dropped its caches
	}
	wantRequests(t, "warm", got, nil)
	got = m.requests(func() { writeFile(t, m.path("dir/new"), "content") })
	wantRequests(t, "create", got, map[string]uint64{
		"LOOKUP": 1, "CREATE": 1, "GETXATTR": 1, "WRITE": 1, "GETATTR": 1, "FLUSH": 1, "RELEASE": 1,
	})
	got = m.requests(func() { must(t, os.Remove(m.path("dir/new"))) })
	wantRequests(t, "unlink", got, map[string]uint64{"UNLINK": 1, "GETATTR": 1})
	got = m.requests(func() { must(t, os.Chmod(m.path("dir/f3"), 0o600)) })
	wantRequests(t, "chmod", got, map[string]uint64{"LOOKUP": 1, "SETATTR": 1, "GETATTR": 1})
}

// TestNoOpenLearnt: a mount in which files are only created tells of few of their ends, wherever they are created, and the kernel
// is told while somebody uses the mount anyway.
func TestNoOpenLearnt(t *testing.T) {
	m := mountUnion(t, nil, func(c *serverConfig) { c.Data = DataNoOpen })
	create := func(dir string, from, to int) {
		for i := from; i < to; i++ {
			fd, err := unix.Open(fmt.Sprintf("%s/f%d", dir, i), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644)
			must(t, err)
			must(t, unix.Close(fd))
		}
	}
	must(t, os.Mkdir(m.path("dir"), 0o755))
	create(m.path("."), 0, 2*probeAfter) // not in the root: the probe is looked up there
	got := m.requests(func() { create(m.path("."), 100, 100+probeAfter) })
	if got["RELEASE"] == 0 {
		t.Fatalf("the kernel knows before it could be told: %v", got)
	}
	got = m.requests(func() { create(m.path("dir"), 0, 4*probeAfter) })
	if got["CREATE"] != 4*probeAfter || got["RELEASE"] > 2 || got["OPEN"] != 1 {
		t.Errorf("requests %v", got)
	}
	if _, err := os.Lstat(m.path(probeName)); !os.IsNotExist(err) {
		t.Errorf("the probe file: %v", err)
	}
	if got := len(listDir(t, m.path("dir"))); got != 4*probeAfter {
		t.Errorf("%d files", got)
	}
}

// TestRequestsPassthrough: data never passes through the server.
func TestRequestsPassthrough(t *testing.T) {
	m := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "content") },
		func(c *serverConfig) { c.Data = DataPassthrough })
	readFile(t, m.path("file"))
	got := m.requests(func() { readFile(t, m.path("file")) })
	delete(got, "GETATTR") // the access time
	delete(got, "LOOKUP")  // the machine's caches may have been dropped
	wantRequests(t, "read", got, map[string]uint64{"OPEN": 1, "RELEASE": 2})
	got = m.requests(func() { writeFile(t, m.path("new"), "content") })
	wantRequests(t, "create", got, map[string]uint64{
		"LOOKUP": 1, "CREATE": 1, "GETXATTR": 1, "GETATTR": 1, "RELEASE": 2, "FLUSH": 1,
	})
	if got := readFile(t, m.path("new")); got != "content" {
		t.Errorf("read %q", got)
	}
	if got := readFile(t, m.Upper+"/new"); got != "content" {
		t.Errorf("the upper has %q", got)
	}
}

// TestListings: a cached listing never outlives a change made through the mount.
func TestListings(t *testing.T) {
	m := mountUnion(t, func(lower string) {
		must(t, os.Mkdir(lower+"/dir", 0o755))
		must(t, os.Mkdir(lower+"/other", 0o755))
		writeFile(t, lower+"/dir/a", "a")
	}, nil)
	dir := m.path("dir")
	want := func(names ...string) {
		t.Helper()
		for range 2 {
			if got := listDir(t, dir); !slices.Equal(got, names) {
				t.Fatalf("listing %v, want %v", got, names)
			}
		}
	}
	want("a")
	writeFile(t, dir+"/b", "")
	want("a", "b")
	must(t, os.Mkdir(dir+"/c", 0o755))
	want("a", "b", "c")
	must(t, os.Remove(dir+"/b"))
	want("a", "c")
	must(t, os.Symlink("x", dir+"/s"))
	want("a", "c", "s")
	must(t, os.Rename(dir+"/s", dir+"/r"))
	want("a", "c", "r")
	must(t, os.Link(dir+"/a", dir+"/l"))
	want("a", "c", "l", "r")
	must(t, os.Remove(dir+"/l"))
	must(t, os.Remove(dir+"/c"))
	want("a", "r")
	must(t, os.Rename(dir+"/r", m.path("other/r")))
	want("a")
	if got := listDir(t, m.path("other")); !slices.Equal(got, []string{"r"}) {
		t.Errorf("listing of the new parent %v", got)
	}
	must(t, unix.Mkfifo(dir+"/p", 0o600))
	want("a", "p")
	must(t, os.Remove(dir+"/a"))
	want("p")
}

// TestListingsBesideChanges: who made a name sees it in a listing, and who removed it does not, whoever else lists the directory
// meanwhile.
func TestListingsBesideChanges(t *testing.T) {
	m := mountUnion(t, func(lower string) {
		must(t, os.Mkdir(lower+"/dir", 0o755))
		for i := range 300 {
			writeFile(t, fmt.Sprintf("%s/dir/old%d", lower, i), "")
		}
	}, nil)
	end := time.Now().Add(2 * time.Second)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for round := 0; time.Now().Before(end) && !t.Failed(); round++ {
				name := fmt.Sprintf("new%d-%d", i, round)
				path := m.path("dir/" + name)
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Error(err)
				}
				if list, err := os.ReadDir(m.path("dir")); err != nil || !listed(list, name) {
					t.Errorf("%s is not in the listing that follows its making: %d names, %v", name, len(list), err)
				}
				if err := os.Remove(path); err != nil {
					t.Error(err)
				}
				if list, err := os.ReadDir(m.path("dir")); err != nil || listed(list, name) {
					t.Errorf("%s is in the listing that follows its removal: %d names, %v", name, len(list), err)
				}
			}
		})
	}
	wg.Wait()
	time.Sleep(1100 * time.Millisecond) // union's readerDelay: until then no listing is kept
	listDir(t, m.path("dir"))
	if got := listDir(t, m.path("dir")); len(got) != 300 {
		t.Errorf("%d names when all is quiet", len(got))
	}
}

func listed(list []os.DirEntry, name string) bool {
	return slices.ContainsFunc(list, func(e os.DirEntry) bool { return e.Name() == name })
}

// TestBigDirectory lists more names than fit one request, with the offsets of both kinds of listing.
func TestBigDirectory(t *testing.T) {
	const count = 5000
	m := mountUnion(t, func(lower string) {
		must(t, os.Mkdir(lower+"/dir", 0o755))
		for i := range count {
			writeFile(t, fmt.Sprintf("%s/dir/file-%04d", lower, i), "")
		}
	}, nil)
	for range 3 {
		names := listDir(t, m.path("dir"))
		if len(names) != count || names[0] != "file-0000" || names[count-1] != fmt.Sprintf("file-%04d", count-1) {
			t.Fatalf("%d names", len(names))
		}
		for _, n := range names[:300] {
			_, err := os.Stat(filepath.Join(m.Target, "dir", n))
			must(t, err)
		}
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	}
}

// TestForget: the kernel's cache is all that keeps nodes.
func TestForget(t *testing.T) {
	const count = 3000
	m := mountUnion(t, func(lower string) {
		for i := range count {
			writeFile(t, fmt.Sprintf("%s/f%d", lower, i), "")
		}
	}, nil)
	for i := range count {
		_, err := os.Stat(m.path(fmt.Sprintf("f%d", i)))
		must(t, err)
	}
	// Some may be forgotten already, if the machine is short of memory.
	if n := m.state().Nodes; n > count+1 {
		t.Errorf("%d nodes, want at most %d", n, count)
	}
	// Each round drops a part, and the requests that tell of it come behind it.
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
		if m.state().Nodes < count/10 {
			return
		}
	}
	t.Errorf("%d nodes after the kernel's caches were dropped", m.state().Nodes)
}

// TestTimeoutZero: everything is asked for again.
func TestTimeoutZero(t *testing.T) {
	m := mountUnion(t, func(lower string) { writeFile(t, lower+"/file", "old") },
		func(c *serverConfig) { c.Timeout = 0 })
	readFile(t, m.path("file"))
	got := m.requests(func() {
		_, err := os.Stat(m.path("file"))
		must(t, err)
		listDir(t, m.Target)
	})
	if got["LOOKUP"]+got["GETATTR"] == 0 || got["READDIR"]+got["READDIRPLUS"] == 0 {
		t.Errorf("requests %v", got)
	}
}
