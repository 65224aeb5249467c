package graphplugin

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// The calls of docker load, run, exec, diff, commit, save, rm and rmi, in their order.
func TestLife(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		socket, stop := serve(t, config(t, driver))
		d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
		d.start()
		d.layer("a", "", map[string]string{"etc/passwd": "root", "bin/sh": "sh", "gone": "x"})
		d.layer("b", "a", map[string]string{"etc/group": "root", ".wh.gone": ""})
		want(t, "existence of a layer", d.call("GraphDriver.Exists", args{ID: "b"}).Exists, true)
		want(t, "existence of no layer", d.call("GraphDriver.Exists", args{ID: "none"}).Exists, false)
		d.container("c", "b")

		dir := d.get("c")
		want(t, "the second Get", d.get("c"), dir)
		must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root\nme"), 0o644),
			os.WriteFile(filepath.Join(dir, "new"), []byte("12345"), 0o600), os.Remove(filepath.Join(dir, "bin/sh")))
		if _, err := os.Stat(filepath.Join(dir, "gone")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a deleted file is there: %v", err)
		}
		var changes []string
		for _, c := range d.call("GraphDriver.Changes", args{ID: "c", Parent: "c-init"}).Changes {
			changes = append(changes, fmt.Sprint(c.Path, c.Kind))
		}
		if expected := []string{"/bin0", "/bin/sh2", "/etc0", "/etc/passwd0", "/new1"}; !slices.Equal(changes, expected) {
			t.Errorf("changes are %q, want %q", changes, expected)
		}
		want(t, "the size of the difference", d.call("GraphDriver.DiffSize", args{ID: "c", Parent: "c-init"}).Size, 12)
		names := slices.Sorted(maps.Keys(d.diff("c", "c-init")))
		if expected := []string{"bin", "bin/.wh.sh", "etc", "etc/passwd", "new"}; !slices.Equal(names, expected) {
			t.Errorf("the difference has %q, want %q", names, expected)
		}
		d.put("c")
		want(t, "the file of a container that runs", d.read("c", "new"), "12345")
		d.put("c")
		wantUnmounted(t, d.home)

		d.layer("committed", "b", map[string]string{"new": "12345"})
		want(t, "the file of an image layer", d.read("committed", "new"), "12345")
		if meta := d.call("GraphDriver.GetMetadata", args{ID: "c"}).Metadata; driver != "vfs" && (meta["LowerDir"] == "" ||
			meta["UpperDir"] == "" || meta["WorkDir"] == "" || meta["MergedDir"] != dir) {
			t.Errorf("metadata is %q", meta)
		}
		status := d.call("GraphDriver.Status", args{}).Status
		if len(status) < 3 || status[0] != [2]string{"Driver", driver} {
			t.Errorf("status is %q", status)
		}
		for _, id := range []string{"c", "c-init", "committed", "b", "a"} {
			d.call("GraphDriver.Remove", args{ID: id})
			want(t, "existence of "+id, d.call("GraphDriver.Exists", args{ID: id}).Exists, false)
		}
		d.call("GraphDriver.Cleanup", args{})
		stop()
		wantUnmounted(t, d.home)
	})
}

// BuildKit writes into layers of Create, through Get, and makes others over them.
func TestBuildKit(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		c := config(t, driver)
		socket, stop := serve(t, c)
		d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
		d.start()
		d.layer("base", "", map[string]string{"f": "base"})
		d.call("GraphDriver.Create", args{ID: "s1", Parent: "base"})
		d.write("s1", "one", "1")
		d.call("GraphDriver.Create", args{ID: "s2", Parent: "s1"})
		stop()

		// A draft is one after a restart, too.
		socket, stop = serve(t, c)
		d = newDockerd(t, socket, d.home)
		d.write("s2", "two", "2")
		want(t, "the file of the step below", d.read("s2", "one"), "1")
		if diff := d.diff("s2", "s1"); len(diff) != 1 || diff["two"] == nil {
			t.Errorf("the difference of a step has %q", slices.Sorted(maps.Keys(diff)))
		}
		d.layer("above", "s2", map[string]string{"three": "3"})
		want(t, "the file of a step", d.read("above", "two"), "2")
		// An empty layer that has one above it is no draft any more.
		d.call("GraphDriver.Create", args{ID: "empty", Parent: "base"})
		d.call("GraphDriver.Create", args{ID: "on-empty", Parent: "empty"})
		want(t, "the file below an empty layer", d.read("empty", "f"), "base")
		for _, id := range []string{"on-empty", "empty", "above", "s2", "s1", "base"} {
			d.call("GraphDriver.Remove", args{ID: id})
		}
		entries, err := os.ReadDir(filepath.Join(d.home, draftsDir))
		must(t, err)
		want(t, "the number of drafts that are left", len(entries), 0)
		stop()
	})
}

