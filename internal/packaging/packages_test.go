//go:build packages

package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// built makes a package as a user would, from the sources, and returns its path.
func built(t *testing.T, format string) string {
	t.Helper()
	dir := testenv.Scratch(t)
	makeTarget(t, format, "BIN="+filepath.Join(dir, "bin"), "DIST="+filepath.Join(dir, "dist"))
	for _, name := range []string{"plyfs", "plyfs-mount", "plyfsd"} {
		static(t, filepath.Join(dir, "bin", name))
	}
	made, err := filepath.Glob(filepath.Join(dir, "dist", "*."+format))
	if err != nil || len(made) != 1 {
		t.Fatalf("make %s made %v, %v", format, made, err)
	}
	return made[0]
}

// system makes a root directory with busybox for a system, and /dev/fuse, in which maintainer scripts and plyfs can run.
func system(t *testing.T) string {
	t.Helper()
	root := filepath.Join(testenv.Scratch(t), "root")
	for _, dir := range []string{"usr/bin", "usr/sbin", "dev", "proc", "tmp", "etc", "var/lib/dpkg/info", "var/lib/dpkg/updates"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"bin", "sbin"} {
		if err := os.Symlink("usr/"+link, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "cp", "/bin/busybox", filepath.Join(root, "usr/bin/busybox"))
	run(t, "chroot", root, "/bin/busybox", "--install", "-s", "/usr/bin")
	// The directory of administrators' programs is never empty, so no package manager removes it.
	for _, f := range []string{"dev/fuse", "dev/null", "var/lib/dpkg/status", "usr/sbin/other"} {
		if err := os.WriteFile(filepath.Join(root, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, dev := range []string{"/dev/fuse", "/dev/null"} {
		run(t, "mount", "--bind", dev, filepath.Join(root, dev))
		t.Cleanup(func() { testenv.Unmount(t, filepath.Join(root, dev)) })
	}
	run(t, "mount", "-t", "proc", "proc", filepath.Join(root, "proc"))
	t.Cleanup(func() { testenv.Unmount(t, filepath.Join(root, "proc")) })
	return root
}

// inside runs a program of the system, with nothing of this test's environment.
func inside(t *testing.T, root string, args ...string) string {
	t.Helper()
	return run(t, "env", append([]string{"-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "chroot", root}, args...)...)
}

// files lists the system without what its package managers note, and what lasts until the next boot.
func files(t *testing.T, root string) []string {
	t.Helper()
	return slices.DeleteFunc(tree(t, root), func(name string) bool {
		return strings.HasPrefix(name, "/var/lib/") || strings.HasPrefix(name, "/run/") || strings.HasPrefix(name, "/var/cache/")
	})
}

// mounts checks that the plyfs of the system mounts, by its own name and as a helper of mount(8).
func mounts(t *testing.T, root string) {
	t.Helper()
	if out := inside(t, root, "/usr/bin/plyfs", "version"); !strings.Contains(out, "plyfs") {
		t.Errorf("plyfs version: %s", out)
	}
	base := filepath.Join(root, "tmp/t")
	for _, dir := range []string{"l", "u", "w", "m"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "l/file"), []byte("lower"), 0o644); err != nil {
		t.Fatal(err)
	}
	const options = "lowerdir=/tmp/t/l,upperdir=/tmp/t/u,workdir=/tmp/t/w"
	for _, call := range [][]string{
		{"/usr/bin/plyfs", "mount", "-o", options, "/tmp/t/m"},
		{"/sbin/mount.plyfs", "plyfs", "/tmp/t/m", "-o", options},
		{"/sbin/mount.fuse3.plyfs", "plyfs", "/tmp/t/m", "-o", options},
	} {
		inside(t, root, call...)
		if got := run(t, "cat", filepath.Join(base, "m/file")); got != "lower" {
			t.Errorf("%v: the mount shows %q", call, got)
		}
		testenv.Unmount(t, filepath.Join(base, "m"))
	}
	if err := os.RemoveAll(base); err != nil {
		t.Fatal(err)
	}
}

func TestDebianPackage(t *testing.T) {
	// What a package of a distribution has and one of upstream's can't: its changelog and its mail address. The programs are Go's: static,
	// with their own layout.
	const suppressed = "no-changelog,bogus-mail-host,statically-linked-binary,unknown-field"
	deb, root := built(t, "deb"), system(t)
	run(t, "lintian", "--allow-root", "--fail-on", "error", "--suppress-tags", suppressed, deb)
	dpkg := func(args ...string) string {
		return run(t, "dpkg", append([]string{"--root=" + root, "--force-depends", "--log=/dev/null"}, args...)...)
	}
	before := files(t, root)
	out := dpkg("-i", deb)
	for _, hint := range []string{"plyfs doctor", "plyfs install --as fuse-overlayfs", "plyfs-snapshotter"} {
		if !strings.Contains(out, hint) {
			t.Errorf("the installation says nothing of %s: %s", hint, out)
		}
	}
	got := tree(t, root)
	for _, w := range wantInstalled(t) {
		w = "/usr" + w
		w = strings.Replace(w, "/zsh/site-functions/", "/zsh/vendor-completions/", 1)
		if strings.Contains(w, "/man/") {
			w += ".gz"
		}
		if !slices.Contains(got, w) {
			t.Errorf("the package has no %s", w)
		}
	}
	mounts(t, root)
	// The same package again is an upgrade: it is silent about first steps, and keeps everything.
	if out := dpkg("-i", deb); strings.Contains(out, "nothing uses it yet") {
		t.Errorf("an upgrade prints the first steps: %s", out)
	}
	mounts(t, root)
	dpkg("--purge", "plyfs")
	if after := files(t, root); !slices.Equal(before, after) {
		t.Errorf("the system afterwards differs: %v", difference(before, after))
	}
}

func TestRPMPackage(t *testing.T) {
	pkg, root := built(t, "rpm"), system(t)
	rpm := func(args ...string) string {
		return run(t, "rpm", append([]string{"--root", root, "--dbpath", "/var/lib/rpm"}, args...)...)
	}
	list := strings.Split(run(t, "rpm", "-qpl", pkg), "\n")
	for _, own := range []string{"/usr", "/usr/bin", "/usr/sbin", "/usr/share/man/man1", "/usr/lib/systemd/system"} {
		if slices.Contains(list, own) {
			t.Errorf("the package owns %s, which belongs to the system", own)
		}
	}
	if needs := run(t, "rpm", "-qpR", pkg); !strings.Contains(needs, "fuse3") {
		t.Errorf("the package needs only %s", needs)
	}
	before := files(t, root)
	if out := rpm("-i", "--nodeps", "--ignorearch", pkg); !strings.Contains(out, "plyfs doctor") {
		t.Errorf("the installation says nothing of plyfs doctor: %s", out)
	}
	mounts(t, root)
	rpm("-e", "plyfs")
	after := slices.DeleteFunc(files(t, root), func(name string) bool {
		// Directories that rpm made for files and that no package owns.
		return strings.HasSuffix(name, "/") && !slices.Contains(before, name)
	})
	if !slices.Equal(before, after) {
		t.Errorf("the system afterwards differs: %v", difference(before, after))
	}
}

// difference names what only one of two lists has.
func difference(before, after []string) []string {
	var out []string
	for _, name := range before {
		if !slices.Contains(after, name) {
			out = append(out, "-"+name)
		}
	}
	for _, name := range after {
		if !slices.Contains(before, name) {
			out = append(out, "+"+name)
		}
	}
	return out
}

func TestUnitsVerify(t *testing.T) {
	const verifier = "systemd-analyze" //nolint:misspell // the name of the program
	dir := testenv.Scratch(t)
	prefix := filepath.Join(dir, "usr")
	makeTarget(t, append(prebuilt(t, filepath.Join(dir, "dist")), "PREFIX="+prefix, "SBINDIR="+prefix+"/sbin", "man", "completions", "install")...)
	for _, scope := range []string{"system", "user"} {
		paths, err := filepath.Glob(filepath.Join(prefix, "lib/systemd", scope, "*"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no units: %v", err)
		}
		cmd := command(t, verifier, append([]string{"verify", "--" + scope, "--man=no"}, paths...)...)
		cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+dir)
		// It succeeds in spite of lines that systemd would ignore, but prints them.
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), prefix) {
			t.Errorf("%s verify --%s: %v\n%s", verifier, scope, err, out)
		}
	}
}

func TestManualPages(t *testing.T) {
	dist := filepath.Join(testenv.Scratch(t), "dist")
	makeTarget(t, append(prebuilt(t, dist), "man")...)
	man := filepath.Join(dist, "man")
	pages, err := filepath.Glob(filepath.Join(man, "man*/*"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	for _, p := range pages {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		rendered := run(t, "man", "-M", man, "-E", "UTF-8", "-l", p)
		if len(rendered) < 200 {
			t.Errorf("%s renders as %q", p, rendered)
		}
		if strings.HasPrefix(string(text), ".so ") {
			continue
		}
		if out := run(t, "groff", "-ww", "-man", "-Tutf8", "-z", p); out != "" {
			t.Errorf("groff: %s", out)
		}
		if out, err := command(t, "mandoc", "-Tlint", "-Wwarning", p).CombinedOutput(); err != nil {
			t.Errorf("mandoc: %s", out)
		}
	}
}

func TestFishCompletion(t *testing.T) {
	out := runWithPrograms(t, "fish", "--no-config", "-c", `plyfs completion fish | source; complete -C "plyfs contai"; complete -C "plyfs layer migrate --to ov"`)
	for _, want := range []string{"container\t", "overlay2"} {
		if !strings.Contains(out, want) {
			t.Errorf("fish offers %q, without %q", out, want)
		}
	}
}

// zsh completes only at a terminal, which zpty is.
func TestZshCompletion(t *testing.T) {
	const script = `
		zmodload zsh/zpty
		zpty z zsh -f -i
		zpty -w z 'PS1=; autoload -U compinit; compinit -u -D; source <(plyfs completion zsh); echo re""ady'
		zpty -r -m z seen '*ready*'
		zpty -w -n z $'plyfs contai\tX\n'
		zpty -r -m z seen "*unknown command*X*"
		print -r -- "$seen"
		zpty -d z`
	if out := runWithPrograms(t, "zsh", "-f", "-c", script); !strings.Contains(out, "unknown command container X") {
		t.Errorf("zsh completes to %q", out)
	}
}

// runWithPrograms runs a shell that finds the programs under test.
func runWithPrograms(t *testing.T, shell string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(shell)
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, path, args...)
	home := testenv.Scratch(t)
	cmd.Env = append(cmd.Env, "PATH="+filepath.Dir(testenv.Binary(t))+":/usr/bin:/bin", "HOME="+home, "TERM=dumb")
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", shell, args, err, out)
	}
	return string(out)
}
