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
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// stages lists the staging directories below a work directory, and whatever else lies there.
func stages(t testing.TB, dir string) []string {
	t.Helper()
	return names(t, filepath.Join(dir, "work"))
}

func TestWorkFeatures(t *testing.T) {
	all := abilities{
		names: ovl.Trusted(), FileFeatures: cow.FileFeatures{Tmpfile: true, StageUnnamed: true, ExactMode: true},
		WhiteoutFeatures: cow.WhiteoutFeatures{Mknod: true, Rename: true, Exchange: true},
	}
	if testenv.InUserNamespace() {
		all.names = ovl.User()
		if got := abilitiesOf(t, openWork(t, testenv.Scratch(t), cow.WorkOptions{})); got != all {
			t.Errorf("in a user namespace: %+v, want %+v", got, all)
		}
		return
	}
	durable := all
	durable.durable = true
	named := durable
	named.StageUnnamed = false
	for _, c := range []struct {
		about, dir string
		want       abilities
	}{
		{"tmpfs", testenv.Scratch(t), all},
		{"ext4", testenv.Ext4(t, 16<<20), durable},
		{"xfs", testenv.XFS(t), durable},
		{"btrfs", testenv.Btrfs(t, 256<<20), named},
	} {
		t.Run(c.about, func(t *testing.T) {
			w := openWork(t, c.dir, cow.WorkOptions{})
			for range 2 {
				if got := abilitiesOf(t, w); got != c.want {
					t.Errorf("%+v, want %+v", got, c.want)
				}
			}
			user := openWork(t, c.dir, cow.WorkOptions{UserXattr: true})
			c.want.names = ovl.User()
			if got := abilitiesOf(t, user); got != c.want {
				t.Errorf("with userxattr: %+v, want %+v", got, c.want)
			}
			for _, name := range stages(t, c.dir) {
				p := filepath.Join(c.dir, "work", name)
				if left := names(t, p); len(left) > 0 || strings.HasPrefix(xattr(p, w.Names.Opaque), "y") {
					t.Errorf("trying left %q", left)
				}
			}
		})
	}
	t.Run("rootless", func(t *testing.T) { testenv.RunInUserNamespace(t, "^TestWorkFeatures$") })
}

// TestWorkBelowACL: a default ACL around the work directory, which is for what others make there, does not get to copies.
func TestWorkBelowACL(t *testing.T) {
	dir := testenv.Scratch(t)
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x06\x00\x01\x00\x00\x00" +
		"\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	must(t, unix.Setxattr(dir, "system.posix_acl_default", []byte(acl), 0))
	w := openWork(t, dir, cow.WorkOptions{})
	if got := abilitiesOf(t, w); !got.Tmpfile || !got.ExactMode {
		t.Fatalf("%+v", got)
	}
	fd, err := new(sys.Mutator).Tmpfile(stageOf(t, w), unix.O_RDWR, 0o647)
	must(t, err)
	defer unix.Close(fd)
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	if st.Mode&0o7777 != 0o647 {
		t.Errorf("mode %o", st.Mode&0o7777)
	}
	if _, err := unix.Fgetxattr(fd, "system.posix_acl_access", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the staged file has an ACL: %v", err)
	}
}

// TestWorkUmask: where a umask takes bits of the mode away, that is found out.
func TestWorkUmask(t *testing.T) {
	old := unix.Umask(0o022)
	defer unix.Umask(old)
	if got := abilitiesOf(t, openWork(t, testenv.Scratch(t), cow.WorkOptions{})); got.ExactMode {
		t.Errorf("%+v", got)
	}
}

