package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"plyfs/internal/control"
	"plyfs/internal/testenv"
)

// controlled gives a test a runtime directory of its own, and returns where its sockets are.
func controlled(t *testing.T) string {
	t.Helper()
	base := filepath.Join(testenv.Scratch(t), "run")
	t.Setenv(control.EnvRuntimeDir, base)
	return filepath.Join(base, "mounts")
}

// sockets waits until the servers have made n sockets: that is after the mount serves.
func sockets(t *testing.T, n int) []control.Socket {
	t.Helper()
	var list []control.Socket
	testenv.Eventually(t, fmt.Sprintf("%d sockets", n), func() bool {
		var err error
		list, err = control.List(control.Own)
		return err == nil && len(list) == n
	})
	return list
}

func measure(t *testing.T, s control.Socket) control.Metrics {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	defer cancel()
	m, err := s.Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func operation(m control.Metrics, op string) control.Operation {
	i := slices.IndexFunc(m.Operations, func(o control.Operation) bool { return o.Op == op })
	if i < 0 {
		return control.Operation{}
	}
	return m.Operations[i]
}

// listMounts runs plyfs ps --json, and leaves out what is not below dir.
func listMounts(t *testing.T, dir string, args ...string) (list []psMount) {
	t.Helper()
	return mountsIn(t, dir, runIn(t, dir, "plyfs", append([]string{"ps", "--json"}, args...)...))
}

func mountsIn(t *testing.T, dir string, r result) (list []psMount) {
	t.Helper()
	if r.code != 0 || r.stderr != "" {
		t.Fatalf("ps: %+v", r)
	}
	for line := range strings.Lines(r.stdout) {
		var m psMount
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if strings.HasPrefix(m.Target, dir) {
			list = append(list, m)
		}
	}
	return list
}

func TestControlMetrics(t *testing.T) {
	dir := unionTree(t)
	controlled(t)
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers+",index=off", "merged")
	s := sockets(t, 1)[0]
	shell(t, dir, "echo x >>merged/file; mkdir merged/d; ! mkdir merged/d; cat merged/second; ! cat merged/missing 2>/dev/null")
	m := measure(t, s)
	if m.Target != dir+"/merged" || m.Upper != dir+"/upper" || !slices.Equal(m.Lowers, []string{dir + "/lower", dir + "/lower2"}) {
		t.Errorf("target %s, upper %s, lowers %v", m.Target, m.Upper, m.Lowers)
	}
	if m.Type != "fuse.plyfs" || m.Data != "noopen" || m.ReadOnly || m.Device == "" || m.ResidentBytes < 1<<20 || m.Quota != nil {
		t.Errorf("status %+v", m.Status)
	}
	if m.CopyUps != 1 || m.CopyUpBytes != 4 || m.CopyUpDurations.Count() != 1 || m.BytesWritten != 2 || m.BytesRead != 4 {
		t.Errorf("%d copy-ups of %d bytes, %d measured, %d bytes written and %d read",
			m.CopyUps, m.CopyUpBytes, m.CopyUpDurations.Count(), m.BytesWritten, m.BytesRead)
	}
	if w := operation(m, "WRITE"); w.Requests != 1 || len(w.Errors) != 0 || w.Durations.Count() != 0 {
		t.Errorf("before anyone asked, writes are %+v", w)
	}
	if m.Inodes < 3 || m.HeapBytes == 0 || m.CPUSeconds == 0 || m.Goroutines == 0 || m.FileMisses == 0 {
		t.Errorf("metrics %+v", m)
	}
	shell(t, dir, "echo y >>merged/file; ! rmdir merged/none")
	m = measure(t, s)
	if w := operation(m, "WRITE"); w.Requests != 2 || w.Durations.Count() != 1 || w.Durations.SumNanoseconds == 0 {
		t.Errorf("once someone asked, writes are %+v", w)
	}
	got := runIn(t, dir, "/bin/sh", "-c", "exec ln merged/file merged/d")
	if got.code != 0 {
		t.Fatalf("ln: %+v", got)
	}
	if l := operation(measure(t, s), "LINK"); l.Requests != 1 {
		t.Errorf("links are %+v", l)
	}
	mustMount(t, dir, "plyfs", "umount", "merged")
	waitGone(t, dir)
	if names, err := os.ReadDir(filepath.Dir(s.Path)); err != nil || len(names) != 0 {
		t.Errorf("after the unmount there are %v, %v", names, err)
	}
}

