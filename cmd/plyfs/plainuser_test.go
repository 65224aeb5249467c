package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// asNobody prepares cmd to run as a plain user.
func asNobody(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

func TestPlainUser(t *testing.T) {
	dir := unionTree(t)
	for _, name := range []string{"upper", "work", "merged"} {
		if err := os.Chown(filepath.Join(dir, name), 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	if got := finish(t, asNobody(command(t, dir, "fuse-overlayfs", "-o", allLayers, "merged"))); got != (result{}) {
		t.Fatalf("%+v", got)
	}
	if m := mountsOn(t, filepath.Join(dir, "merged")); len(m) != 1 || m[0].FSType != "fuse.fuse-overlayfs" ||
		!strings.Contains(m[0].Options, "nosuid,nodev") || strings.Contains(m[0].VFSOptions, "allow_other") {
		t.Errorf("%+v", m)
	}
	got := finish(t, asNobody(command(t, dir, "/bin/sh", "-ec", "cat merged/file; echo new >merged/new; cat upper/new")))
	if got != (result{stdout: "low\nnew\n"}) {
		t.Errorf("%+v", got)
	}
	if got := finish(t, asNobody(command(t, dir, "plyfs", "umount", "merged"))); got != (result{}) {
		t.Errorf("umount: %+v", got)
	}
	waitGone(t, dir)
}

// runInPlainMount runs a script as a plain user, in a mount of his.
func runInPlainMount(t *testing.T, dir, script, want string) {
	t.Helper()
	if got := finish(t, asNobody(command(t, dir, "fuse-overlayfs", "-o", allLayers, "merged"))); got != (result{}) {
		t.Fatalf("%+v", got)
	}
	if got := finish(t, asNobody(command(t, dir, "/bin/sh", "-ec", script))); got != (result{stdout: want}) {
		t.Errorf("%+v, want %q", got, want)
	}
	if got := finish(t, asNobody(command(t, dir, "plyfs", "umount", "merged"))); got != (result{}) {
		t.Errorf("umount: %+v", got)
	}
	waitGone(t, dir)
}

// A plain user's server copies up what nobody may write.
func TestPlainUserReadOnlyFiles(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "lower/ro", "lower/objects")
	for _, name := range []string{"a", "b", "objects/x", "ro/f"} {
		write(t, name+"\n", dir, "lower", name)
	}
	if err := os.Link(filepath.Join(dir, "lower/objects/x"), filepath.Join(dir, "lower/objects/y")); err != nil {
		t.Fatal(err)
	}
	shell(t, dir, "chmod 444 lower/a lower/b lower/objects/x lower/ro/f; chmod 555 lower/ro; chown -R 65534:65534 lower upper work merged")
	script := `cd merged; chmod 644 a; echo + >>a; cat a; mv b c; ln c d; cmp c d; cat d; stat -c %a,%h c
		touch objects/x; mv objects/x objects/z; cmp objects/y objects/z; rm objects/y; cat objects/z; chmod 755 ro; chmod 400 ro/f; echo new >ro/new; ls ro`
	runInPlainMount(t, dir, script, "a\n+\nb\n444,2\nobjects/x\nf\nnew\n")
}

// A plain user whose server has no capabilities opens a directory of his own again that he has shut against himself.
func TestPlainUserShutsDir(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "lower/d", "lower/shut")
	write(t, "in\n", dir, "lower/d/f")
	if err := os.Chmod(filepath.Join(dir, "lower/shut"), 0); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"upper", "work", "merged", "lower/d", "lower/shut"} {
		if err := os.Chown(filepath.Join(dir, name), 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	script := `cd merged; mkdir -m 0 a; chmod 0 d; stat -c %a a d; ls -l >/dev/null; chmod 700 a d; stat -c %a a d; cat d/f
		stat -c %a shut; ! chmod 700 shut 2>/dev/null; rmdir a`
	runInPlainMount(t, dir, script, "0\n0\n700\n700\nin\n0\n")
}