// Should the process die in the middle of an exchange, or of a removal, the layer is what dockerd knows.
func TestDraftCrash(t *testing.T) {
	c := config(t, "vfs")
	socket, stop := serve(t, c)
	d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
	d.start()
	d.layer("base", "", map[string]string{"f": "base"})
	for _, id := range []string{"half", "orphan", "torn", "whole"} {
		d.call("GraphDriver.Create", args{ID: id, Parent: "base"})
	}
	d.write("whole", "f", "written")
	stop()
	drafts, layers := filepath.Join(d.home, draftsDir), filepath.Join(d.home, layersDir)
	must(t,
		os.RemoveAll(filepath.Join(layers, "half")), os.RemoveAll(filepath.Join(layers, "whole")),
		os.RemoveAll(filepath.Join(layers, "orphan")),
		os.WriteFile(filepath.Join(drafts, "orphan"), []byte(`{"parent":"gone"}`), 0o600),
		os.WriteFile(filepath.Join(drafts, "torn"), []byte(`{`), 0o600),
		os.WriteFile(filepath.Join(drafts, tmpPrefix+"x"), nil, 0o600))
	socket, stop = serve(t, c)
	d = newDockerd(t, socket, d.home)
	for id, there := range map[string]bool{"half": true, "orphan": false, "torn": true, "whole": false} {
		want(t, "existence of "+id, d.call("GraphDriver.Exists", args{ID: id}).Exists, there)
	}
	entries, err := os.ReadDir(drafts)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != "half" {
		t.Errorf("drafts are %v", entries)
	}
	d.write("half", "f", "written")
	want(t, "the file in a layer that was made anew", d.read("half", "f"), "written")
	stop()
}

// dockerd repeats what the plugin did not answer before it ended.
func TestRepeatedCalls(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		socket, _ := serve(t, config(t, driver))
		d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
		d.start()
		d.layer("base", "", map[string]string{"f": "base"})
		for range 2 {
			d.call("GraphDriver.Create", args{ID: "l", Parent: "base"})
			d.call("GraphDriver.CreateReadWrite", args{ID: "c", Parent: "base"})
		}
		d.write("c", "new", "x")
		for _, method := range []string{"GraphDriver.Create", "GraphDriver.CreateReadWrite"} {
			for _, a := range []args{{ID: "c", Parent: "base"}, {ID: "c"}, {ID: "base"}} {
				_, err := d.try(method, a)
				wantErr(t, method+" of another layer's id", err, drivers.ErrExists.Error())
			}
		}
		want(t, "the file of the layer", d.read("c", "new"), "x")
		for range 2 {
			d.put("c")
			d.call("GraphDriver.Remove", args{ID: "l"})
		}
	})
}

// A dockerd that starts anew: what its predecessor referred to is given back, but for one reference to each container.
func TestDockerdCrash(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		socket, stop := serve(t, config(t, driver))
		d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
		d.start()
		d.layer("image", "", map[string]string{"etc/f": "x"})
		d.container("c", "image")
		d.call("GraphDriver.Create", args{ID: "building", Parent: "image"})
		for range 3 {
			d.get("c")
			d.get("image")
			d.get("building")
		}
		d.start()
		if mounts := mountedBelow(t, d.home); hasMount(driver) && len(mounts) != 1 {
			t.Errorf("mounted are %q, want the container alone", mounts)
		}
		d.put("c") // without a Get
		wantUnmounted(t, d.home)
		d.put("c")
		// A container that nobody gave back can be removed.
		d.get("c")
		d.call("GraphDriver.Remove", args{ID: "c"})
		wantUnmounted(t, d.home)
		d.get("image")
		d.call("GraphDriver.Cleanup", args{})
		wantUnmounted(t, d.home)
		stop()
	})
}