// TestWorkFullDisk: what a full disk keeps from being tried is tried again.
func TestWorkFullDisk(t *testing.T) {
	testenv.CheckLeaks(t)
	disk := testenv.Scratch(t)
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "nr_inodes=8"))
	t.Cleanup(func() { testenv.Unmount(t, disk) })
	w := openWork(t, disk, cow.WorkOptions{})
	last := fill(t, disk)
	if err := w.BeginData(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("staging on a full disk: %v", err)
	}
	must(t, os.Remove(last), w.BeginData())
	fill(t, disk)
	for range 2 {
		if _, err := w.Files(); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("unnamed files on a full disk: %v", err)
		}
		if _, err := w.Whiteouts(); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("whiteouts on a full disk: %v", err)
		}
	}
	must(t, os.Remove(filepath.Join(disk, "0")), os.Remove(filepath.Join(disk, "1")))
	if got := abilitiesOf(t, w); !got.Mknod || !got.Rename || !got.Tmpfile {
		t.Errorf("later: %+v", got)
	}
	w.Close()
}

// TestWorkOpenFullDisk: a work directory that was in use can be opened on a full disk, which could not be cleaned up otherwise; what
// a killed server left in it makes the room for the staging directory.
func TestWorkOpenFullDisk(t *testing.T) {
	testenv.CheckLeaks(t)
	disk := testenv.Scratch(t)
	must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "nr_inodes=8"))
	t.Cleanup(func() { testenv.Unmount(t, disk) })
	left := filepath.Join(disk, "work", cow.StagePrefix+"left")
	must(t, os.MkdirAll(left, 0o700))
	fill(t, disk)
	w := openWork(t, disk, cow.WorkOptions{})
	if got := stages(t, disk); len(got) != 1 || got[0] == filepath.Base(left) {
		t.Errorf("staging directories %q", got)
	}
	w.Close()
	fill(t, disk)
	w = openWork(t, disk, cow.WorkOptions{})
	if _, err := w.Stage(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("staging on a full disk: %v", err)
	}
	must(t, os.Remove(filepath.Join(disk, "0")), w.BeginData())
	w.Close()
}

// fill makes files below disk until no inode is left, and returns the path of the last one.
func fill(t *testing.T, disk string) (last string) {
	t.Helper()
	for i := 0; ; i++ {
		p := filepath.Join(disk, fmt.Sprint(i))
		err := unix.Mknod(p, unix.S_IFREG, 0)
		if errors.Is(err, unix.ENOSPC) {
			return last
		}
		if !errors.Is(err, unix.EEXIST) {
			must(t, err)
			last = p
		}
	}
}

// TestWorkInUse: a mount that stages nothing is seen too.
func TestWorkInUse(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	w := openWork(t, dir, cow.WorkOptions{})
	f, err := os.Open(filepath.Join(dir, "work"))
	must(t, err)
	defer f.Close()
	if !cow.InUse(int(f.Fd())) || len(stages(t, dir)) != 0 || !w.Alone() {
		t.Errorf("one mount: in use %v, stages %q, alone %v", cow.InUse(int(f.Fd())), stages(t, dir), w.Alone())
	}
	w.Close()
	if cow.InUse(int(f.Fd())) {
		t.Error("in use after its end")
	}
}

func TestWorkStages(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	must(t, os.Chmod(dir, 0o2755)) // what is staged must not inherit the group
	base, err := layer.Open(dir)
	must(t, err)
	defer base.Close()
	w, err := cow.OpenWork(base, cow.WorkOptions{})
	must(t, err)
	if early := stages(t, dir); len(early) != 0 {
		t.Errorf("before anything is staged: %q", early)
	}
	var st unix.Stat_t
	must(t, unix.Fstat(stageOf(t, w), &st))
	own := stages(t, dir)
	if len(own) != 1 {
		t.Fatalf("staging directories %q", own)
	}
	if st.Mode&0o7777 != 0o700 {
		t.Errorf("the staging directory has mode %o", st.Mode&0o7777)
	}
	seen := make(map[string]bool)
	for range 100 {
		name := w.TempName()
		must(t, unix.Mkdirat(w.StageFD(), name, 0o700))
		if seen[name] {
			t.Fatalf("%q is given twice", name)
		}
		seen[name] = true
	}
	name := w.TempName()
	must(t, plant(filepath.Join(dir, "work", own[0], name)))
	w.Discard(name)
	w.Discard("absent")
	if got := names(t, filepath.Join(dir, "work", own[0])); len(got) != len(seen) {
		t.Errorf("after a discard %d objects are staged, want %d", len(got), len(seen))
	}
	w.Close()
	w.Close()
	if left := stages(t, dir); len(left) != 0 {
		t.Errorf("after Close: %q", left)
	}
}

