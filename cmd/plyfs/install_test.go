package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"plyfs/internal/testenv"
)

// testInstaller installs for root beneath a directory of the test, or for its user.
func testInstaller(t *testing.T, user bool) *installer {
	t.Helper()
	root := testenv.Scratch(t)
	in := &installer{
		root: root, user: user, home: filepath.Join(root, "home"), uid: os.Geteuid(),
		program: filepath.Join(root, "usr/local/bin/plyfs-mount"), self: filepath.Join(root, "usr/local/bin/plyfs"),
		bindir: filepath.Join(root, "usr/local/bin"),
	}
	in.getenv = func(name string) string {
		return map[string]string{"PATH": in.bindir + ":" + filepath.Join(root, "usr/bin")}[name]
	}
	for _, d := range []string{"usr/local/bin", "usr/bin", "sbin", "etc", "var/lib", "home"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if user {
		in.bindir = filepath.Join(in.home, ".local/bin")
	}
	writeText(t, in.program, "#!/bin/sh\n")
	writeText(t, in.self, "#!/bin/sh\n")
	return in
}

func writeText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestStateOfNothing: programs get a list, if only an empty one.
func TestStateOfNothing(t *testing.T) {
	s, err := testInstaller(t, false).state()
	if err != nil {
		t.Fatal(err)
	}
	if text := jsonOf(s); !strings.Contains(text, `"changes":[]`) {
		t.Errorf("%s", text)
	}
}

// snapshot lists everything beneath a directory, with modes, contents and link targets.
func snapshot(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := strings.TrimPrefix(p, root) + " " + info.Mode().String()
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " " + target
		case d.Type().IsRegular():
			line += " " + sum([]byte(readText(t, p)))
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func sameTree(t *testing.T, what string, want, got []string) {
	t.Helper()
	for _, l := range want {
		if !slices.Contains(got, l) {
			t.Errorf("%s: gone: %s", what, l)
		}
	}
	for _, l := range got {
		if !slices.Contains(want, l) {
			t.Errorf("%s: new: %s", what, l)
		}
	}
}

func allEngines() installRequest {
	return installRequest{as: true, engines: []string{enginePodman, engineDocker, engineContainerd}, write: true}
}

// undo takes everything back.
func (in *installer) testUndo(t *testing.T, keep bool) error {
	t.Helper()
	r, err := in.journal().load()
	if err != nil {
		t.Fatal(err)
	}
	undone, err := in.journal().undo(r, keep)
	return errors.Join(err, undoAll(directoriesOf(undone)))
}

func TestInstallIsUndoneExactly(t *testing.T) {
	for name, user := range map[string]bool{"system": false, "user": true} {
		t.Run(name, func(t *testing.T) {
			in := testInstaller(t, user)
			if err := os.MkdirAll(in.path("/run/user/0"), 0o700); err != nil {
				t.Fatal(err)
			}
			writeText(t, in.daemonJSON(), "{\"debug\": true}")
			if err := os.Chmod(in.daemonJSON(), 0o640); err != nil {
				t.Fatal(err)
			}
			before := snapshot(t, in.root)
			if _, err := in.install(allEngines()); err != nil {
				t.Fatal(err)
			}
			if target, err := os.Readlink(filepath.Join(in.bindir, "fuse-overlayfs")); err != nil || filepath.Base(target) != "plyfs-mount" {
				t.Errorf("the link leads to %q, %v", target, err)
			}
			if got, want := readText(t, in.daemonJSON()), "{\"storage-driver\": \"fuse-overlayfs\", \"debug\": true}"; got != want {
				t.Errorf("daemon.json: %s", got)
			}
			if info, err := os.Stat(in.daemonJSON()); err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("daemon.json has another mode: %v, %v", info.Mode(), err)
			}
			if text := readText(t, in.storageConf()); !strings.Contains(text, "mount_program = \""+in.bindir+"/fuse-overlayfs\"\n") {
				t.Errorf("storage.conf: %s", text)
			}
			if text := readText(t, in.containerdTOML()); !strings.Contains(text, "[proxy_plugins.plyfs]\ntype = \"snapshot\"\naddress = ") {
				t.Errorf("config.toml: %s", text)
			}
			installed := snapshot(t, in.root)
			p, err := in.install(allEngines())
			if err != nil || len(p.changes) != 0 {
				t.Errorf("a second time it changes %v, %v", p.changes, err)
			}
			sameTree(t, "a second time", installed, snapshot(t, in.root))
			if err := in.testUndo(t, false); err != nil {
				t.Fatal(err)
			}
			sameTree(t, "undone", before, snapshot(t, in.root))
		})
	}
}

// Engines may be added one by one; one undo takes all back.
func TestInstallGoesOn(t *testing.T) {
	in := testInstaller(t, false)
	before := snapshot(t, in.root)
	for _, q := range []installRequest{
		{as: true},
		{as: true, engines: []string{enginePodman}},
		{as: true, engines: []string{engineDocker}},
		{engines: []string{engineContainerd}, write: true},
	} {
		if _, err := in.install(q); err != nil {
			t.Fatal(err)
		}
	}
	// A link in the place of a file is a change, too, which may be left.
	if err := errors.Join(os.Remove(in.daemonJSON()), os.Symlink("/dev/null", in.daemonJSON())); err != nil {
		t.Fatal(err)
	}
	if err := in.testUndo(t, false); !errors.Is(err, errInstallChanged) {
		t.Errorf("a link in the place of a file: %v", err)
	}
	if err := errors.Join(in.testUndo(t, true), os.Remove(in.daemonJSON()), os.Remove(filepath.Dir(in.daemonJSON()))); err != nil {
		t.Fatal(err)
	}
	sameTree(t, "undone", before, snapshot(t, in.root))
}

// What an administrator changed after plyfs did stays, whatever uninstall is told.
func TestUninstallOfWhatWasChanged(t *testing.T) {
	in := testInstaller(t, false)
	writeText(t, in.storageConf(), "[storage]\ndriver = \"overlay\"\n")
	if _, err := in.install(installRequest{as: true, engines: []string{enginePodman}}); err != nil {
		t.Fatal(err)
	}
	edited := readText(t, in.storageConf()) + "# mine\n"
	writeText(t, in.storageConf(), edited)
	installed := snapshot(t, in.root)
	err := in.testUndo(t, false)
	if !errors.Is(err, errInstallChanged) || !strings.Contains(err.Error(), in.storageConf()) || !strings.Contains(err.Error(), "--leave-changed") {
		t.Errorf("uninstall: %v", err)
	}
	sameTree(t, "refused", installed, snapshot(t, in.root))
	if err := in.testUndo(t, true); err != nil {
		t.Fatal(err)
	}
	if got := readText(t, in.storageConf()); got != edited {
		t.Errorf("the changed file was touched: %s", got)
	}
	if got := readText(t, backupName(in.storageConf())); got != "[storage]\ndriver = \"overlay\"\n" {
		t.Errorf("the backup is lost: %s", got)
	}
	if _, err := os.Lstat(filepath.Join(in.bindir, "fuse-overlayfs")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link stays: %v", err)
	}
	if _, err := os.Lstat(in.journal().path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the record stays: %v", err)
	}
}

// An installation that fails, or is killed, after each of its changes leaves nothing of them.
func TestInstallFailsHalfWay(t *testing.T) {
	in := testInstaller(t, false)
	writeText(t, in.storageConf(), "[storage]\ndriver = \"overlay\"\n")
	writeText(t, in.daemonJSON(), "{}\n")
	before := snapshot(t, in.root)
	p, err := in.plan(installRecord{}, allEngines())
	if err != nil {
		t.Fatal(err)
	}
	if len(p.changes) < 7 {
		t.Fatalf("only %d changes", len(p.changes))
	}
	for n := range len(p.changes) + 1 {
		// The n first are done, the next one is not.
		made, release, err := in.journal().lock()
		if err != nil {
			t.Fatal(err)
		}
		broken := append(slices.Clone(p.changes[:n]), installChange{Kind: changeDirectory, Path: filepath.Join(in.root, "no/such")})
		err = in.journal().apply(installRecord{Version: installVersion}, made, broken)
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("after %d changes: %v", n, err)
		}
		if err := undoAll(made); err != nil {
			t.Fatal(err)
		}
		release()
		sameTree(t, "a failure", before, snapshot(t, in.root))

		// Killed there: the record is what tells.
		if made, release, err = in.journal().lock(); err != nil {
			t.Fatal(err)
		}
		if err := in.journal().save(installRecord{Version: installVersion, Done: made, Pending: p.changes}); err != nil {
			t.Fatal(err)
		}
		if err := doAll(p.changes[:n]); err != nil {
			t.Fatal(err)
		}
		release()
		r, err := in.journal().load()
		if err != nil {
			t.Fatal(err)
		}
		if r, err = in.journal().recover(r); err != nil {
			t.Fatalf("killed after %d changes: %v", n, err)
		}
		undone, err := in.journal().undo(r, false)
		if err := errors.Join(err, undoAll(directoriesOf(undone))); err != nil {
			t.Fatal(err)
		}
		sameTree(t, "a kill", before, snapshot(t, in.root))
	}
}