// What dockerd must not do is refused, with a reason, and changes nothing.
func TestErrors(t *testing.T) {
	socket, _ := serve(t, config(t, "vfs"))
	d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
	_, err := d.try("GraphDriver.Get", args{ID: "x"})
	wantErr(t, "a call before Init", err, "GraphDriver.Init", "--experimental")
	for what, req := range map[string]initArgs{
		"no home":           {},
		"a relative home":   {Home: "lib/docker"},
		"a foreign option":  {Home: d.home, Opts: []string{"overlay2.size=1G"}},
		"an unknown option": {Home: d.home, Opts: []string{"plyfs.nonsense=1"}},
		"an unknown driver": {Home: d.home, Opts: []string{"plyfs.driver=nonsense"}},
		"a bad size":        {Home: d.home, Opts: []string{"plyfs.size=much"}},
		"half of the maps":  {Home: d.home, UIDMaps: []idRange{{0, 1000, 10}}},
		"an empty range":    {Home: d.home, UIDMaps: []idRange{{0, 1000, 0}}, GIDMaps: []idRange{{0, 1000, 1}}},
		"maps without root": {Home: d.home, UIDMaps: []idRange{{1, 1000, 9}}, GIDMaps: []idRange{{0, 1000, 1}}},
		"ranges that overlap": {
			Home: d.home, UIDMaps: []idRange{{0, 1000, 10}, {9, 2000, 10}}, GIDMaps: []idRange{{0, 1000, 1}},
		},
	} {
		_, err := d.try("GraphDriver.Init", req)
		wantErr(t, "Init with "+what, err)
	}
	d.start()
	d.layer("base", "", map[string]string{"f": "base"})
	for _, method := range []string{"Get", "Put", "GetMetadata", "Changes", "DiffSize", "Diff"} {
		_, err := d.try("GraphDriver."+method, args{ID: "none"})
		wantErr(t, method+" of no layer", err, "none", drivers.ErrNotFound.Error())
		_, err = d.try("GraphDriver."+method, args{ID: "../base"})
		wantErr(t, method+" of what is no id", err)
	}
	for _, a := range []args{{ID: "x", Parent: "none"}, {ID: ""}, {ID: "a/b"}, {ID: "x", StorageOpt: map[string]string{"colour": "red"}}} {
		for _, method := range []string{"GraphDriver.Create", "GraphDriver.CreateReadWrite"} {
			_, err := d.try(method, a)
			wantErr(t, fmt.Sprint(method, a), err)
		}
	}
	if _, err := d.apply("none", "", strings.NewReader("")); err == nil {
		t.Error("unpacked into no layer")
	}
	names, err := os.ReadDir(filepath.Join(d.home, layersDir))
	must(t, err)
	for _, e := range names {
		if e.Name() == "x" {
			t.Error("a call that failed left a layer")
		}
	}
}

// What is no request of the protocol is answered as HTTP does, and the plugin goes on.
func TestMalformedRequests(t *testing.T) {
	socket, _ := serve(t, config(t, "vfs"))
	d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
	d.start()
	for _, c := range []struct {
		what, path, body string
		status           int
	}{
		{"no JSON", "GraphDriver.Get", "{", http.StatusBadRequest},
		{"two values", "GraphDriver.Get", "{}{}", http.StatusBadRequest},
		{"another type", "GraphDriver.Create", `{"ID":7}`, http.StatusBadRequest},
		{"a list", "GraphDriver.Init", `[]`, http.StatusBadRequest},
		{"a range beyond all ids", "GraphDriver.Init", `{"UIDMaps":[{"size":-1}]}`, http.StatusBadRequest},
		{"a large one", "GraphDriver.Get", strings.Repeat(" ", maxRequest+1), http.StatusBadRequest},
		{"a bad one for a stream", "GraphDriver.Diff", "nonsense", http.StatusBadRequest},
		{"another method", "GraphDriver.Nonsense", "{}", http.StatusNotFound},
		{"a stream of no layer", "GraphDriver.Diff", `{"ID":"none"}`, http.StatusInternalServerError},
		{"an empty one", "GraphDriver.Status", "", http.StatusOK},
		{"fields of a later version", "GraphDriver.Exists", `{"ID":"x","Later":{"a":[1]}}`, http.StatusOK},
	} {
		resp, err := d.post(c.path, strings.NewReader(c.body))
		must(t, err)
		body, err := io.ReadAll(resp.Body)
		must(t, err, resp.Body.Close())
		if resp.StatusCode != c.status {
			t.Errorf("%s: status %d, want %d: %s", c.what, resp.StatusCode, c.status, body)
		}
		if c.status != http.StatusOK && c.status != http.StatusNotFound && !strings.Contains(string(body), `"Err":"`) {
			t.Errorf("%s: the answer is %s", c.what, body)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://plugin/GraphDriver.Status", nil)
	must(t, err)
	resp, err := d.client.Do(req)
	must(t, err, resp.Body.Close())
	want(t, "the status of a GET", resp.StatusCode, http.StatusMethodNotAllowed)
}

// A stream is read to its end also when it is refused, or goes on behind its end mark; dockerd sends all of it first.
func TestApplyDiffDrains(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		socket, _ := serve(t, config(t, driver))
		d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
		d.start()
		behind := bytes.NewReader(make([]byte, 4<<20))
		d.call("GraphDriver.Create", args{ID: "l"})
		_, err := d.apply("l", "", io.MultiReader(bytes.NewReader(archive(t, map[string]string{"f": "x"})), behind))
		must(t, err)
		want(t, "what is left of a stream", behind.Len(), 0)

		d.call("GraphDriver.Create", args{ID: "bad"})
		noise := strings.NewReader(strings.Repeat("no tar at all ", 1<<18))
		_, err = d.apply("bad", "", noise)
		wantErr(t, "a stream that is none", err, "bad")
		want(t, "what is left of a bad stream", noise.Len(), 0)
		d.call("GraphDriver.Remove", args{ID: "bad"})

		// One that breaks off is an error, also between two members.
		d.call("GraphDriver.Create", args{ID: "broken"})
		whole := archive(t, map[string]string{"f": "x"})
		_, err = d.apply("broken", "", io.MultiReader(bytes.NewReader(whole[:1024]), brokenReader{}))
		wantErr(t, "a stream that breaks off", err)
		d.call("GraphDriver.Remove", args{ID: "broken"})
		want(t, "the file of a layer", d.read("l", "f"), "x")
	})
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("broken off") }

