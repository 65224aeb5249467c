package drivertest

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

func lifeCases() []aCase {
	return []aCase{
		{"Probe", caseProbe},
		{"CreateEmpty", caseCreateEmpty},
		{"CreateBase", caseCreateBase},
		{"CreateSnap", caseCreateSnap},
		{"CreateTwice", caseCreateTwice},
		{"InvalidID", caseInvalidID},
		{"NotFound", caseNotFound},
		{"InvalidOptions", caseInvalidOptions},
		{"Exists", caseExists},
		{"List", caseList},
		{"ListDamaged", caseListDamaged},
		{"Metadata", caseMetadata},
		{"Status", caseStatus},
		{"Usage", caseUsage},
		{"RemoveTwice", caseRemoveTwice},
		{"RemoveParent", caseRemoveParent},
		{"RemoveStubborn", caseRemoveStubborn},
		{"CleanupKeeps", caseCleanupKeeps},
		{"Cancelled", caseCancelled},
	}
}

// A driver that can be opened says so, and trying leaves nothing behind.
func caseProbe(e *env) {
	o := e.s.options(e.base)
	o.Home = filepath.Join(e.base, "not", "there", "yet")
	before, err := os.ReadDir(e.base)
	e.must(err)
	if r := e.s.Factory.Probe(ctx(), o); !r.Usable || r.Why == "" {
		e.Errorf("probe: %+v, want usable, with the reason", r)
	}
	after, err := os.ReadDir(e.base)
	e.must(err)
	if len(after) != len(before) {
		e.Errorf("probe left something in %s: %v, before %v", e.base, after, before)
	}
	if left := mountsBeneath(e.T, e.base+"/not"); len(left) > 0 {
		e.Errorf("probe left mounted: %v", left)
	}
	if e.d.Name() != e.s.Factory.Name {
		e.Errorf("driver %s says that it is %s", e.s.Factory.Name, e.d.Name())
	}
}

func caseCreateEmpty(e *env) {
	e.must(e.d.Create(ctx(), "empty", "", nil))
	e.exists("empty", true)
	e.checkEmpty(e.get("empty"))
	e.put("empty")
	e.writable("rw", "")
	e.checkEmpty(e.get("rw"))
	e.put("rw")
}

func (e *env) checkEmpty(root string) {
	e.Helper()
	var st unix.Stat_t
	e.must(unix.Stat(root, &st))
	if st.Mode != unix.S_IFDIR|0o755 || st.Uid != 0 || st.Gid != 0 {
		e.Errorf("the root has mode %o, owner %d:%d, want a directory, 0755, 0:0", st.Mode, st.Uid, st.Gid)
	}
	names, err := os.ReadDir(root)
	e.must(err)
	for _, n := range names {
		// What mkfs makes in the root of ext4.
		if n.Name() != "lost+found" {
			e.Errorf("an empty layer has %q", n.Name())
		}
	}
	if !filepath.IsAbs(root) {
		e.Errorf("root %q is not absolute", root)
	}
}

// baseSteps are a small image.
func baseSteps() []step {
	return []step{
		dir("a subdir", 0o1705), chown("a subdir", 1, 2), file("a file", "data", 0o644), xattr("a file", "user.k", "v"),
		symlink("a file", "link"), dir("etc", 0o755), file("etc/passwd", "root", 0o644), link("etc/passwd", "etc/passwd-"),
	}
}

func checkBase() []step {
	return []step{holds("a file", "data"), holds("link", "data"), holds("etc/passwd-", "root")}
}

// check carries out steps, which fail if a layer does not hold what it should.
func (e *env) check(id string, steps ...step) {
	e.Helper()
	at := &place{root: e.get(id)}
	err := at.do(steps)
	e.put(id)
	if err != nil {
		e.Errorf("layer %s: %v", id, err)
	}
}

