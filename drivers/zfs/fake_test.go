//go:build !vm

package zfs

import (
	"fmt"
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

// fake is a pool that testdata/zfs keeps in a directory. It is also the mounter of what is in it.
type fake struct {
	t   *testing.T
	dir string
	// home and run are those of the driver under test.
	home, run string
	failMount error
}

// newFake puts the commands of a pool called tank, with a dataset tank/store, before all others.
func newFake(t *testing.T) *fake {
	t.Helper()
	commands, err := filepath.Abs("testdata")
	must(t, err)
	f := &fake{t: t, dir: testenv.Scratch(t), home: filepath.Join(testenv.Scratch(t), "home"), run: filepath.Join(testenv.Scratch(t), "run")}
	for _, name := range []string{"pool", "data", "data/tank%store"} {
		must(t, os.Mkdir(filepath.Join(f.dir, name), 0o755))
	}
	f.write("pool/tank%store", "")
	f.write("calls", "")
	t.Setenv("FAKE_ZFS", f.dir)
	t.Setenv("PATH", commands+":"+os.Getenv("PATH"))
	return f
}

func (f *fake) write(name, content string) {
	f.t.Helper()
	must(f.t, os.WriteFile(filepath.Join(f.dir, name), []byte(content), 0o644))
}

func (f *fake) options() drivers.Options {
	return drivers.Options{Home: f.home, Run: f.run, Options: map[string]string{optionFSName: "tank/store"}}
}

func (f *fake) open() *Driver {
	f.t.Helper()
	d, err := open(f.t.Context(), f.options(), f)
	must(f.t, err)
	d.busyWait = time.Minute
	return d
}

// mount implements mounter.
func (f *fake) mount(dataset, target string, flags uintptr, _ string) error {
	if f.failMount != nil {
		return f.failMount
	}
	content := filepath.Join(f.dir, "data", strings.ReplaceAll(dataset, "/", "%"))
	if err := unix.Mount(content, target, "", unix.MS_BIND, ""); err != nil || flags == 0 {
		return err
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|flags, "")
}

// failAt makes the n-th call from now fail, "before" or "after" its work, or with all later ones ("on").
func (f *fake) failAt(n int, how string) {
	f.t.Helper()
	f.write("fail", fmt.Sprintf("%d %s\n", len(f.calls())+n, how))
}

func (f *fake) heal() {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.dir, "fail")); err != nil && !os.IsNotExist(err) {
		f.t.Fatal(err)
	}
}

// calls returns the commands so far.
func (f *fake) calls() []string {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, "calls"))
	must(f.t, err)
	return slices.Collect(strings.Lines(string(b)))
}

// since returns the commands after the first n, without line ends, the store's own dataset written as BASE and the random part of
// snapshots as S.
func (f *fake) since(n int, base string) []string {
	f.t.Helper()
	var out []string
	for _, c := range f.calls()[n:] {
		c = strings.ReplaceAll(strings.TrimSpace(c), base, "BASE")
		if at := strings.Index(c, "@"+snapshotPrefix); at >= 0 {
			end := at + 1 + len(snapshotName())
			c = c[:at] + "@S" + c[end:]
		}
		out = append(out, c)
	}
	return out
}

// datasets returns what is in the pool, sorted, beneath the store's own dataset.
func (f *fake) datasets(base string) []string {
	f.t.Helper()
	entries, err := os.ReadDir(filepath.Join(f.dir, "pool"))
	must(f.t, err)
	var out []string
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(strings.ReplaceAll(e.Name(), "%", "/"), base+"/"); ok && rest != imageGroup && rest != containerGroup {
			out = append(out, rest)
		}
	}
	slices.Sort(out)
	return out
}

// snapshots returns those of the datasets that are snapshots.
func (f *fake) snapshots(base string) []string {
	f.t.Helper()
	return slices.DeleteFunc(f.datasets(base), func(name string) bool { return !strings.Contains(name, "@") })
}
