package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"plyfs/fs/server"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.Options{Binary: true})) }

// program returns the path of the built program under one of its names.
func program(t *testing.T, name string) string {
	t.Helper()
	bin := testenv.Binary(t)
	if name == "plyfs" {
		return bin
	}
	if _, mounts := server.PersonalityOf(name); mounts {
		bin = testenv.MountBinary(t)
	}
	link := filepath.Join(testenv.Scratch(t), name)
	if err := os.Symlink(bin, link); err != nil {
		t.Fatal(err)
	}
	return link
}

// result is what a run of the program left.
type result struct {
	stdout, stderr string
	code           int
}

// longest bounds each program that a test runs.
const longest = 20 * time.Second

// command prepares a run of name, one of the program's names or a path, in dir.
func command(t *testing.T, dir, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	t.Cleanup(cancel)
	if !strings.Contains(name, "/") {
		name = program(t, name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	return cmd
}

// finish runs cmd until it has ended and both its output pipes reached their end.
func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func runIn(t *testing.T, dir, name string, args ...string) result {
	t.Helper()
	return finish(t, command(t, dir, name, args...))
}

// leavesNothing fails the test if, at its end, something is mounted below dir or the program still runs for it.
func leavesNothing(t *testing.T, dir string) {
	t.Helper()
	bin := testenv.Binary(t)
	t.Cleanup(func() {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			t.Error(err)
		}
		for _, m := range mounts {
			t.Errorf("still mounted: %s (%s)", m.Mountpoint, m.FSType)
			_ = exec.Command("umount", "-l", m.Mountpoint).Run()
		}
		var left []int
		for range 200 {
			if left = servers(bin, dir); len(left) == 0 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		for _, pid := range left {
			t.Errorf("still running: %d", pid)
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
	})
}

// servers returns the processes of the built programs, of which bin is one, whose command line mentions dir or that have it as a layer.
func servers(bin, dir string) []int {
	var out []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
		if err != nil || filepath.Dir(exe) != filepath.Dir(bin) {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if strings.Contains(string(cmdline), dir) || holds(pid, dir) {
			out = append(out, pid)
		}
	}
	return out
}

// holds reports whether the process has something below dir open.
func holds(pid int, dir string) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, dir) {
			return true
		}
	}
	return false
}

// mkdirs makes directories below dir.
func mkdirs(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, n := range names {
		if err := os.MkdirAll(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, content string, elem ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(elem...), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