func caseCreateBase(e *env) {
	e.image("base", "", baseSteps()...)
	e.check("base", checkBase()...)
	var st unix.Stat_t
	root := e.get("base")
	e.must(unix.Lstat(filepath.Join(root, "a subdir"), &st))
	e.put("base")
	if st.Mode != unix.S_IFDIR|0o1705 || st.Uid != 1 || st.Gid != 2 {
		e.Errorf("directory has mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
}

func caseCreateSnap(e *env) {
	e.image("base", "", baseSteps()...)
	e.image("snap", "base")
	e.check("snap", checkBase()...)
	// Two of one parent know nothing of each other.
	e.writable("one", "snap")
	e.writable("two", "snap")
	e.change("one", remove("a file"), file("mine", "1", 0o644))
	e.change("two", append(checkBase(), absent("mine"), appendTo("etc/passwd", "+2"))...)
	e.check("one", holds("etc/passwd", "root"), absent("a file"))
	e.check("base", checkBase()...)
	e.check("snap", checkBase()...)
}

func caseCreateTwice(e *env) {
	e.image("l", "", file("f", "f", 0o644))
	for _, err := range []error{
		e.d.Create(ctx(), "l", "", nil), e.d.CreateReadWrite(ctx(), "l", "", nil), e.d.CreateReadWrite(ctx(), "l", "l", nil),
	} {
		e.wants(err, drivers.ErrExists)
	}
	e.check("l", holds("f", "f"))
}

// wants checks the class of an error.
func (e *env) wants(err, class error) {
	e.Helper()
	if !errors.Is(err, class) {
		e.Errorf("error %v, want one that wraps %q", err, class)
	}
}

// everyCall makes each call of a driver that takes an id.
func (e *env) everyCall(id string) map[string]error {
	d, differ := e.d, drivers.DifferOf(e.d)
	_, get := d.Get(ctx(), id, nil)
	_, exists := d.Exists(ctx(), id)
	_, metadata := d.Metadata(ctx(), id)
	_, usage := d.Usage(ctx(), id)
	_, changes := differ.Changes(ctx(), id, "")
	_, size := differ.DiffSize(ctx(), id, "")
	_, apply := differ.ApplyDiff(ctx(), id, archive(e.T), nil)
	r, diff := differ.Diff(ctx(), id, "", nil)
	if diff == nil {
		_, diff = r.Read(make([]byte, 1))
		r.Close()
	}
	return map[string]error{
		"Get": get, "Put": d.Put(ctx(),
			id), "Metadata": metadata, "Usage": usage, "Changes": changes, "DiffSize": size, "ApplyDiff": apply,
		"Diff": diff, "Exists": exists, "Remove": d.Remove(ctx(), id), "Sync": d.Sync(ctx(), id),
		"Create with this parent": d.Create(ctx(), "child", id,
			nil), "CreateReadWrite with this parent": d.CreateReadWrite(ctx(), "child", id, nil),
	}
}

func caseInvalidID(e *env) {
	e.image("l", "", file("f", "f", 0o644))
	for _, id := range []string{
		"", ".", "..", "../l", "a/b", "/l", ".tmp", "-l", "l\n", "l\x00", "l l", "é", strings.Repeat("x",
			drivers.MaxID+1), "l:1", "l,x",
	} {
		for call, err := range e.everyCall(id) {
			if id == "" && strings.Contains(call, "parent") {
				if err == nil {
					e.must(e.d.Remove(ctx(), "child"))
				}
				continue
			}
			if !errors.Is(err, drivers.ErrInvalid) {
				e.Errorf("%s of %q: %v, want invalid", call, id, err)
			}
		}
		e.wants(e.d.Create(ctx(), id, "", nil), drivers.ErrInvalid)
		e.wants(e.d.CreateReadWrite(ctx(), id, "", nil), drivers.ErrInvalid)
	}
	longest := strings.Repeat("x", drivers.MaxID)
	for _, id := range []string{longest, "0", "tmp-x", "removing-x", "l.", "a_-.b", "sha256-" + strings.Repeat("a", 64)} {
		e.image(id, "")
		e.writable("c", id)
		e.check("c", file("f", "f", 0o644))
		e.must(e.d.Remove(ctx(), "c"))
	}
}

func caseNotFound(e *env) {
	for call, err := range e.everyCall("nobody") {
		switch call {
		case "Exists", "Remove":
			e.must(err)
		default:
			if !errors.Is(err, drivers.ErrNotFound) {
				e.Errorf("%s of a layer that is not there: %v", call, err)
			}
		}
	}
	e.exists("child", false)
}

func caseInvalidOptions(e *env) {
	e.wants(e.d.Create(ctx(), "l", "", &drivers.CreateOptions{Options: map[string]string{"no such": "1"}}),
		drivers.ErrInvalid)
	e.wants(e.d.CreateReadWrite(ctx(), "l", "", &drivers.CreateOptions{Options: map[string]string{"no such": "1"}}),
		drivers.ErrInvalid)
	e.wants(e.d.Create(ctx(), "l", "", &drivers.CreateOptions{Quota: drivers.Quota{Bytes: 1 << 30}}), drivers.ErrInvalid)
	e.exists("l", false)
	o := e.s.options(e.base)
	o.Home, o.Run = filepath.Join(e.base, "second"), filepath.Join(e.base, "second-run")
	o.Options = map[string]string{"no such": "1"}
	if d, err := e.s.Factory.Open(ctx(), o); err == nil {
		e.must(d.Close())
		e.Error("opened with an unknown option")
	} else {
		e.wants(err, drivers.ErrInvalid)
	}
	o.Options, o.Home = e.s.Options, "relative/home"
	if d, err := e.s.Factory.Open(ctx(), o); err == nil {
		e.must(d.Close())
		e.Error("opened with a relative home")
	}
}

func caseExists(e *env) {
	e.exists("l", false)
	e.image("l", "")
	e.exists("l", true)
	e.reopen()
	e.exists("l", true)
	e.must(e.d.Remove(ctx(), "l"))
	e.exists("l", false)
	e.reopen()
	e.exists("l", false)
	e.image("l", "")
	e.exists("l", true)
}

func caseList(e *env) {
	e.image("base", "", file("f", "f", 0o644))
	e.image("mid", "base")
	e.writable("c", "mid")
	e.reopen()
	var got []drivers.Info
	e.must(e.d.List(ctx(), func(i drivers.Info) error {
		got = append(got, i)
		return nil
	}))
	slices.SortFunc(got, func(a, b drivers.Info) int { return strings.Compare(a.ID, b.ID) })
	want := []drivers.Info{{ID: "base"}, {ID: "c", Parent: "mid", Writable: true}, {ID: "mid", Parent: "base"}}
	if !slices.Equal(got, want) {
		e.Errorf("listed %+v, want %+v", got, want)
	}
	stop, calls := errors.New("stop"), 0
	err := e.d.List(ctx(), func(drivers.Info) error {
		calls++
		return stop
	})
	if !errors.Is(err, stop) || calls != 1 {
		e.Errorf("List ended with %v after %d calls", err, calls)
	}
}

// A layer of which the driver cannot read what it noted is listed, keeps no other from being used, and can be removed.
func caseListDamaged(e *env) {
	e.image("base", "", file("f", "f", 0o644))
	e.image("other", "", file("f", "f", 0o644))
	e.writable("c", "base")
	damaged := 0
	for _, id := range []string{"base", "c"} {
		e.must(filepath.WalkDir(filepath.Join(e.base, "home"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "layer.json" || filepath.Base(filepath.Dir(path)) != id {
				return err
			}
			damaged++
			return os.WriteFile(path, []byte("{"), 0o600)
		}))
	}
	if damaged == 0 {
		e.Fatal("the driver has no file for each layer")
	}
	e.reopen()
	got := make(map[string]bool)
	e.must(e.d.List(ctx(), func(i drivers.Info) error {
		got[i.ID] = i.Damaged != ""
		return nil
	}))
	if want := map[string]bool{"base": true, "c": true, "other": false}; !maps.Equal(got, want) {
		e.Errorf("listed as damaged: %v, want %v", got, want)
	}
	e.get("other")
	e.put("other")
	for _, id := range []string{"c", "base"} {
		e.must(e.d.Remove(ctx(), id))
		e.exists(id, false)
	}
}

func caseMetadata(e *env) {
	e.image("base", "", file("f", "f", 0o644))
	e.writable("c", "base")
	a, err := e.d.Metadata(ctx(), "c")
	e.must(err)
	e.get("c")
	b, err := e.d.Metadata(ctx(), "c")
	e.put("c")
	e.must(err)
	for k := range a {
		if _, ok := b[k]; !ok || k == "" {
			e.Errorf("key %q is gone while the layer is mounted", k)
		}
	}
	if len(a) == 0 {
		e.Error("no metadata")
	}
}

func caseStatus(e *env) {
	pairs, err := e.d.Status(ctx())
	e.must(err)
	seen := make(map[string]bool)
	for _, p := range pairs {
		if p.Label == "" || seen[p.Label] {
			e.Errorf("label %q is empty or there twice", p.Label)
		}
		seen[p.Label] = true
	}
	if len(pairs) == 0 {
		e.Error("no status")
	}
}

func caseUsage(e *env) {
	e.image("base", "", file("f", "f", 0o644))
	e.writable("c", "base")
	before, err := e.d.Usage(ctx(), "c")
	e.must(err)
	const size = 4 << 20
	e.change("c", func(at *place) error {
		return os.WriteFile(at.path("big"), noiseBytes(size), 0o644)
	})
	e.must(e.d.Sync(ctx(), "c"))
	after, err := e.d.Usage(ctx(), "c")
	e.must(err)
	if grown := after.Bytes - before.Bytes; grown < size || grown > 2*size {
		e.Errorf("a file of %d bytes made the layer grow by %d", size, grown)
	}
	if before.Inodes > 0 && after.Inodes <= before.Inodes {
		e.Errorf("inodes: %d, before a file was made %d", after.Inodes, before.Inodes)
	}
}

func noiseBytes(n int) []byte {
	b := make([]byte, n)
	src := noise{state: 42}
	_, _ = src.Read(b)
	return b
}

func caseRemoveTwice(e *env) {
	e.image("l", "", file("f", "f", 0o644))
	e.must(e.d.Remove(ctx(), "l"))
	e.must(e.d.Remove(ctx(), "l"))
	e.exists("l", false)
	// The name is free again, and nothing of the old layer shows.
	e.image("l", "", file("g", "g", 0o644))
	e.check("l", absent("f"), holds("g", "g"))
}

// A parent that another layer needs is refused, or the other stays whole.
func caseRemoveParent(e *env) {
	e.image("base", "", baseSteps()...)
	e.writable("c", "base")
	e.change("c", file("mine", "m", 0o644))
	err := e.d.Remove(ctx(), "base")
	if err != nil {
		e.wants(err, drivers.ErrInUse)
		e.exists("base", true)
		e.check("base", checkBase()...)
	}
	if e.s.Abilities.Independent && err != nil {
		e.Error("refused, although layers do not depend on each other")
	}
	e.check("c", append(checkBase(), holds("mine", "m"))...)
	e.must(e.d.Remove(ctx(), "c"))
	e.must(e.d.Remove(ctx(), "base"))
}

// What a container leaves behind does not hinder its removal.
func caseRemoveStubborn(e *env) {
	e.image("base", "", dir("d", 0o755))
	e.writable("c", "base")
	e.change("c", deep("d"), dir("locked", 0o755), file("locked/f", "f", 0o000), chmod("locked", 0), many("d", 100))
	e.must(e.d.Remove(ctx(), "c"))
	e.exists("c", false)
}

// Cleanup leaves alone what is in order, mounted or not.
func caseCleanupKeeps(e *env) {
	e.image("base", "", baseSteps()...)
	e.writable("c", "base")
	at := &place{root: e.get("c")}
	e.must(at.do([]step{file("mine", "m", 0o644)}))
	e.must(e.d.Cleanup(ctx()))
	e.must(at.do(append(checkBase(), holds("mine", "m"), file("more", "m", 0o644))))
	e.put("c")
	e.check("c", append(checkBase(), holds("mine", "m"), holds("more", "m"))...)
}

// A context that is done ends a call with its error, and nothing half is left.
func caseCancelled(e *env) {
	e.image("base", "", baseSteps()...)
	done, cancel := context.WithCancel(ctx())
	cancel()
	for call, f := range map[string]func() error{
		"Create":          func() error { return e.d.Create(done, "l", "base", nil) },
		"CreateReadWrite": func() error { return e.d.CreateReadWrite(done, "l", "base", nil) },
		"Get":             func() error { _, err := e.d.Get(done, "base", nil); return err },
		"Changes":         func() error { _, err := drivers.DifferOf(e.d).Changes(done, "base", ""); return err },
		"Remove":          func() error { return e.d.Remove(done, "base") },
	} {
		if err := f(); !errors.Is(err, context.Canceled) {
			e.Errorf("%s with a context that is done: %v", call, err)
		}
	}
	e.exists("l", false)
	e.check("base", checkBase()...)
	e.must(e.d.Create(ctx(), "half", "base", nil))
	_, err := drivers.DifferOf(e.d).ApplyDiff(done, "half", archive(e.T, member{name: "f", content: "f"}), nil)
	e.wants(err, context.Canceled)
	e.must(e.d.Remove(ctx(), "half"))
}
