package drivertest

import (
	"errors"
	"maps"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

func getCases() []aCase {
	return []aCase{
		{"GetTwice", caseGetTwice},
		{"PutWithoutGet", casePutWithoutGet},
		{"RemoveMounted", caseRemoveMounted},
		{"GetOptionsDiffer", caseGetOptionsDiffer},
		{"GetReadOnly", caseGetReadOnly},
		{"ImageReadOnly", caseImageReadOnly},
		{"OpenAcrossPut", caseOpenAcrossPut},
		{"RestartMounted", caseRestartMounted},
		{"RestartUnmountedOutside", caseUnmountedOutside},
		{"ViewOfImage", caseViewOfImage},
	}
}

func caseGetTwice(e *env) {
	e.image("base", "", baseSteps()...)
	e.writable("c", "base")
	one, two := e.get("c"), e.get("c")
	if one != two {
		e.Errorf("two roots of one layer: %s, %s", one, two)
	}
	at := &place{root: one}
	e.must(at.do([]step{file("f", "f", 0o644)}))
	e.put("c")
	// The other user goes on.
	e.must(at.do(append(checkBase(), holds("f", "f"), appendTo("f", "f"))))
	e.put("c")
	e.wants(e.d.Put(ctx(), "c"), drivers.ErrInvalid)
	e.check("c", holds("f", "ff"))
	if left := mountsBeneath(e.T, e.base); !e.s.Abilities.Mountless && e.containsRoot(left, one) {
		e.Errorf("still mounted: %v", left)
	}
}

// containsRoot says whether root is among mount points.
func (e *env) containsRoot(points []string, root string) bool {
	for _, p := range points {
		if p == root {
			return true
		}
	}
	return false
}

func casePutWithoutGet(e *env) {
	e.image("base", "", file("f", "f", 0o644))
	e.wants(e.d.Put(ctx(), "base"), drivers.ErrInvalid)
	e.check("base", holds("f", "f"))
	e.wants(e.d.Put(ctx(), "base"), drivers.ErrInvalid)
}

func caseRemoveMounted(e *env) {
	e.image("base", "", baseSteps()...)
	e.writable("c", "base")
	at := &place{root: e.get("c")}
	e.wants(e.d.Remove(ctx(), "c"), drivers.ErrInUse)
	e.exists("c", true)
	e.must(at.do(append(checkBase(), file("f", "f", 0o644))))
	e.put("c")
	e.must(e.d.Remove(ctx(), "c"))
}

func caseGetOptionsDiffer(e *env) {
	if !e.s.Abilities.ReadOnlyGet {
		_, err := e.d.Get(ctx(), "none", &drivers.GetOptions{ReadOnly: true})
		e.wants(err, drivers.ErrNotFound)
		return
	}
	e.image("base", "", file("f", "f", 0o644))
	e.writable("c", "base")
	root := e.get("c")
	_, err := e.d.Get(ctx(), "c", &drivers.GetOptions{ReadOnly: true})
	e.wants(err, drivers.ErrInUse)
	again, err := e.d.Get(ctx(), "c", &drivers.GetOptions{ReadOnly: true, Any: true})
	e.must(err)
	if again != root {
		e.Errorf("any mount: %s, not %s, which is there", again, root)
	}
	e.put("c")
	e.put("c")
}

func caseGetReadOnly(e *env) {
	e.image("base", "", file("f", "f", 0o644))
	e.writable("c", "base")
	e.change("c", file("g", "g", 0o644))
	root, err := e.d.Get(ctx(), "c", &drivers.GetOptions{ReadOnly: true})
	if !e.s.Abilities.ReadOnlyGet {
		e.wants(err, drivers.ErrNotSupported)
		return
	}
	e.must(err)
	e.refuses(root)
	at := &place{root: root}
	e.must(at.do([]step{holds("f", "f"), holds("g", "g")}))
	// A difference can be had meanwhile.
	changes, err := drivers.DifferOf(e.d).Changes(ctx(), "c", "base")
	e.must(err)
	if len(changes) != 1 || changes[0].Path != "g" {
		e.Errorf("changes %v, want g", changes)
	}
	e.put("c")
	e.change("c", file("h", "h", 0o644))
}

// refuses checks that nothing can be written to a tree that has a file f.
func (e *env) refuses(root string) {
	e.Helper()
	at := &place{root: root}
	for what, s := range map[string]step{
		"write": appendTo("f", "x"), "create": file("new", "x", 0o644), "remove": remove("f"), "chmod": chmod("f", 0o600),
	} {
		if err := s(at); !errors.Is(err, unix.EROFS) {
			e.Errorf("%s in a read-only tree: %v", what, err)
		}
	}
}

func caseImageReadOnly(e *env) {
	e.image("base", "", file("f", "f", 0o644))
	e.image("top", "base", file("g", "g", 0o644))
	for _, id := range []string{"base", "top"} {
		root := e.get(id)
		if e.s.Abilities.ReadOnlyImages {
			e.refuses(root)
		}
		at := &place{root: root}
		e.must(at.do([]step{holds("f", "f")}))
		e.put(id)
	}
}

// Nothing that was written is lost with the mount.
func caseOpenAcrossPut(e *env) {
	e.image("base", "", file("f", "lower", 0o644))
	e.writable("c", "base")
	e.change("c", func(at *place) error { return os.WriteFile(at.path("big"), noiseBytes(2<<20), 0o644) }, appendTo("f",
		"+upper"))
	e.check("c", holds("f", "lower+upper"), func(at *place) error { return holds("big", string(noiseBytes(2<<20)))(at) })
}

// A mount and its references outlive the process that made them.
func caseRestartMounted(e *env) {
	e.image("base", "", baseSteps()...)
	e.writable("c", "base")
	root := e.get("c")
	e.get("c")
	at := &place{root: root}
	e.must(at.do([]step{file("f", "before", 0o644)}))
	e.reopen()
	if e.s.Abilities.Mountless {
		e.wants(e.d.Put(ctx(), "c"), drivers.ErrInvalid)
		e.check("c", append(checkBase(), holds("f", "before"))...)
		return
	}
	e.must(at.do(append(checkBase(), holds("f", "before"), appendTo("f", "+after"))))
	if r, ok := e.d.(drivers.Referrer); ok && !maps.Equal(r.References(), map[string]int{"c": 2}) {
		e.Errorf("references after a restart: %v, want two to c", r.References())
	}
	e.wants(e.d.Remove(ctx(), "c"), drivers.ErrInUse)
	if again := e.get("c"); again != root {
		e.Errorf("mounted at %s after a restart, before at %s", again, root)
	}
	e.put("c")
	e.put("c")
	e.must(at.do([]step{holds("f", "before+after")}))
	e.put("c")
	e.wants(e.d.Put(ctx(), "c"), drivers.ErrInvalid)
	e.check("c", holds("f", "before+after"))
}

// References to a mount that someone else took away do not count.
func caseUnmountedOutside(e *env) {
	e.image("base", "", baseSteps()...)
	e.writable("c", "base")
	root := e.get("c")
	if e.s.Abilities.Mountless {
		e.put("c")
		return
	}
	e.must((&place{root: root}).do([]step{file("f", "f", 0o644)}))
	e.must(unix.Unmount(root, unix.MNT_DETACH))
	e.must(e.d.Cleanup(ctx()))
	e.wants(e.d.Put(ctx(), "c"), drivers.ErrInvalid)
	e.check("c", append(checkBase(), holds("f", "f"))...)
	e.must(e.d.Remove(ctx(), "c"))
}

// An image layer and a container of it can be used at once.
func caseViewOfImage(e *env) {
	e.image("base", "", baseSteps()...)
	e.image("top", "base", appendTo("a file", "+top"))
	e.writable("c", "top")
	view, c := e.get("top"), e.get("c")
	e.must((&place{root: c}).do([]step{appendTo("a file", "+c"), remove("etc")}))
	e.must((&place{root: view}).do([]step{holds("a file", "data+top"), holds("etc/passwd", "root")}))
	e.must((&place{root: e.get("base")}).do(checkBase()))
	for _, id := range []string{"base", "top", "c"} {
		e.put(id)
	}
	if _, err := os.Lstat(filepath.Join(view, "mine")); err == nil {
		e.Error("the view shows the container's file")
	}
}
