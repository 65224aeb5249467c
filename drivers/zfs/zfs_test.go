//go:build !vm

package zfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// wants fails the test if err does not wrap want.
func wants(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

const listColumns = "name,origin,used,available,mountpoint,compression,type,volsize,quota,referenced,written,logicalused,usedbydataset"

func TestCommands(t *testing.T) {
	f := newFake(t)
	d := f.open()
	list := "list -Hp -o " + listColumns + " "
	step := func(what string, err error, want ...string) {
		t.Helper()
		must(t, err)
		got := f.since(0, d.base)
		// The properties of a create or clone come in the order of a map.
		for i, c := range got {
			if strings.HasPrefix(c, "create -o") || strings.HasPrefix(c, "clone -p -o") {
				words := strings.Fields(c)
				slices.Sort(words[1 : len(words)-1])
				got[i] = strings.Join(words, " ")
			}
		}
		same(t, what, got, want)
		f.write("calls", "")
	}
	f.write("calls", "")
	step("a layer without parent", d.Create(t.Context(), "base", "", nil),
		"create -o -o canmount=noauto mountpoint=legacy BASE/image/base", list+"BASE/image/base")
	step("a layer with quota", d.CreateReadWrite(t.Context(), "c", "base", &drivers.CreateOptions{Quota: drivers.Quota{Bytes: 1 << 20}}),
		"snapshot BASE/image/base@plyfs", list+"BASE/image/base@plyfs",
		"clone -o -o -o -p BASE/image/base@plyfs canmount=noauto mountpoint=legacy quota=1048576 BASE/container/c", list+"BASE/container/c")
	step("a second child", d.Create(t.Context(), "child", "base", nil),
		"clone -o -o -p BASE/image/base@plyfs canmount=noauto mountpoint=legacy BASE/image/child", list+"BASE/image/child")
	step("remove it", d.Remove(t.Context(), "child"), list+"BASE", "destroy -r BASE/image/child")
	step("a child of a writable layer", d.Create(t.Context(), "child", "c", nil),
		"snapshot BASE/container/c@S", list+"BASE/container/c@S",
		"clone -o -o -p BASE/container/c@S canmount=noauto mountpoint=legacy BASE/image/child", list+"BASE/image/child",
		"destroy -d BASE/container/c@S")
	step("remove it", d.Remove(t.Context(), "child"), list+"BASE", "destroy -r BASE/image/child")
	_, err := d.Get(t.Context(), "c", nil)
	step("mount", err)
	step("unmount", d.Put(t.Context(), "c"))
	step("sync", d.Sync(t.Context(), "c", "base"))
	_, err = d.Exists(t.Context(), "c")
	step("exists", err)
	m, err := d.Metadata(t.Context(), "c")
	step("metadata", err, list+"BASE/container/c")
	if m["quota"] != "1048576" || m["dataset"] != d.base+"/container/c" || !strings.HasPrefix(m["origin"], d.base+"/image/base@") {
		t.Errorf("metadata %v", m)
	}
	same(t, "layers", layers(t, d), []string{"base< false", "c<base true"})
	step("remove", d.Remove(t.Context(), "c"), list+"BASE", "destroy -r BASE/container/c")
	same(t, "datasets", f.datasets(d.base), []string{"image/base", "image/base@plyfs"})
	step("remove what is not there", d.Remove(t.Context(), "c"))
	step("cleanup", d.Cleanup(t.Context()), "list -rHp -t filesystem -o "+listColumns+" BASE",
		"list -rHp -t snapshot -o "+listColumns+" BASE", "list -rHp -t snapshot -o "+listColumns+" BASE", "list -rHp -t filesystem -o "+listColumns+" BASE")
}

// The parent's snapshot goes with the child, and the parent can't be removed before it.
func TestRemoveParent(t *testing.T) {
	f := newFake(t)
	d := f.open()
	must(t, d.Create(t.Context(), "base", "", nil))
	must(t, d.Fill(t.Context(), "base", fillFile("1")))
	must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
	wants(t, "remove the parent", d.Remove(t.Context(), "base"), drivers.ErrInUse)
	wants(t, "fill the parent", d.Fill(t.Context(), "base", nil), drivers.ErrInUse)
	// The pool says so too.
	err := d.destroy(t.Context(), d.datasetName("base", false), 0)
	if err == nil {
		t.Fatal("destroyed a dataset with snapshots")
	}
	must(t, d.Remove(t.Context(), "c"))
	// The snapshot that is left shows to no child what the layer was before.
	d = f.open()
	must(t, d.Fill(t.Context(), "base", fillFile("2")))
	must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
	root, err := d.Get(t.Context(), "c", nil)
	must(t, err)
	if b, err := os.ReadFile(filepath.Join(root, "f")); err != nil || string(b) != "2" {
		t.Errorf("a child of what was filled again shows %q, %v", b, err)
	}
	must(t, d.Put(t.Context(), "c"))
	must(t, d.Remove(t.Context(), "c"))
	must(t, d.Remove(t.Context(), "base"))
	if left := f.datasets(d.base); len(left) > 0 {
		t.Errorf("left in the pool: %q", left)
	}
}

func TestMounts(t *testing.T) {
	f := newFake(t)
	d := f.open()
	must(t, d.Create(t.Context(), "base", "", nil))
	must(t, d.Fill(t.Context(), "base", fillFile("1")))
	root, err := d.Get(t.Context(), "base", nil)
	must(t, err)
	wants(t, "write to an image layer", fillFile("2")(root), unix.EROFS)
	must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
	c, err := d.Get(t.Context(), "c", nil)
	must(t, err)
	must(t, fillFile("2")(c))
	wants(t, "remove what is mounted", d.Remove(t.Context(), "c"), drivers.ErrInUse)
	_, err = d.Get(t.Context(), "c", &drivers.GetOptions{ReadOnly: true})
	wants(t, "other options", err, drivers.ErrInUse)

	// After a restart.
	d = f.open()
	must(t, d.Cleanup(t.Context()))
	if b, err := os.ReadFile(filepath.Join(c, "f")); err != nil || string(b) != "2" {
		t.Errorf("after a restart the mount shows %q, %v", b, err)
	}
	busy, err := os.Open(c)
	must(t, err)
	wants(t, "unmount what is busy", d.Put(t.Context(), "c"), drivers.ErrInUse)
	must(t, busy.Close())
	must(t, d.Put(t.Context(), "c"))
	must(t, d.Put(t.Context(), "base"))
	wants(t, "put once more", d.Put(t.Context(), "base"), drivers.ErrInvalid)
	if left, err := os.ReadDir(filepath.Join(f.home, graphDir)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	f.failMount = unix.ENOENT
	_, err = d.Get(t.Context(), "c", nil)
	wants(t, "mount what was destroyed", err, drivers.ErrDamaged)
	f.failMount = unix.EPERM
	_, err = d.Get(t.Context(), "c", nil)
	wants(t, "mount without privilege", err, drivers.ErrNotSupported)
	must(t, d.Create(t.Context(), "new", "base", nil))
	wants(t, "fill without privilege", d.Fill(t.Context(), "new", nil), unix.EPERM)
	f.failMount = nil
	// Nothing was written, so it is whole.
	must(t, d.Fill(t.Context(), "new", fillFile("3")))
}

func TestInterruptedFill(t *testing.T) {
	f := newFake(t)
	d := f.open()
	must(t, d.Create(t.Context(), "half", "", nil))
	broken := errors.New("broken off")
	wants(t, "Fill", d.Fill(t.Context(), "half", func(root string) error { return errors.Join(fillFile("x")(root), broken) }), broken)
	_, err := d.Get(t.Context(), "half", nil)
	wants(t, "Get", err, drivers.ErrDamaged)
	wants(t, "child", d.Create(t.Context(), "child", "half", nil), drivers.ErrDamaged)
	same(t, "List", layers(t, d), nil)
	// The process dies while the layer is mounted.
	must(t, d.mount("half", dataset{name: d.datasetName("half", false)}, drivers.GetOptions{}))
	must(t, os.WriteFile(d.markPath("gone"), nil, 0o600))
	d = f.open()
	must(t, d.Cleanup(t.Context()))
	if left := f.datasets(d.base); len(left) > 0 {
		t.Errorf("left in the pool: %q", left)
	}
	for _, dir := range []string{graphDir, unfilledDir} {
		if left, err := os.ReadDir(filepath.Join(f.home, dir)); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

func TestBusyIsTriedAgain(t *testing.T) {
	f := newFake(t)
	d := f.open()
	must(t, d.Create(t.Context(), "l", "", nil))
	f.write("busy", "3\n")
	must(t, d.Remove(t.Context(), "l"))
	must(t, d.Create(t.Context(), "l", "", nil))
	f.write("busy", "1000000\n")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		// Once it has been tried, nobody wants it any more.
		for n := len(f.calls()); len(f.calls()) <= n+1; {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	wants(t, "cancelled", d.Remove(ctx, "l"), context.Canceled)
	d.busyWait = 0
	wants(t, "busy for ever", d.Remove(t.Context(), "l"), drivers.ErrInUse)
	f.write("busy", "0\n")
	must(t, d.Remove(t.Context(), "l"))
}

// In a pool that is full Remove returns when there is room again.
func TestRemoveAwaitsSpace(t *testing.T) {
	f := newFake(t)
	d := f.open()
	must(t, d.Create(t.Context(), "l", "", nil))
	f.write("available", "10\n11\n12\n2000\n")
	f.write("calls", "")
	must(t, d.Remove(t.Context(), "l"))
	list, set := "list -Hp -o "+listColumns+" ", "set plyfs:swept=yes BASE"
	same(t, "commands", f.since(0, d.base), []string{
		list + "BASE", list + "BASE/image/l", "destroy -r BASE/image/l",
		set, set, set, set, list + "BASE", set, list + "BASE",
	})
}

// Every command of every operation fails once, before or after its work; or it and all later ones fail, as for a process that is
// killed. Cleanup brings the pool to where the operation was not begun, or done.
func TestEveryCommandFails(t *testing.T) {
	for _, op := range []struct {
		name string
		run  func(d *Driver) error
		done []string // what List names when it is done
	}{
		{"create", func(d *Driver) error { return d.Create(t.Context(), "new", "", nil) }, []string{"base< false", "c<base true", "new< false"}},
		{"clone", func(d *Driver) error { return d.CreateReadWrite(t.Context(), "new", "base", nil) }, []string{
			"base< false", "c<base true", "new<base true",
		}},
		{"clone of a writable layer", func(d *Driver) error { return d.Create(t.Context(), "new", "c", nil) }, []string{
			"base< false", "c<base true", "new<c false",
		}},
		{"remove", func(d *Driver) error { return d.Remove(t.Context(), "c") }, []string{"base< false"}},
	} {
		for _, how := range []string{"before", "after", "on"} {
			t.Run(op.name+"/"+how, func(t *testing.T) {
				f := newFake(t)
				d := f.open()
				must(t, d.Create(t.Context(), "base", "", nil))
				for n := 1; ; n++ {
					if ok, err := d.Exists(t.Context(), "c"); err == nil && !ok {
						must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
					}
					before := layers(t, d)
					calls := len(f.calls())
					f.failAt(n, how)
					err := op.run(d)
					f.heal()
					if ran := len(f.calls()) - calls; ran < n {
						must(t, err)
						break
					}
					if how != "on" && err == nil {
						t.Fatalf("call %d failed, the operation did not", n)
					}
					d = f.open()
					must(t, d.Cleanup(t.Context()))
					got := layers(t, d)
					if !slices.Equal(got, before) && !slices.Equal(got, op.done) {
						t.Errorf("after a failure of call %d there are %q, before %q", n, got, before)
					}
					orphans := slices.DeleteFunc(f.snapshots(d.base), func(s string) bool {
						return s == "image/base@plyfs" || slices.Contains(got, "new<c false") && strings.HasPrefix(s, "container/c@")
					})
					if len(orphans) > 0 {
						t.Errorf("after a failure of call %d, snapshots are left: %q", n, orphans)
					}
					must(t, d.Remove(t.Context(), "new"))
				}
			})
		}
	}
}

func TestOpenStore(t *testing.T) {
	f := newFake(t)
	d := f.open()
	must(t, d.Create(t.Context(), "base", "", nil))
	again := f.open()
	same(t, "layers after a restart", layers(t, again), []string{"base< false"})
	if again.base != d.base || !strings.HasPrefix(d.base, "tank/store/plyfs-") {
		t.Errorf("dataset %s, then %s", d.base, again.base)
	}
	o := f.options()
	o.Options = map[string]string{optionFSName: "tank/elsewhere"}
	_, err := open(t.Context(), o, f)
	wants(t, "another dataset", err, drivers.ErrInvalid)
	for _, name := range []string{"", "a@b", "-r", "/tank", "a#b"} {
		o.Options = map[string]string{optionFSName: name}
		_, err = open(t.Context(), o, f)
		wants(t, "name "+name, err, drivers.ErrInvalid)
	}
	o.Options = map[string]string{"size": "1"}
	_, err = open(t.Context(), o, f)
	wants(t, "unknown option", err, drivers.ErrInvalid)
	// Somebody else's.
	f.write("pool/"+strings.ReplaceAll(d.base, "/", "%"), storeProperty+"=other\n")
	_, err = open(t.Context(), f.options(), f)
	wants(t, "another store's dataset", err, drivers.ErrDamaged)
	must(t, os.Remove(filepath.Join(f.dir, "pool", strings.ReplaceAll(d.base, "/", "%"))))
	_, err = open(t.Context(), f.options(), f)
	wants(t, "no dataset", err, drivers.ErrDamaged)
	must(t, os.WriteFile(filepath.Join(f.home, "zfs.json"), []byte("{"), 0o600))
	_, err = open(t.Context(), f.options(), f)
	wants(t, "damaged zfs.json", err, drivers.ErrDamaged)
}

// A beginning that fails at any command is made up for by the next.
func TestOpenFails(t *testing.T) {
	for _, how := range []string{"before", "after", "on"} {
		f := newFake(t)
		for n := 1; ; n++ {
			must(t, os.RemoveAll(f.home))
			f.failAt(n, how)
			calls := len(f.calls())
			_, err := open(t.Context(), f.options(), f)
			f.heal()
			if len(f.calls())-calls < n {
				must(t, err)
				break
			}
			if err == nil {
				t.Fatalf("call %d failed, opening did not", n)
			}
			d := f.open()
			must(t, d.Create(t.Context(), "l", "", nil))
		}
	}
}

func TestOpenElsewhere(t *testing.T) {
	f := newFake(t)
	o := f.options()
	o.Options = nil
	_, err := open(t.Context(), o, f)
	wants(t, "home on tmpfs", err, drivers.ErrIncompatibleFS)
	t.Setenv("PATH", testenv.Scratch(t))
	_, err = open(t.Context(), f.options(), f)
	wants(t, "no command", err, drivers.ErrPrerequisites)
}

func TestNameTooLong(t *testing.T) {
	_, err := newStore(testenv.Scratch(t), "tank/"+strings.Repeat("x", 120))
	wants(t, "long name", err, drivers.ErrInvalid)
}

func TestProbe(t *testing.T) {
	f := newFake(t)
	p := prober{mounter: f, device: "/dev/null"}
	rep := p.probe(t.Context(), f.options())
	if !rep.Usable || !strings.Contains(rep.Why, "tank/store") {
		t.Errorf("with a pool: %+v", rep)
	}
	if left, err := os.ReadDir(filepath.Join(f.dir, "pool")); err != nil || len(left) != 1 {
		t.Errorf("left in the pool: %v, %v", left, err)
	}
	f.failMount = unix.EPERM
	if rep = p.probe(t.Context(), f.options()); rep.Usable || !strings.Contains(rep.Why, "mount a dataset") {
		t.Errorf("without mounts: %+v", rep)
	}
	if left, err := os.ReadDir(filepath.Join(f.dir, "pool")); err != nil || len(left) != 1 {
		t.Errorf("left in the pool: %v, %v", left, err)
	}
	for what, c := range map[string]struct {
		p    prober
		o    map[string]string
		why  string
		path string
	}{
		"no module":  {prober{f, "/nonexistent"}, nil, "modprobe zfs", ""},
		"no dataset": {p, map[string]string{optionFSName: "tank/none"}, "does not exist", ""},
		"not on zfs": {p, nil, "not on zfs but on tmpfs", ""},
		"no command": {p, nil, "zfsutils-linux", testenv.Scratch(t)},
		"option":     {p, map[string]string{"x": "y"}, "option x", ""},
	} {
		t.Run(what, func(t *testing.T) {
			if c.path != "" {
				t.Setenv("PATH", c.path)
			}
			o := f.options()
			o.Options = c.o
			rep := c.p.probe(t.Context(), o)
			if rep.Usable || !strings.Contains(rep.Why, c.why) || rep.Todo == "" && what != "option" {
				t.Errorf("%+v", rep)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	f := newFake(t)
	d := f.open()
	pairs, err := d.Status(t.Context())
	must(t, err)
	if !slices.Contains(pairs, drivers.Pair{Label: "Pool health", Value: "ONLINE"}) ||
		!slices.Contains(pairs, drivers.Pair{Label: "Dataset", Value: d.base}) {
		t.Errorf("status %v", pairs)
	}
}

func TestRefusedOptions(t *testing.T) {
	f := newFake(t)
	d := f.open()
	for what, c := range map[string]struct {
		o    drivers.CreateOptions
		want error
	}{
		"label":  {drivers.CreateOptions{MountLabel: `a"b`}, drivers.ErrInvalid},
		"option": {drivers.CreateOptions{Options: map[string]string{"x": "y"}}, drivers.ErrInvalid},
		"minus":  {drivers.CreateOptions{Quota: drivers.Quota{Bytes: -1}}, drivers.ErrInvalid},
		"inodes": {drivers.CreateOptions{Quota: drivers.Quota{Inodes: 1}}, drivers.ErrNotSupported},
	} {
		wants(t, what, d.CreateReadWrite(t.Context(), "c", "", &c.o), c.want)
	}
	wants(t, "no parent", d.Create(t.Context(), "i", "nobody", nil), drivers.ErrNotFound)
	if data, err := mountData("u:r:t:s0:c1,c2"); err != nil || data != `context="u:r:t:s0:c1,c2"` {
		t.Errorf("mount data %q, %v", data, err)
	}
	if left := f.datasets(d.base); len(left) > 0 {
		t.Errorf("left in the pool: %q", left)
	}
}

func TestExplain(t *testing.T) {
	if err := explain(nil); err != nil {
		t.Errorf("no error became %v", err)
	}
	plain := errors.New("plain")
	if err := explain(plain); !errors.Is(err, plain) {
		t.Errorf("%v became %v", plain, err)
	}
}