// TestErrorsAreCounted by operation and class, where the kernel does not answer by itself.
func TestErrorsAreCounted(t *testing.T) {
	dir := unionTree(t)
	controlled(t)
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers+",index=off,quota_bytes=1M", "merged")
	s := sockets(t, 1)[0]
	shell(t, dir, "mkdir -p merged/d/e; ! rmdir merged/d 2>/dev/null; ! head -c 3M /dev/zero >merged/big 2>/dev/null")
	m := measure(t, s)
	if got := operation(m, "RMDIR").Errors["exists"]; got != 1 {
		t.Errorf("a directory that is not empty: %+v", operation(m, "RMDIR"))
	}
	if got := operation(m, "WRITE").Errors["space"]; got == 0 {
		t.Errorf("beyond the quota: %+v", operation(m, "WRITE"))
	}
	if q := m.Quota; q == nil || q.LimitBytes != 1<<20 || q.Bytes == 0 || q.Bytes > q.LimitBytes || q.Inodes < 4 {
		t.Errorf("quota %+v", q)
	}
	if list := listMounts(t, dir); len(list) != 1 || list[0].UpperBytes != m.Quota.Bytes {
		t.Errorf("ps: %+v, want %d bytes", list, m.Quota.Bytes)
	}
	mustMount(t, dir, "plyfs", "umount", "merged")
}

func TestPS(t *testing.T) {
	dir, other := unionTree(t), unionTree(t)
	socketDir := controlled(t)
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "merged")
	mustMount(t, other, "fuse-overlayfs", "-o", "lowerdir=lower:lower2", "merged")
	sockets(t, 2)
	shell(t, dir, "head -c 10000 /dev/zero >merged/new; ln merged/new merged/again")
	list := listMounts(t, dir, "--size")
	if len(list) != 1 {
		t.Fatalf("%d mounts: %+v", len(list), list)
	}
	m := list[0]
	if m.State != control.StateOK || m.LowerCount != 2 || m.UpperBytes < 10000 || m.UpperBytes > 19999 || m.Foreign || m.Engine != "" || m.UID != 0 {
		t.Errorf("%+v", m)
	}
	if pids := servers(testenv.Binary(t), dir); !slices.Contains(pids, m.PID) {
		t.Errorf("pid %d, want one of %v", m.PID, pids)
	}
	if list := listMounts(t, other); len(list) != 1 || list[0].Type != "fuse.fuse-overlayfs" || !list[0].ReadOnly || list[0].UpperBytes != -1 {
		t.Errorf("%+v", list)
	}
	text := runIn(t, dir, "plyfs", "ps").stdout
	if !strings.HasPrefix(text, "PID ") || !strings.Contains(text, dir+"/merged") || !strings.Contains(text, other+"/merged") {
		t.Errorf("ps prints\n%s", text)
	}

	// A server that is killed leaves a mount without, and a socket that the first reader removes.
	if err := syscall.Kill(m.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the mount has no server", func() bool {
		list = listMounts(t, dir)
		return len(list) == 1 && list[0].State == control.StateNoServer
	})
	testenv.Eventually(t, "the socket is gone", func() bool {
		listMounts(t, dir)
		names, err := os.ReadDir(socketDir)
		return err == nil && len(names) == 1
	})
	if list := listMounts(t, other); len(list) != 1 || list[0].State != control.StateOK {
		t.Errorf("the other mount: %+v", list)
	}
	testenv.Unmount(t, dir+"/merged")
	testenv.Unmount(t, other+"/merged")
	waitGone(t, other)
	if list := append(listMounts(t, dir), listMounts(t, other)...); len(list) != 0 {
		t.Errorf("after the unmount: %+v", list)
	}
}

// TestPSSilent: a server that hangs costs its time, and is told from others.
func TestPSSilent(t *testing.T) {
	dir := unionTree(t)
	controlled(t)
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "merged")
	pid := sockets(t, 1)[0].PID
	testenv.Stop(t, pid)
	list := listMounts(t, dir)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].State != control.StateSilent || list[0].PID != pid || list[0].LowerCount != 0 && list[0].Upper == "" {
		t.Errorf("%+v", list)
	}
	testenv.Unmount(t, dir+"/merged")
}

// TestUmountWaits: when the command returns the server has handled all requests and has withdrawn its socket.
func TestUmountWaits(t *testing.T) {
	dir := unionTree(t)
	controlled(t)
	for range 10 {
		mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "merged")
		s := sockets(t, 1)[0]
		mustMount(t, dir, "plyfs", "umount", "merged")
		if _, err := os.Lstat(s.Path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the server goes on after the unmount: %v", err)
		}
		// Nothing keeps the work directory.
		if got := runIn(t, dir, "plyfs", "fsck", "-o", allLayers); got.code != 0 {
			t.Fatalf("%+v", got)
		}
		waitGone(t, dir)
	}
}

// TestUmountCopied: a mount that lives on in another mount namespace is not waited for.
func TestUmountCopied(t *testing.T) {
	dir := unionTree(t)
	controlled(t)
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "merged")
	sockets(t, 1)
	holder := command(t, dir, "/usr/bin/unshare", "-m", "--propagation", "private", "/bin/sh", "-c", "echo; read x; cat merged/file")
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	mustMount(t, dir, "plyfs", "umount", "merged")
	if took := time.Since(began); took > endWithin/2 {
		t.Errorf("the command took %v", took)
	}
	_ = in.Close()
	if got, err := io.ReadAll(out); err != nil || string(got) != "low\n" {
		t.Errorf("the other mount holds %q, %v", got, err)
	}
	if err := holder.Wait(); err != nil {
		t.Error(err)
	}
	waitGone(t, dir)
}