// A kill in the middle of replacing a file: the new one is written, or linked, or in place already.
func TestInstallKilledInAFile(t *testing.T) {
	in := testInstaller(t, false)
	path := filepath.Join(in.root, "etc/f")
	writeText(t, path, "old\n")
	before := snapshot(t, in.root)
	c := fileChange(enginePodman, path, []byte("old\n"), []byte("new\n"))
	for name, reach := range map[string]func() error{
		"staged":   func() error { return stageFile(stagedName(path), c.text, 0o644) },
		"linked":   func() error { return errors.Join(stageFile(stagedName(path), c.text, 0o644), os.Link(path, c.Backup)) },
		"replaced": c.do,
		"undone":   func() error { return errors.Join(c.do(), c.undo()) },
	} {
		if err := errors.Join(reach(), c.undo()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		sameTree(t, name, before, snapshot(t, in.root))
	}
}

func TestInstallRefuses(t *testing.T) {
	podman := installRequest{as: true, engines: []string{enginePodman}}
	docker := installRequest{as: true, engines: []string{engineDocker}}
	for name, c := range map[string]struct {
		request installRequest
		spoil   func(t *testing.T, in *installer)
		class   error
		words   string
	}{
		"a real fuse-overlayfs in the way": {installRequest{as: true}, func(t *testing.T, in *installer) {
			writeText(t, filepath.Join(in.bindir, "fuse-overlayfs"), "another")
		}, errInstallConflict, "--bindir"},
		"another driver": {podman, func(t *testing.T, in *installer) {
			writeText(t, in.storageConf(), "[storage]\ndriver = \"vfs\"\n")
		}, errInstallConflict, `driver = "vfs"`},
		"another mount program": {podman, func(t *testing.T, in *installer) {
			writeText(t, in.storageConf(), "[storage.options.overlay]\nmount_program = \"/opt/x\"\n")
		}, errInstallConflict, "/opt/x"},
		"composefs": {podman, func(t *testing.T, in *installer) {
			writeText(t, in.storageConf(), "[storage.options.overlay]\nuse_composefs = \"true\"\n")
		}, errInstallConflict, "use_composefs"},
		"a storage.conf that is none": {podman, func(t *testing.T, in *installer) {
			writeText(t, in.storageConf(), "[storage]\n\ndriver = overlay\n")
		}, nil, "storage.conf:3"},
		"a backup in the way": {podman, func(t *testing.T, in *installer) {
			writeText(t, in.storageConf(), "[storage]\n")
			writeText(t, backupName(in.storageConf()), "")
		}, errInstallConflict, "plyfs-backup"},
		"a directory that everybody may write": {installRequest{as: true}, func(t *testing.T, in *installer) {
			if err := os.Chmod(in.bindir, 0o777); err != nil {
				t.Fatal(err)
			}
		}, errInstallUntrusted, "chmod go-w"},
		"a link of another user": {podman, func(t *testing.T, in *installer) {
			dir := filepath.Dir(in.storageConf())
			if err := errors.Join(os.Symlink("/tmp", dir), os.Lchown(dir, 1234, 1234)); err != nil {
				t.Fatal(err)
			}
		}, errInstallUntrusted, "user 1234"},
		"a file of another user": {docker, func(t *testing.T, in *installer) {
			writeText(t, in.daemonJSON(), "{}")
			if err := os.Chown(in.daemonJSON(), 1234, 0); err != nil {
				t.Fatal(err)
			}
		}, errInstallUntrusted, "user 1234"},
		"another storage driver of docker": {docker, func(t *testing.T, in *installer) {
			writeText(t, in.daemonJSON(), `{"storage-driver": "overlay2"}`)
		}, errInstallConflict, "overlay2"},
		"options of another driver": {docker, func(t *testing.T, in *installer) {
			writeText(t, in.daemonJSON(), `{"storage-opts": ["overlay2.size=1G"]}`)
		}, errInstallConflict, "storage-opts"},
		"containerd's image store": {docker, func(t *testing.T, in *installer) {
			writeText(t, in.daemonJSON(), `{"features": {"containerd-snapshotter": true}}`)
		}, errInstallConflict, "--engine containerd"},
		"a daemon.json that is none": {docker, func(t *testing.T, in *installer) {
			writeText(t, in.daemonJSON(), `{} {}`)
		}, nil, "daemon.json"},
		"another snapshotter of the name": {installRequest{engines: []string{engineContainerd}, write: true}, func(t *testing.T, in *installer) {
			writeText(t, in.containerdTOML(), "[proxy_plugins.plyfs]\naddress = \"/x\"\n")
		}, errInstallConflict, "/x"},
		"a record of another version": {podman, func(t *testing.T, in *installer) {
			writeText(t, in.journal().path, `{"version": 99, "program": "", "done": []}`)
		}, nil, "version 99"},
		"a record that is none": {podman, func(t *testing.T, in *installer) {
			writeText(t, in.journal().path, `{"versi`)
		}, nil, "install.json"},
	} {
		t.Run(name, func(t *testing.T) {
			in := testInstaller(t, false)
			c.spoil(t, in)
			before := snapshot(t, in.root)
			_, err := in.install(c.request)
			if err == nil || c.class != nil && !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v, want %q", err, c.words)
			}
			sameTree(t, "refused", before, snapshot(t, in.root))
		})
	}
}