// plant makes a tree of everything that may be staged.
func plant(dir string) error {
	return errors.Join(
		os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o700),
		os.WriteFile(filepath.Join(dir, "a/b/file"), []byte("x"), 0o400),
		os.Symlink("/", filepath.Join(dir, "a/root")),
		unix.Mknod(filepath.Join(dir, "a/wh"), unix.S_IFCHR, 0),
		os.Chmod(filepath.Join(dir, "a/b"), 0),
	)
}

// TestWorkSweep: what a process staged that was killed goes with the next mount, as do the leftovers of other overlays; what a
// live process staged stays, and so does what is no staging.
func TestWorkSweep(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), envChild+"="+dir)
	stdin, err := child.StdinPipe()
	must(t, err)
	defer stdin.Close()
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "staged\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	live := stages(t, dir)
	if len(live) != 1 {
		t.Fatalf("the other process made %q", live)
	}
	must(t, plant(filepath.Join(dir, "work", live[0], "more")))
	must(t, plant(filepath.Join(dir, "work/plyfs-dead")), plant(filepath.Join(dir, "work/#1a")), plant(filepath.Join(dir, "index/x")),
		os.WriteFile(filepath.Join(dir, "work/#2b"), nil, 0o600), os.Symlink("..", filepath.Join(dir, "work/up")),
		os.WriteFile(filepath.Join(dir, "other"), nil, 0o600), os.Mkdir(filepath.Join(dir, "work/incompat"), 0o700))

	w := openWork(t, dir, cow.WorkOptions{})
	stageOf(t, w)
	own := func() []string {
		return slices.DeleteFunc(stages(t, dir), func(n string) bool { return n == "incompat" || n == live[0] })
	}
	if got := own(); len(got) != 1 {
		t.Errorf("while the other process lives: %q", got)
	}
	if got := names(t, filepath.Join(dir, "work", live[0])); len(got) != 3 {
		t.Errorf("of what the other process staged, %q is left", got)
	}
	if w.Alone() {
		t.Error("another mount is not seen")
	}
	must(t, child.Process.Kill())
	_ = child.Wait() // killed
	if !w.Alone() {
		t.Error("a dead mount counts as another")
	}
	second := openWork(t, dir, cow.WorkOptions{})
	if got := stages(t, dir); slices.Contains(got, live[0]) || len(got) != 3 {
		t.Errorf("after the other process was killed: %q", got)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"index", "other", "work"}) {
		t.Errorf("the work directory holds %q", got)
	}
	w.Close()
	second.Close()
}