// Calls come side by side, for one layer and for many.
func TestConcurrentCalls(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		socket, stop := serve(t, config(t, driver))
		d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
		d.start()
		d.layer("image", "", map[string]string{"etc/f": "x"})
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				id := fmt.Sprintf("c%d", i/2)
				_, err := d.try("GraphDriver.CreateReadWrite", args{ID: id, Parent: "image"})
				if err != nil && !strings.Contains(err.Error(), drivers.ErrExists.Error()) {
					t.Errorf("%s: %v", id, err) // the other one may have made it, and mounted it
				}
				a, err := d.try("GraphDriver.Get", args{ID: id})
				if err == nil {
					err = os.WriteFile(filepath.Join(a.Dir, fmt.Sprint(i)), nil, 0o644)
				}
				_, putErr := d.try("GraphDriver.Put", args{ID: id})
				_, diffErr := d.try("GraphDriver.Changes", args{ID: id, Parent: "image"})
				if err := errors.Join(err, putErr, diffErr); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		wg.Go(func() { d.call("GraphDriver.Init", initArgs{Home: d.home}) })
		wg.Wait()
		for i := range 4 {
			id := fmt.Sprintf("c%d", i)
			want(t, "the number of changes of "+id, len(d.call("GraphDriver.Changes", args{ID: id, Parent: "image"}).Changes), 2)
		}
		d.call("GraphDriver.Cleanup", args{})
		stop()
		wantUnmounted(t, d.home)
	})
}