func TestInstallIsAloneAtWork(t *testing.T) {
	in := testInstaller(t, false)
	_, release, err := in.journal().lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.install(installRequest{as: true}); !errors.Is(err, errInstallLocked) {
		t.Errorf("while another is at work: %v", err)
	}
	release()
	if _, err := in.install(installRequest{as: true}); err != nil {
		t.Error(err)
	}
}

func TestInstallWarns(t *testing.T) {
	in := testInstaller(t, false)
	graph := filepath.Join(in.root, "var/lib/containers/storage")
	writeText(t, filepath.Join(graph, "overlay/l/ABC"), "")
	writeText(t, filepath.Join(in.root, "var/lib/docker/overlay2/l/ABC"), "")
	p, err := in.plan(installRecord{}, installRequest{as: true, engines: []string{enginePodman, engineDocker}})
	if err != nil {
		t.Fatal(err)
	}
	wantWarning(t, p, graph+" was used with the kernel's overlayfs")
	wantWarning(t, p, "images and containers of the driver overlay2")

	in = testInstaller(t, false)
	writeText(t, filepath.Join(in.root, "var/lib/containers/storage/vfs-images/images.json"), "[]")
	if p, err = in.plan(installRecord{}, installRequest{as: true, engines: []string{enginePodman}}); err != nil {
		t.Fatal(err)
	}
	wantWarning(t, p, "was made by the driver vfs")

	in = testInstaller(t, false)
	writeText(t, filepath.Join(in.root, "usr/bin/podman"), "")
	in.getenv = pathOf(filepath.Join(in.root, "usr/bin"))
	if p, err = in.plan(installRecord{}, installRequest{as: true}); err != nil {
		t.Fatal(err)
	}
	wantWarning(t, p, "is not on PATH")
	wantWarning(t, p, "add --storage-conf")

	in = testInstaller(t, false)
	writeText(t, filepath.Join(in.root, "usr/bin/fuse-overlayfs"), "another")
	in.getenv = pathOf(filepath.Join(in.root, "usr/bin") + ":" + in.bindir)
	if p, err = in.plan(installRecord{}, installRequest{as: true}); err != nil {
		t.Fatal(err)
	}
	wantWarning(t, p, "comes first on PATH and is another program")
}

