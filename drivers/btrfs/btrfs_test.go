package btrfs

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

const size = 256 << 20

// open opens a driver in a new directory of a file system.
func openAt(t *testing.T, root string, options map[string]string) *Driver {
	t.Helper()
	d, err := open(t.Context(), drivers.Options{
		Home: filepath.Join(root, "home"), Run: filepath.Join(testenv.Scratch(t), "run"), Options: options,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

var must = testenv.Must

// wants fails the test if err does not wrap want.
func wants(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// get returns the root of a layer for the rest of the test.
func get(t *testing.T, d *Driver, id string, o *drivers.GetOptions) string {
	t.Helper()
	root, err := d.Get(t.Context(), id, o)
	must(t, err)
	t.Cleanup(func() {
		if err := d.Put(context.WithoutCancel(t.Context()), id); err != nil {
			t.Errorf("Put %s: %v", id, err)
		}
	})
	return root
}

// fill makes an image layer whose file "f" has the given content.
func fill(t *testing.T, d *Driver, id, parent, content string) {
	t.Helper()
	must(t, d.Create(t.Context(), id, parent, nil))
	must(t, d.Fill(t.Context(), id, func(root string) error {
		return os.WriteFile(filepath.Join(root, "f"), []byte(content), 0o644)
	}))
}

// subvolumes returns how many subvolumes there are within the home.
func subvolumes(t *testing.T, d *Driver) (n int) {
	t.Helper()
	info, err := sys.BtrfsSubvolume(d.fd)
	must(t, err)
	for todo := []uint64{info.ID}; len(todo) > 0; {
		children, err := sys.BtrfsChildren(d.fd, todo[0])
		must(t, err)
		n += len(children)
		todo = todo[1:]
		for _, c := range children {
			todo = append(todo, c.ID)
		}
	}
	return n
}

func TestImageLayersAreSealed(t *testing.T) {
	d := openAt(t, testenv.Btrfs(t, size), nil)
	fill(t, d, "base", "", "1")
	wants(t, "write", os.WriteFile(filepath.Join(d.rootPath("base"), "f"), nil, 0), unix.EROFS)
	must(t, d.Create(t.Context(), "empty", "base", nil))
	root := get(t, d, "empty", nil)
	wants(t, "write to a layer without content of its own", os.WriteFile(filepath.Join(root, "g"), nil, 0o644), unix.EROFS)
	wants(t, "fill a layer in use", d.Fill(t.Context(), "empty", nil), drivers.ErrInUse)
	must(t, d.CreateReadWrite(t.Context(), "c", "empty", nil))
	must(t, os.WriteFile(filepath.Join(get(t, d, "c", nil), "g"), nil, 0o644))
	wants(t, "fill a writable layer", d.Fill(t.Context(), "c", nil), drivers.ErrInvalid)
}

func TestReadOnlyMount(t *testing.T) {
	root := testenv.Btrfs(t, size)
	d := openAt(t, root, nil)
	fill(t, d, "base", "", "1")
	must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
	dir, err := d.Get(t.Context(), "c", &drivers.GetOptions{ReadOnly: true})
	must(t, err)
	wants(t, "write", os.WriteFile(filepath.Join(dir, "g"), nil, 0o644), unix.EROFS)
	_, err = d.Get(t.Context(), "c", nil)
	wants(t, "the same layer, writable", err, drivers.ErrInUse)
	wants(t, "remove", d.Remove(t.Context(), "c"), drivers.ErrInUse)

	again, err := open(t.Context(), drivers.Options{Home: d.home, Run: testenv.Scratch(t)})
	must(t, err)
	must(t, again.Close())

	f, err := os.Open(filepath.Join(dir, "f"))
	must(t, err)
	wants(t, "put a busy mount", d.Put(t.Context(), "c"), drivers.ErrInUse)
	must(t, f.Close())
	must(t, d.Put(t.Context(), "c"))
	wants(t, "second put", d.Put(t.Context(), "c"), drivers.ErrInvalid)
	if _, err := os.Lstat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
}

// A failure, and a kill, in the middle of unpacking leave a layer that is in no list and goes with Cleanup.
func TestInterruptedFill(t *testing.T) {
	d := openAt(t, testenv.Btrfs(t, size), nil)
	must(t, d.Create(t.Context(), "half", "", nil))
	broken := errors.New("broken off")
	err := d.Fill(t.Context(), "half", func(root string) error {
		return errors.Join(os.WriteFile(filepath.Join(root, "f"), []byte("x"), 0o644), broken)
	})
	wants(t, "Fill", err, broken)
	if ok, err := d.Exists(t.Context(), "half"); !ok || err != nil {
		t.Errorf("after a failure: exists %v, %v", ok, err)
	}
	_, err = d.Get(t.Context(), "half", nil)
	wants(t, "Get", err, drivers.ErrDamaged)
	wants(t, "child", d.Create(t.Context(), "child", "half", nil), drivers.ErrDamaged)
	wants(t, "fill again", d.Fill(t.Context(), "half", nil), drivers.ErrDamaged)
	must(t, d.List(t.Context(), func(i drivers.Info) error {
		t.Errorf("List names %v", i)
		return nil
	}))
	// What processes that were killed while they created and removed leave.
	for _, left := range []string{stagePrefix + "1", layersDir + "/removed"} {
		must(t, os.Mkdir(filepath.Join(d.home, left), 0o700))
		must(t, d.makeRoot(filepath.Join(d.home, left), record{}))
	}
	if ok, err := d.Exists(t.Context(), "removed"); ok || err != nil {
		t.Errorf("half removed: exists %v, %v", ok, err)
	}
	must(t, os.Mkdir(filepath.Join(d.home, stagePrefix+"3"), 0o700))
	must(t, d.Cleanup(t.Context()))
	if n := subvolumes(t, d); n != 0 {
		t.Errorf("%d subvolumes are left", n)
	}
	if ok, err := d.Exists(t.Context(), "half"); ok || err != nil {
		t.Errorf("after Cleanup: exists %v, %v", ok, err)
	}
	for _, dir := range []string{"*-*", layersDir + "/*", mountsDir + "/*"} {
		left, err := filepath.Glob(filepath.Join(d.home, dir))
		if err != nil || len(left) > 0 {
			t.Errorf("%q left, %v", left, err)
		}
	}
}

// Subvolumes of a container are removed with it, deeper than a path is long and with read-only ones on the way.
func TestNestedSubvolumes(t *testing.T) {
	d := openAt(t, testenv.Btrfs(t, size), nil)
	must(t, d.CreateReadWrite(t.Context(), "c", "", nil))
	fd, err := openDir(unix.AT_FDCWD, d.rootPath("c"))
	must(t, err)
	must(t, sys.BtrfsCreate(fd, "ro"))
	ro, err := openDir(fd, "ro")
	must(t, err)
	must(t, sys.BtrfsCreate(ro, "inner"))
	must(t, sys.BtrfsSetReadOnly(ro))
	unix.Close(ro)
	deep, err := openDir(fd, ".")
	must(t, err)
	for range 20 {
		name := strings.Repeat("d", unix.NAME_MAX)
		must(t, unix.Mkdirat(deep, name, 0o755))
		next, err := openDir(deep, name)
		must(t, err)
		unix.Close(deep)
		deep = next
	}
	must(t, sys.BtrfsCreate(deep, "s"))
	unix.Close(deep)
	must(t, sys.BtrfsSetReadOnly(fd))
	unix.Close(fd)
	if n := subvolumes(t, d); n != 4 {
		t.Fatalf("%d subvolumes, want 4", n)
	}
	must(t, d.Remove(t.Context(), "c"))
	if n := subvolumes(t, d); n != 0 {
		t.Errorf("%d subvolumes are left", n)
	}
}

func TestQuota(t *testing.T) {
	for _, mode := range []string{quotaSimple, quotaFull} {
		t.Run(mode, func(t *testing.T) {
			d := openAt(t, testenv.Btrfs(t, size), map[string]string{"btrfs.quota": mode})
			must(t, d.Create(t.Context(), "base", "", nil))
			must(t, d.Fill(t.Context(), "base", func(root string) error {
				return writeRandom(filepath.Join(root, "big"), 16<<20)
			}))
			must(t, d.CreateReadWrite(t.Context(), "c", "base", &drivers.CreateOptions{Quota: drivers.Quota{Bytes: 8 << 20}}))
			if got, err := sys.BtrfsQuotaMode(d.fd); err != nil || got.String() != mode {
				t.Errorf("accounting is %v, %v", got, err)
			}
			root := get(t, d, "c", nil)
			must(t, writeRandom(filepath.Join(root, "a"), 4<<20))
			wants(t, "more than the quota", writeRandom(filepath.Join(root, "b"), 8<<20), unix.EDQUOT)
			must(t, os.Remove(filepath.Join(root, "b")))
			must(t, os.Remove(filepath.Join(root, "big")))
			must(t, unix.Syncfs(d.fd))
			must(t, writeRandom(filepath.Join(root, "c"), 2<<20))
			m, err := d.Metadata(t.Context(), "c")
			if err != nil || m["quota"] != "8388608" {
				t.Errorf("metadata %v, %v", m, err)
			}
			err = d.CreateReadWrite(t.Context(), "i", "", &drivers.CreateOptions{Quota: drivers.Quota{Inodes: 5}})
			wants(t, "quota of inodes", err, drivers.ErrNotSupported)
		})
	}
	d := openAt(t, testenv.Btrfs(t, size), map[string]string{"btrfs.quota": quotaOff})
	err := d.CreateReadWrite(t.Context(), "c", "", &drivers.CreateOptions{Quota: drivers.Quota{Bytes: 8 << 20}})
	wants(t, "quota turned off", err, drivers.ErrNotSupported)
	if n := subvolumes(t, d); n != 0 {
		t.Errorf("%d subvolumes are left", n)
	}
}

func writeRandom(path string, n int) error {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = bytes.NewReader(b).WriteTo(f)
	return errors.Join(err, f.Sync(), f.Close())
}

func TestUsage(t *testing.T) {
	d := openAt(t, testenv.Btrfs(t, size), nil)
	must(t, d.Create(t.Context(), "base", "", nil))
	must(t, d.Fill(t.Context(), "base", func(root string) error {
		return errors.Join(writeRandom(filepath.Join(root, "big"), 4<<20), os.Mkdir(filepath.Join(root, "dir"), 0o755))
	}))
	// The walk goes by times: what changes has to get others, from a clock that may be as coarse as 10 ms.
	time.Sleep(20 * time.Millisecond)
	must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
	root := get(t, d, "c", nil)
	must(t, writeRandom(filepath.Join(root, "dir", "new"), 1<<20))
	must(t, os.Link(filepath.Join(root, "dir", "new"), filepath.Join(root, "name")))
	f, err := os.OpenFile(filepath.Join(root, "big"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 64<<10), 1<<20)
	must(t, errors.Join(err, f.Close()))

	for id, want := range map[string]drivers.Usage{
		// The root directory counts where it came into being.
		"base": {Bytes: 4 << 20, Inodes: 3},
		"c":    {Bytes: 1<<20 + 64<<10, Inodes: 1},
	} {
		if got, err := d.Usage(t.Context(), id); err != nil || got != want {
			t.Errorf("usage of %s: %+v, %v, want %+v", id, got, err, want)
		}
	}
	// By walking: the whole file of which a part changed, and the directories in which something did.
	got, err := d.usageByWalk(t.Context(), "c", "base")
	if want := (drivers.Usage{Bytes: 5 << 20, Inodes: 3}); err != nil || got != want {
		t.Errorf("usage by walking: %+v, %v, want %+v", got, err, want)
	}
}

func TestProbe(t *testing.T) {
	root := testenv.Btrfs(t, size)
	o := drivers.Options{Home: filepath.Join(root, "not", "there", "yet")}
	if rep := Factory().Probe(t.Context(), o); !rep.Usable || rep.Warning != "" {
		t.Errorf("on btrfs: %+v", rep)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	rep := Factory().Probe(t.Context(), drivers.Options{Home: testenv.Scratch(t)})
	if rep.Usable || !strings.Contains(rep.Why, "not on btrfs") || rep.Todo == "" {
		t.Errorf("on tmpfs: %+v", rep)
	}
	must(t, os.Mkdir(filepath.Join(root, "user"), 0o755))
	must(t, os.Chown(filepath.Join(root, "user"), 1000, 1000))
	o.Home = filepath.Join(root, "user", "home")
	must(t, testenv.RunAs(testenv.Cred{UID: 1000, GID: 1000}, func() error {
		rep = Factory().Probe(t.Context(), o)
		return nil
	}))
	if rep.Usable || !strings.Contains(rep.Todo, "user_subvol_rm_allowed") {
		t.Errorf("as a user: %+v", rep)
	}
	if left, err := os.ReadDir(filepath.Join(root, "user")); err != nil || len(left) > 0 {
		t.Errorf("left behind by a user: %v, %v", left, err)
	}
	rep = Factory().Probe(t.Context(), drivers.Options{Home: root, Options: map[string]string{"btrfs.quota": "some"}})
	if rep.Usable || !strings.Contains(rep.Why, "btrfs.quota=some") {
		t.Errorf("with a wrong option: %+v", rep)
	}
}

func TestOpenElsewhere(t *testing.T) {
	testenv.CheckLeaks(t)
	_, err := open(t.Context(), drivers.Options{Home: testenv.Scratch(t), Run: testenv.Scratch(t)})
	wants(t, "on tmpfs", err, drivers.ErrIncompatibleFS)
	_, err = open(t.Context(), drivers.Options{Home: "home", Run: "run"})
	wants(t, "relative", err, drivers.ErrInvalid)
	_, err = open(t.Context(), drivers.Options{Home: "/x", Run: "/y", Options: map[string]string{"size": "1"}})
	wants(t, "unknown option", err, drivers.ErrInvalid)
}

func TestRefusedOptions(t *testing.T) {
	d := openAt(t, testenv.Btrfs(t, size), nil)
	for what, c := range map[string]struct {
		o    drivers.CreateOptions
		want error
	}{
		"label":   {drivers.CreateOptions{MountLabel: "system_u:object_r:x:s0"}, drivers.ErrNotSupported},
		"option":  {drivers.CreateOptions{Options: map[string]string{"x": "y"}}, drivers.ErrInvalid},
		"minus":   {drivers.CreateOptions{Quota: drivers.Quota{Bytes: -1}}, drivers.ErrInvalid},
		"inodes":  {drivers.CreateOptions{Quota: drivers.Quota{Inodes: 1}}, drivers.ErrNotSupported},
		"tooMany": {drivers.CreateOptions{Quota: drivers.Quota{Inodes: -1}}, drivers.ErrInvalid},
	} {
		wants(t, what, d.CreateReadWrite(t.Context(), "c", "", &c.o), c.want)
	}
	wants(t, "quota of an image layer", d.Create(t.Context(), "i", "", &drivers.CreateOptions{Quota: drivers.Quota{Bytes: 1}}),
		drivers.ErrInvalid)
	wants(t, "no parent", d.Create(t.Context(), "i", "nobody", nil), drivers.ErrNotFound)
	_, err := d.Get(t.Context(), "i", &drivers.GetOptions{MountLabel: "x"})
	wants(t, "label of a mount", err, drivers.ErrNotSupported)
	if n := subvolumes(t, d); n != 0 {
		t.Errorf("%d subvolumes are left", n)
	}
}