func TestWorkTwoUsers(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	a, b := openWork(t, dir, cow.WorkOptions{}), openWork(t, dir, cow.WorkOptions{})
	if a.Alone() || b.Alone() {
		t.Error("one does not see the other")
	}
	wa, err := a.Whiteout()
	must(t, err)
	wb, err := b.Whiteout()
	must(t, err)
	c := openWork(t, dir, cow.WorkOptions{})
	c.Close()
	b.Discard(wb)
	b.Close()
	var st unix.Stat_t
	must(t, unix.Fstatat(a.StageFD(), wa, &st, unix.AT_SYMLINK_NOFOLLOW))
	if !a.Alone() {
		t.Error("an ended mount counts as another")
	}
	a.Close()
	if left := stages(t, dir); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// Mounts that begin and end at the same moment sweep each other's new directories.
func TestWorkAtOnce(t *testing.T) {
	testenv.CheckLeaks(t)
	const mounts, rounds = 8, 40
	dir := testenv.Scratch(t)
	base := openLayer(t, dir)
	var wg sync.WaitGroup
	for range mounts {
		wg.Go(func() {
			for range rounds {
				w, err := cow.OpenWork(base, cow.WorkOptions{})
				if err != nil {
					t.Error(err)
					continue
				}
				name, err := w.Whiteout()
				var st unix.Stat_t
				if err != nil || unix.Fstatat(w.StageFD(), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
					t.Errorf("what was staged is gone: %q, %v", name, err)
				}
				w.Close()
			}
		})
	}
	wg.Wait()
	if left := stages(t, dir); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	must(t, base.Close())
}

func TestWorkVolatile(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	base := openLayer(t, dir)
	w, err := cow.OpenWork(base, cow.WorkOptions{Volatile: true})
	must(t, err)
	w.Close()
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(dir, "work/incompat/volatile/dirty"), &st)) // cf. overlayfs super.c ovl_create_volatile_dirty
	for _, o := range []cow.WorkOptions{{}, {Volatile: true}} {
		w, err := cow.OpenWork(base, o)
		if err == nil {
			w.Close()
		}
		if !errors.Is(err, cow.ErrVolatileLeft) || !strings.Contains(fmt.Sprint(err), dir) {
			t.Errorf("after a volatile mount: %v", err)
		}
	}
	if got := stages(t, dir); !slices.Equal(got, []string{"incompat"}) {
		t.Errorf("a refused mount left %q", got)
	}
	kernel := func() error {
		m, u := testenv.Scratch(t), filepath.Join(filepath.Dir(dir), "upper")
		must(t, os.MkdirAll(u, 0o755))
		defer os.RemoveAll(u)
		err := testenv.MountOverlay(testenv.Overlay{
			Lowers: []string{testenv.Scratch(t)}, Upper: u, Work: dir, Options: []string{"volatile"},
		}, m)
		if err == nil {
			testenv.Unmount(t, m)
		}
		return err
	}
	if err := kernel(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("the kernel mounts after a volatile mount: %v", err)
	}
	must(t, os.RemoveAll(filepath.Join(dir, "work/incompat/volatile")))
	must(t, kernel())
	if _, err := cow.OpenWork(base, cow.WorkOptions{}); !errors.Is(err, cow.ErrVolatileLeft) {
		t.Errorf("after a volatile mount of the kernel: %v", err)
	}
	must(t, os.RemoveAll(filepath.Join(dir, "work/incompat/volatile")))
	again, err := cow.OpenWork(base, cow.WorkOptions{})
	must(t, err)
	again.Close()
	must(t, base.Close())
}

// What a later overlay marked as beyond those before it is not mounted (cf. overlayfs readdir.c ovl_workdir_cleanup_recurse).
func TestWorkIncompat(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	must(t, os.MkdirAll(filepath.Join(dir, "work/incompat/later"), 0o700))
	base := openLayer(t, dir)
	w, err := cow.OpenWork(base, cow.WorkOptions{})
	if err == nil {
		w.Close()
	}
	if !errors.Is(err, unix.EINVAL) || errors.Is(err, cow.ErrVolatileLeft) || !strings.Contains(fmt.Sprint(err), "later") {
		t.Errorf("an unknown feature: %v", err)
	}
	must(t, base.Close())
}

