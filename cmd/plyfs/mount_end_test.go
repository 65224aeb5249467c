package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
	"plyfs/fs/server"
	"plyfs/internal/control"
	"plyfs/internal/testenv"
)

// TestSymlinkTarget: a mount point is the directory that the path leads to.
func TestSymlinkTarget(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "lower/dir/of")
	write(t, "both\n", dir, "lower/dir/of/lower")
	for _, l := range [][2]string{{"merged", "last"}, {"last", "link"}, {filepath.Join(dir, "last"), "absolute"}} {
		if err := os.Symlink(l[0], filepath.Join(dir, l[1])); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"last", "link", "absolute"} {
		mustMount(t, dir, "fuse-overlayfs", "-o", allLayers, link)
		if got := shell(t, dir, "cat "+link+"/file; cat merged/dir/of/lower; ls merged"); got != "low\nboth\ndir\nfile\nsecond\n" {
			t.Errorf("through %s the mount holds %q", link, got)
		}
		if len(mountsOn(t, filepath.Join(dir, "merged"))) != 1 {
			t.Fatalf("%s: not mounted", link)
		}
		mustMount(t, dir, "plyfs", "umount", link)
		waitGone(t, dir)
	}
	cmd, stderr := foregroundOn(t, dir, allLayers, "link")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || len(mountsOn(t, filepath.Join(dir, "merged"))) != 0 {
		t.Errorf("after a signal: %v, %s", err, stderr)
	}
	if got := runIn(t, dir, "plyfs", "umount", "link"); got.code != exitUsage || !strings.Contains(got.stderr, "link is not a mount point") {
		t.Errorf("umount of nothing: %+v", got)
	}
}

// signalled sends a signal and gives the server some time.
func signalled(t *testing.T, cmd *exec.Cmd, sig syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
}

// TestSignalUnderCover: a signal that could unmount nothing ends nothing, and the next one tries again.
func TestSignalUnderCover(t *testing.T) {
	dir := unionTree(t)
	merged := filepath.Join(dir, "merged")
	cmd, stderr := startForeground(t, dir, allLayers)
	if err := unix.Mount("cover", merged, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	signalled(t, cmd, syscall.SIGTERM)
	if err := unix.Unmount(merged, 0); err != nil {
		t.Fatal(err)
	}
	if got := shell(t, dir, "cat merged/file"); got != "low\n" {
		t.Errorf("under the cover is %q", got)
	}
	signalled(t, cmd, syscall.SIGTERM)
	if err := cmd.Wait(); err != nil || len(mountsOn(t, merged)) != 0 {
		t.Errorf("%v\n%s", err, stderr)
	}
	if !strings.Contains(stderr.String(), "not unmounted") {
		t.Errorf("log: %s", stderr)
	}

	// Two signals end it in any case.
	cmd, stderr = startForeground(t, dir, allLayers)
	if err := unix.Mount("cover", merged, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	signalled(t, cmd, syscall.SIGTERM)
	signalled(t, cmd, syscall.SIGTERM)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 8 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	for range 2 {
		testenv.Unmount(t, merged)
	}
}

// TestSignalAfterMove: the server finds its mount where it was moved to.
func TestSignalAfterMove(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "moved")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	cmd, stderr := startForeground(t, dir, allLayers)
	shell(t, dir, "cat merged/file")
	if err := unix.Mount(filepath.Join(dir, "merged"), filepath.Join(dir, "moved"), "", unix.MS_MOVE, ""); err != nil {
		t.Fatal(err)
	}
	signalled(t, cmd, syscall.SIGTERM)
	if err := cmd.Wait(); err != nil || len(mountsOn(t, filepath.Join(dir, "moved"))) != 0 {
		t.Errorf("%v\n%s", err, stderr)
	}
}

// TestIgnoredSignals: what nohup(1) had ignored stays so.
func TestIgnoredSignals(t *testing.T) {
	dir := unionTree(t)
	cmd := command(t, dir, "/bin/sh", "-c", "trap '' HUP INT; exec "+program(t, "fuse-overlayfs")+" -f -o "+allLayers+" merged")
	stderr := awaitMount(t, dir, cmd)
	signalled(t, cmd, syscall.SIGHUP)
	signalled(t, cmd, syscall.SIGINT)
	if got := runIn(t, dir, "/bin/cat", "merged/file"); got.stdout != "low\n" {
		t.Errorf("after ignored signals the mount holds %+v", got)
	}
	signalled(t, cmd, syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, stderr)
	}
}