// TestUmountSilent: a server that hangs is not waited for, beyond a limit, and its mount goes away.
func TestUmountSilent(t *testing.T) {
	dir := unionTree(t)
	controlled(t)
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "merged")
	pid := sockets(t, 1)[0].PID
	testenv.Stop(t, pid)
	got := runIn(t, dir, "plyfs", "umount", "merged")
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got != (result{}) {
		t.Errorf("umount: %+v", got)
	}
	waitGone(t, dir)
}

// TestNoSocket: a mount does as well without, and is found by its process.
func TestNoSocket(t *testing.T) {
	dir := unionTree(t)
	controlled(t)
	write(t, "", dir, "file")
	t.Setenv(control.EnvRuntimeDir, dir+"/file")
	mustMount(t, dir, "plyfs", "mount", "-o", "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work", dir+"/merged")
	if got := shell(t, dir, "cat merged/file"); got != "low\n" {
		t.Errorf("the mount holds %q", got)
	}
	controlled(t)
	list := listMounts(t, dir)
	if len(list) != 1 || list[0].State != control.StateNoSocket || list[0].LowerCount != 1 || list[0].Upper != dir+"/upper" ||
		list[0].Type != "fuse.plyfs" || list[0].PID == 0 || list[0].Started.IsZero() || list[0].ResidentBytes == 0 {
		t.Errorf("%+v", list)
	}
	testenv.Unmount(t, dir+"/merged")
	waitGone(t, dir)

	// In the mount itself a socket would keep it from ever ending.
	mkdirs(t, dir, "merged/run", "upper/run")
	t.Setenv(control.EnvRuntimeDir, dir+"/merged/run")
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "merged")
	testenv.Unmount(t, dir+"/merged")
	waitGone(t, dir)
	if names, err := os.ReadDir(dir + "/upper/run"); err != nil || len(names) != 0 {
		t.Errorf("in the mount there are %v, %v", names, err)
	}
}

// TestPSOtherUser: to another user a mount of root is a line of mountinfo.
func TestPSOtherUser(t *testing.T) {
	dir := unionTree(t)
	controlled(t)
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "merged")
	sockets(t, 1)
	for _, args := range [][]string{{"ps", "--json"}, {"ps", "--json", "--all"}, {"top", "--once", "--json", "--interval=100ms"}} {
		cmd := command(t, dir, "plyfs", args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		list := mountsIn(t, dir, finish(t, cmd))
		if args[0] == "top" && len(list) != 0 {
			t.Errorf("%v: %+v", args, list)
		}
		for _, m := range list {
			if m.State != control.StateNoSocket || m.PID != 0 || len(m.Lowers) != 0 || m.Upper != "" {
				t.Errorf("%v: %+v", args, m)
			}
		}
	}
	testenv.Unmount(t, dir+"/merged")
}

// TestPSUserNamespace: a mount in a user's user namespace, as podman makes it, is seen by the user and root outside.
func TestPSUserNamespace(t *testing.T) {
	dir := unionTree(t)
	const uid = 1234
	for _, name := range []string{".", "lower", "lower2", "upper", "work", "merged"} {
		if err := os.Chown(filepath.Join(dir, name), uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	run := filepath.Join(dir, "runtime")
	mkdirs(t, dir, "runtime")
	if err := os.Chown(run, uid, uid); err != nil {
		t.Fatal(err)
	}
	asUser := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.Env = slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, control.EnvRuntimeDir) })
		cmd.Env = append(cmd.Env, "XDG_RUNTIME_DIR="+run, "HOME="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return cmd
	}
	inside := asUser(command(t, dir, "/usr/bin/unshare", "-Urm", "/bin/sh", "-ec",
		`"$0" mount -o "$1" "$2"; read end; umount "$2"`, testenv.Binary(t), allLayers, dir+"/merged"))
	stdin, err := inside.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan result, 1)
	go func() { ended <- finish(t, inside) }()
	seen := func(cmd *exec.Cmd) bool {
		list := mountsIn(t, dir, finish(t, cmd))
		return len(list) == 1 && list[0].State == control.StateOK && list[0].Foreign && list[0].UID == uid && list[0].LowerCount == 2
	}
	testenv.Eventually(t, "the user sees the mount", func() bool { return seen(asUser(command(t, dir, "plyfs", "ps", "--json"))) })
	t.Setenv(control.EnvRuntimeDir, filepath.Join(run, "plyfs"))
	if !seen(command(t, dir, "plyfs", "ps", "--json")) {
		t.Error("root does not see the mount")
	}
	controlled(t) // where its socket is not
	list := mountsIn(t, dir, finish(t, command(t, dir, "plyfs", "ps", "--json", "--all")))
	if len(list) != 1 || list[0].State != control.StateNoSocket || !list[0].Foreign {
		t.Errorf("without a socket: %+v", list)
	}
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Error(err)
	}
	if r := <-ended; r.code != 0 {
		t.Errorf("in the namespace: %+v", r)
	}
}