// containerd 2 needs more than the snapshotter, and that is said.
func TestInstallWarnsOfUnpack(t *testing.T) {
	const unpack = "\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = \"linux/amd64\"\nsnapshotter = \"plyfs\"\n"
	for text, warned := range map[string]bool{"version = 2\n": false, "version = 3\n": true, "version = 3\n" + unpack: false} {
		in := testInstaller(t, false)
		writeText(t, in.containerdTOML(), text)
		p, err := in.plan(installRecord{}, installRequest{engines: []string{engineContainerd}, write: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(strings.Join(p.warnings, "\n"), "unpack_config"); got != warned {
			t.Errorf("%q: warned %v: %q", text, got, p.warnings)
		}
	}
}

// pathOf is an environment with nothing but a PATH.
func pathOf(path string) func(string) string {
	return func(name string) string {
		if name == "PATH" {
			return path
		}
		return ""
	}
}

func wantWarning(t *testing.T, p *installPlan, words string) {
	t.Helper()
	if !slices.ContainsFunc(p.warnings, func(w string) bool { return strings.Contains(w, words) }) {
		t.Errorf("no warning has %q: %q", words, p.warnings)
	}
}

// A user's storage.conf takes the place of the system's, and with it of where that has the images: they stay.
func TestInstallKeepsTheUsersStore(t *testing.T) {
	in := testInstaller(t, true)
	in.getenv = func(name string) string {
		return map[string]string{"USER": "joe", "XDG_RUNTIME_DIR": filepath.Join(in.root, "run")}[name]
	}
	writeText(t, filepath.Join(in.root, "run/x"), "")
	writeText(t, filepath.Join(in.root, "etc/containers/storage.conf"), "[storage]\ndriver = \"overlay\"\n"+
		"rootless_storage_path = \"/scratch/$USER/storage\"\n\n[storage.options]\nadditionalimagestores = [\"/shared\"]\n")
	if got := in.graphRoot(); got != "/scratch/joe/storage" {
		t.Errorf("before, images are in %s", got)
	}
	p, err := in.install(installRequest{as: true, engines: []string{enginePodman}})
	if err != nil {
		t.Fatal(err)
	}
	got := readText(t, in.storageConf())
	if !strings.Contains(got, "rootless_storage_path = \"/scratch/$USER/storage\"\n") || strings.Contains(got, "graphroot") {
		t.Errorf("got %s", got)
	}
	if got := in.graphRoot(); got != "/scratch/joe/storage" {
		t.Errorf("after, images are in %s", got)
	}
	wantWarning(t, p, "additionalimagestores, which counts no more")
}

// Who takes plyfs away is told of what still names it.
func TestUninstallWarnsOfWhatNamesIt(t *testing.T) {
	in := testInstaller(t, false)
	in.getenv = pathOf(in.bindir)
	if _, err := in.install(installRequest{as: true, engines: []string{enginePodman, engineDocker}}); err != nil {
		t.Fatal(err)
	}
	writeText(t, in.storageConf(), readText(t, in.storageConf())+"# mine\n")
	writeText(t, in.daemonJSON(), readText(t, in.daemonJSON())+"\n")
	r, err := in.journal().load()
	if err != nil {
		t.Fatal(err)
	}
	undone, err := in.journal().undo(r, true)
	if err != nil {
		t.Fatal(err)
	}
	warnings := strings.Join(in.warnDangling(undone), "\n")
	for _, want := range []string{"podman does not start until", "dockerd does not start until"} {
		if !strings.Contains(warnings, want) {
			t.Errorf("no warning has %q: %s", want, warnings)
		}
	}
}

// The vendor's storage.conf is what root's replaces, and so what it has to begin with.
func TestInstallKeepsTheVendorsSettings(t *testing.T) {
	in := testInstaller(t, false)
	writeText(t, in.vendorStorageConf(), "[storage]\ndriver = \"overlay\"\ngraphroot = \"/g\"\n\n[storage.options.overlay]\nmountopt = \"nodev\"\n")
	if _, err := in.install(installRequest{as: true, engines: []string{enginePodman}}); err != nil {
		t.Fatal(err)
	}
	want := "[storage]\ndriver = \"overlay\"\ngraphroot = \"/g\"\nrunroot = \"/run/containers/storage\"\n\n[storage.options.overlay]\nmountopt = \"nodev\"\nmount_program = \"" +
		in.bindir + "/fuse-overlayfs\"\n"
	if got := readText(t, in.storageConf()); got != want {
		t.Errorf("got %s", got)
	}
}

func TestInstallCommandLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"install"}, storeUsage, "--as fuse-overlayfs"},
		{[]string{"install", "--as", "overlay"}, storeUsage, "fuse-overlayfs only"},
		{[]string{"install", "--engine", "lxc"}, storeUsage, "lxc"},
		{[]string{"install", "--as", "fuse-overlayfs", "--user"}, storeUsage, "without it"},
		{[]string{"install", "--as", "fuse-overlayfs", "--bindir", "x"}, storeUsage, "absolute"},
		{[]string{"install", "--as", "fuse-overlayfs", "--write"}, storeUsage, "--engine containerd"},
		{[]string{"install", "there"}, storeUsage, "there"},
		{[]string{"uninstall", "there"}, storeUsage, "there"},
		{[]string{"install", "--bogus"}, storeUsage, "plyfs install"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(append([]string{"plyfs"}, c.args...), &stdout, &stderr)
		if code != c.code || !strings.Contains(stderr.String(), c.text) || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%v: exit code %d, %s", c.args, code, stderr.String())
		}
	}
}