func TestWorkIndex(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	base := openLayer(t, dir)
	if fd, err := cow.OpenIndex(base); fd != -1 || !errors.Is(err, unix.ENOENT) {
		t.Errorf("before there is one: %d, %v", fd, err)
	}
	w := openWork(t, dir, cow.WorkOptions{})
	if fd := w.IndexFD(); fd != -1 {
		t.Errorf("before there is one: %d", fd)
	}
	made, err := w.MakeIndex()
	must(t, err)
	if fd := w.IndexFD(); fd != made {
		t.Errorf("the index is %d, then %d", made, fd)
	}
	if fd, err := w.MakeIndex(); fd != made || err != nil {
		t.Errorf("the index is %d, then %d, %v", made, fd, err)
	}
	other := openWork(t, dir, cow.WorkOptions{})
	fd := other.IndexFD()
	only, err := cow.OpenIndex(base)
	must(t, err)
	var st [4]unix.Stat_t
	must(t, unix.Fstat(made, &st[0]), unix.Fstat(fd, &st[1]), unix.Fstat(only, &st[2]), unix.Stat(filepath.Join(dir, "index"), &st[3]))
	if st[0].Ino != st[1].Ino || st[0].Ino != st[2].Ino || st[0].Ino != st[3].Ino || st[3].Mode&0o7777 != 0o700 {
		t.Errorf("index directories %d, %d, %d, %d, mode %o", st[0].Ino, st[1].Ino, st[2].Ino, st[3].Ino, st[3].Mode)
	}
	unix.Close(only)
	w.Close()
	other.Close()
	must(t, base.Close())
}

func TestWorkUnsyncedRecord(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	if cow.BootID() != strings.TrimSpace(string(boot)) {
		t.Errorf("boot %q, want %q", cow.BootID(), boot)
	}
	w := openWork(t, dir, cow.WorkOptions{})
	if got, err := w.UnsyncedBoot(); got != "" || err != nil {
		t.Errorf("without a record: %q, %v", got, err)
	}
	must(t, w.ForgetUnsynced(), w.NoteUnsynced(), w.NoteUnsynced())
	w.Close()
	w = openWork(t, dir, cow.WorkOptions{})
	if got, err := w.UnsyncedBoot(); got != cow.BootID() || err != nil {
		t.Errorf("in the next mount: %q, %v", got, err)
	}
	must(t, w.ForgetUnsynced())
	if got, err := w.UnsyncedBoot(); got != "" || err != nil {
		t.Errorf("after it was forgotten: %q, %v", got, err)
	}
	// The machine went down before the record's content was written.
	must(t, w.NoteUnsynced())
	record := slices.DeleteFunc(names(t, dir), func(n string) bool { return n == "work" })
	must(t, os.Truncate(filepath.Join(dir, record[0]), 0))
	if got, err := w.UnsyncedBoot(); got == "" || got == cow.BootID() || err != nil {
		t.Errorf("of an empty record: %q, %v", got, err)
	}
	// One that cannot be opened is not none: files with marks would be served as they are.
	path := filepath.Join(dir, record[0])
	must(t, os.Remove(path), os.Symlink("elsewhere", path))
	if got, err := w.UnsyncedBoot(); !errors.Is(err, unix.ELOOP) || !strings.Contains(err.Error(), path) {
		t.Errorf("of a record that cannot be opened: %q, %v", got, err)
	}
	w.Close()
}

func TestWorkOpenErrors(t *testing.T) {
	testenv.CheckLeaks(t)
	dir := testenv.Scratch(t)
	write(t, filepath.Join(dir, "work"), "")
	base := openLayer(t, dir)
	if _, err := cow.OpenWork(base, cow.WorkOptions{}); !errors.Is(err, unix.ENOTDIR) || !strings.Contains(fmt.Sprint(err), dir) {
		t.Errorf("a file in its place: %v", err)
	}
	must(t, os.Remove(filepath.Join(dir, "work")), os.Symlink("/", filepath.Join(dir, "work")))
	if _, err := cow.OpenWork(base, cow.WorkOptions{}); err == nil {
		t.Error("a symlink is followed")
	}
	must(t, os.Remove(filepath.Join(dir, "work")), os.Chmod(dir, 0o755))
	err := testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error {
		_, err := cow.OpenWork(base, cow.WorkOptions{})
		return err
	})
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("as another user: %v", err)
	}
	must(t, base.Close())
}
