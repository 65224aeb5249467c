package packaging_test

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"plyfs/internal/testenv"
)

// helpers are the names by which mount(8) finds the program.
func helpers() []string { return []string{"mount.plyfs", "mount.fuse.plyfs", "mount.fuse3.plyfs"} }

// wantInstalled lists what an installation has beside the documents, below its prefix.
func wantInstalled(t *testing.T) []string {
	t.Helper()
	want := []string{
		"/bin/plyfs", "/bin/plyfs-mount", "/bin/plyfsd",
		"/share/bash-completion/completions/plyfs", "/share/zsh/site-functions/_plyfs", "/share/fish/vendor_completions.d/plyfs.fish",
		"/share/man/man1/plyfs.1", "/share/man/man1/plyfsd.1", "/share/man/man5/plyfs.toml.5",
		"/lib/systemd/system/plyfs-graphplugin.socket", "/share/doc/plyfs/examples/config.toml", "/share/doc/plyfs/README.md",
	}
	for _, c := range commands(t) {
		want = append(want, "/share/man/man1/plyfs-"+c.Name+".1")
	}
	for _, h := range helpers() {
		want = append(want, "/share/man/man8/"+h+".8")
	}
	for _, d := range []string{"snapshotter", "graphplugin", "metrics"} {
		want = append(want, "/lib/systemd/system/plyfs-"+d+".service", "/lib/systemd/user/plyfs-"+d+".service")
	}
	return want
}

func TestInstallAndUninstall(t *testing.T) {
	dir := testenv.Scratch(t)
	stage, prefix := filepath.Join(dir, "stage"), "/opt/plyfs"
	vars := append(prebuilt(t, filepath.Join(dir, "dist")), "DESTDIR="+stage, "PREFIX="+prefix)
	makeTarget(t, append(vars, "man", "completions", "install")...)
	got := tree(t, stage)
	for _, w := range wantInstalled(t) {
		if !slices.Contains(got, prefix+w) {
			t.Errorf("make install installs no %s", prefix+w)
		}
	}
	for _, h := range helpers() {
		if want := "/sbin/" + h + " -> " + prefix + "/bin/plyfs-mount"; !slices.Contains(got, want) {
			t.Errorf("make install makes no %s", want)
		}
	}
	for _, name := range got {
		name, _, _ = strings.Cut(name, " -> ")
		checkMode(t, filepath.Join(stage, name))
	}
	checkLinks(t, filepath.Join(stage, prefix, "share/doc/plyfs"))
	// What is not of this installation must survive its end, also in directories that it made.
	foreign := []string{prefix + "/bin/other", prefix + "/share/man/man1/other.1", prefix + "/share/doc/plyfs/notes"}
	for _, f := range foreign {
		if err := os.WriteFile(filepath.Join(stage, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	makeTarget(t, append(vars, "uninstall")...)
	left := slices.DeleteFunc(tree(t, stage), func(name string) bool { return strings.HasSuffix(name, "/") })
	if slices.Sort(foreign); !slices.Equal(left, foreign) {
		t.Errorf("make uninstall leaves %v, want %v", left, foreign)
	}
	makeTarget(t, append(vars, "uninstall")...)
}

// checkLinks checks that the documents in dir link to each other, and not to where they are in the repository.
func checkLinks(t *testing.T, dir string) {
	t.Helper()
	documents, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil || len(documents) == 0 {
		t.Fatalf("documents in %s: %v, %v", dir, documents, err)
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for _, d := range documents {
		text, err := os.ReadFile(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(dir, m[1])); err != nil {
				t.Errorf("%s, as installed: %v", filepath.Base(d), err)
			}
		}
	}
}

// checkMode checks that nobody but root can write what was installed, and everybody can read it, whatever the umask.
func checkMode(t *testing.T, path string) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	want := os.FileMode(0o644)
	switch {
	case info.Mode()&os.ModeSymlink != 0:
		return
	case info.IsDir(), filepath.Base(filepath.Dir(path)) == "bin":
		want = 0o755
	}
	if info.Mode().Perm() != want && !info.IsDir() {
		t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
	}
}

// An installation that is in use: everything finds everything.
func TestInstalledProgramRuns(t *testing.T) {
	dir := testenv.Scratch(t)
	prefix := filepath.Join(dir, "usr")
	vars := append(prebuilt(t, filepath.Join(dir, "dist")), "PREFIX="+prefix, "SBINDIR="+prefix+"/sbin", "LINK_FUSE_OVERLAYFS=1")
	makeTarget(t, append(vars, "man", "completions", "install")...)
	for _, name := range []string{"plyfs", "fuse-overlayfs"} {
		if out := run(t, filepath.Join(prefix, "bin", name), "--version"); !strings.Contains(out, "plyfs") {
			t.Errorf("%s --version: %s", name, out)
		}
	}
	if out := run(t, filepath.Join(prefix, "bin/plyfs"), "snapshotter", "--help"); !strings.Contains(out, "--config") {
		t.Errorf("plyfs snapshotter --help: %s", out)
	}
	if out := run(t, filepath.Join(prefix, "sbin/mount.plyfs"), "--help"); !strings.Contains(out, "lowerdir=") {
		t.Errorf("mount.plyfs --help: %s", out)
	}
	makeTarget(t, append(vars, "uninstall")...)
	if left := slices.DeleteFunc(tree(t, prefix), func(n string) bool { return strings.HasSuffix(n, "/") }); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// static fails the test if a program needs a dynamic linker.
func static(t *testing.T, path string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("%s is not static: it has a segment %v", path, p.Type)
		}
	}
}

func TestProgramsAreStatic(t *testing.T) {
	for _, name := range []string{"plyfs", "plyfs-mount", "plyfsd"} {
		static(t, filepath.Join(filepath.Dir(testenv.Binary(t)), name))
	}
}

// The example has a table for each daemon, and every daemon starts with it.
func TestExampleConfiguration(t *testing.T) {
	text, err := os.ReadFile("config.toml")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(testenv.Scratch(t), "config.toml")
	// What it suggests is a line with a # and no blank behind it.
	used := regexp.MustCompile(`(?m)^#([a-z])`).ReplaceAll(text, []byte("$1"))
	if err := os.WriteFile(path, used, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"snapshotter", "graphplugin", "metrics"} {
		if !strings.Contains(string(text), fmt.Sprintf("\n[%s]\n", d)) {
			t.Errorf("config.toml has no table [%s]", d)
		}
		// The file is read before the log is opened: a refusal of the level says that the file was taken.
		out, err := command(t, testenv.Binary(t), d, "--config", path, "--log-level", "no-such-level").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "no-such-level") {
			t.Errorf("plyfs %s with the example: %v: %s", d, err, out)
		}
	}
}