// TestNoPath: a plain user's mount finds fusermount3 without PATH.
func TestNoPath(t *testing.T) {
	dir := unionTree(t)
	for _, name := range []string{"upper", "work", "merged"} {
		if err := os.Chown(filepath.Join(dir, name), 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"mount", "-o", allLayers, "merged"}, {"umount", "merged"}} {
		cmd := asNobody(command(t, dir, "plyfs", args...))
		cmd.Env = []string{"PATH="}
		if got := finish(t, cmd); got != (result{}) {
			t.Fatalf("%s: %+v", args[0], got)
		}
	}
	waitGone(t, dir)
}

// TestPsWithoutSocket: servers are known by their program, whatever its name is.
func TestPsWithoutSocket(t *testing.T) {
	dir := unionTree(t)
	copied := filepath.Join(testenv.Scratch(t), "fuse-overlayfs")
	b, err := os.ReadFile(testenv.MountBinary(t))
	if err == nil {
		err = os.WriteFile(copied, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, dir, copied, "-o", allLayers, dir+"/merged")
	cmd.Env = append(os.Environ(), "PLYFS_RUNTIME_DIR=relative")
	if got := finish(t, cmd); got != (result{}) {
		t.Fatalf("%+v", got)
	}
	if list := listMounts(t, dir); len(list) != 1 || list[0].State != control.StateNoSocket || list[0].PID == 0 || list[0].LowerCount != 2 {
		t.Errorf("%+v", list)
	}
	mustMount(t, dir, "plyfs", "umount", "merged")
	testenv.Eventually(t, "the server ends", func() bool { return len(listMounts(t, dir)) == 0 })
}

// TestStandbyLetsGo: of a mount that is over, a server that stands by keeps nothing, whatever index it had.
func TestStandbyLetsGo(t *testing.T) {
	dir := unionTree(t)
	if got := runIn(t, dir, "plyfs", "index", "build", "-q", "--dir", dir+"/index", "lower", "lower2"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	cmd := command(t, dir, server.NamePlyfs)
	cmd.Env = append(os.Environ(), mountopt.StandbyEnv+"=3")
	cmd.ExtraFiles = []*os.File{theirs}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	words, err := json.Marshal([]string{"plyfs", "mount", "-o", allLayers + ",index=" + dir + "/index", "merged"})
	if err != nil {
		t.Fatal(err)
	}
	verdict := func() {
		t.Helper()
		var length [4]byte
		if _, err := io.ReadFull(ours, length[:]); err != nil {
			t.Fatal(err, stderr.String())
		}
		got := make([]byte, binary.LittleEndian.Uint32(length[:]))
		if _, err := io.ReadFull(ours, got); err != nil || !bytes.Equal(got, []byte{0}) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	// The first mount may open what the process keeps for itself.
	kept := 0
	for i := range 4 {
		if _, err := io.WriteString(ours, order(string(words))); err != nil {
			t.Fatal(err)
		}
		verdict()
		if got := shell(t, dir, "cat merged/file; ls /proc/"+fmt.Sprint(cmd.Process.Pid)+"/fd -l | grep -c index/"); !strings.HasPrefix(got, "low\n") {
			t.Errorf("the mount holds %q", got)
		}
		testenv.Unmount(t, filepath.Join(dir, "merged"))
		verdict()
		testenv.Eventually(t, "layers and index are closed", func() bool {
			return len(descriptors(t, cmd.Process.Pid, dir+"/"))+len(descriptors(t, cmd.Process.Pid, "/dev/fuse")) == 0
		})
		if i < 2 {
			kept = len(descriptors(t, cmd.Process.Pid, ""))
			continue
		}
		testenv.Eventually(t, fmt.Sprintf("no more than %d descriptors are open", kept), func() bool {
			return len(descriptors(t, cmd.Process.Pid, "")) <= kept
		})
	}
	_ = ours.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, stderr.String())
	}
}

// descriptors are what a process has open, of what begins with prefix.
func descriptors(t *testing.T, pid int, prefix string) (open []string) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, prefix) {
			open = append(open, to)
		}
	}
	return open
}