// The driver of a store is that of its layers, and the options of one container bound it.
func TestChoiceAndQuota(t *testing.T) {
	c := config(t, "")
	home := filepath.Join(testenv.Scratch(t), "home")
	socket, stop := serve(t, c)
	d := newDockerd(t, socket, home)
	d.start("plyfs.driver=plyfs", "plyfs.size=64M", "plyfs.mountopt=noxattrs")
	d.layer("image", "", map[string]string{"f": "x"})
	d.call("GraphDriver.CreateReadWrite", args{ID: "small", Parent: "image", StorageOpt: map[string]string{"size": "1MiB"}})
	d.call("GraphDriver.CreateReadWrite", args{ID: "usual", Parent: "image"})
	err := os.WriteFile(filepath.Join(d.get("small"), "big"), make([]byte, 2<<20), 0o644)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		t.Errorf("beyond the size: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(d.get("usual"), "big"), make([]byte, 2<<20), 0o644))
	d.put("small")
	d.put("usual")
	stop()

	socket, stop = serve(t, c)
	d = newDockerd(t, socket, home)
	want(t, "the driver after a restart", d.call("GraphDriver.Status", args{}).Status[0][1], "plyfs")
	_, err = d.try("GraphDriver.Init", initArgs{Home: home, Opts: []string{"plyfs.driver=vfs"}})
	wantErr(t, "another driver", err, drivers.ErrOtherDriver.Error(), home)
	d.start("plyfs.driver=plyfs")
	d.get("usual")
	_, err = d.try("GraphDriver.Init", initArgs{Home: home + "2"})
	wantErr(t, "another home while layers are mounted", err, drivers.ErrInUse.Error())
	d.put("usual")
	d.call("GraphDriver.Init", initArgs{Home: home + "2", Opts: []string{"plyfs.driver=vfs"}})
	want(t, "existence of another store's layer", d.call("GraphDriver.Exists", args{ID: "image"}).Exists, false)
	stop()
}

// With --userns-remap layers belong to root of containers, streams have the containers' ids, and that root reaches its files.
func TestUserNamespaceRemap(t *testing.T) {
	const host = 200000
	eachDriver(t, func(t *testing.T, driver string) {
		socket, _ := serve(t, config(t, driver))
		d := newDockerd(t, socket, filepath.Join(testenv.Scratch(t), "home"))
		ids := []idRange{{ContainerID: 0, HostID: host, Size: 65536}}
		d.call("GraphDriver.Init", initArgs{Home: d.home, UIDMaps: ids, GIDMaps: ids})

		var b bytes.Buffer
		w := tar.NewWriter(&b)
		must(t, w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: "theirs", Mode: 0o600, Uid: 7, Gid: 8,
			PAXRecords: map[string]string{"SCHILY.xattr.user.k": "v"}, Format: tar.FormatPAX,
		}), w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "gone"}), w.Close())
		d.call("GraphDriver.Create", args{ID: "image"})
		_, err := d.apply("image", "", &b)
		must(t, err)
		d.call("GraphDriver.CreateReadWrite", args{ID: "c", Parent: "image"})
		d.call("GraphDriver.CreateReadWrite", args{ID: "scratch"})
		for _, id := range []string{"c", "scratch"} {
			var st unix.Stat_t
			dir := d.get(id)
			must(t, unix.Stat(dir, &st))
			want(t, "the owner of the root of "+id, [2]uint32{st.Uid, st.Gid}, [2]uint32{host, host})
			must(t, testenv.RunAs(testenv.Cred{UID: host, GID: host}, func() error {
				return os.WriteFile(filepath.Join(dir, "own"), nil, 0o600)
			}))
		}
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(d.get("c"), "theirs"), &st))
		want(t, "the owner of a file", [2]uint32{st.Uid, st.Gid}, [2]uint32{host + 7, host + 8})
		must(t, os.Remove(filepath.Join(d.get("c"), "gone")))
		d.put("c")
		d.put("c")
		if diff := d.diff("c", "image"); diff[".wh.gone"] == nil || diff[".wh.gone"].Uid != 0 {
			t.Errorf("the difference has %v, want a deletion", diff)
		}
		diff := d.diff("c", "")
		for name, id := range map[string]int{"own": 0, "theirs": 7} {
			if hdr := diff[name]; hdr == nil || hdr.Uid != id {
				t.Errorf("in the stream %s is %+v, want owner %d", name, hdr, id)
			}
		}
		want(t, "an attribute in the stream", diff["theirs"].PAXRecords["SCHILY.xattr.user.k"], "v")

		must(t, os.WriteFile(filepath.Join(d.get("c"), "roots"), nil, 0o600))
		d.put("c")
		_, err = d.try("GraphDriver.Diff", args{ID: "c", Parent: "image"})
		wantErr(t, "a difference with a file of the machine's root", err, "roots", "not mapped")
		// Behind bytes that are out already only the end of the connection tells it.
		dir := d.get("c")
		must(t, testenv.RunAs(testenv.Cred{UID: host, GID: host}, func() error {
			return os.WriteFile(filepath.Join(dir, "big"), make([]byte, 4*streamChunk), 0o600)
		}))
		d.put("c")
		_, err = d.send("GraphDriver.Diff", strings.NewReader(`{"ID":"c","Parent":"image"}`))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a difference that breaks off: %v", err)
		}
		d.call("GraphDriver.Create", args{ID: "high", Parent: "image"})
		b.Reset()
		w = tar.NewWriter(&b)
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Uid: 70000}), w.Close())
		_, err = d.apply("high", "image", &b)
		wantErr(t, "a file of a user beyond the map", err, "owner of f", "70000")
		d.put("c")
		d.put("scratch")
	})
}
