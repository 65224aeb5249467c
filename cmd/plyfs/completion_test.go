package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"plyfs/fs/server"
	"plyfs/internal/testenv"
)

// bashCompletes returns what bash offers at the end of line, with the script that the program prints.
func bashCompletes(t *testing.T, line string, env ...string) []string {
	t.Helper()
	const driver = `
		source <(plyfs completion bash)
		COMP_LINE=$1 COMP_POINT=${#1}
		# The words as bash breaks them for a completion function.
		current=${COMP_LINE##*[[:blank:]:=]}
		compopt() { :; }
		_plyfs plyfs "$current" ""
		printf '%s\n' "${COMPREPLY[@]}"`
	cmd := exec.Command("bash", "--norc", "-euc", driver, "bash", line)
	cmd.Env = append(cmd.Environ(), append(env, "PATH="+filepath.Dir(program(t, server.NamePlyfs))+":/usr/bin:/bin")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bash, %q: %v: %s", line, err, &stderr)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

func TestBashCompletion(t *testing.T) {
	root := filepath.Join(testenv.Scratch(t), "store")
	store := "PLYFS_ROOT=" + root
	if r := runIn(t, ".", server.NamePlyfs, "container", "create", "--root", root, "--driver", "vfs", "scratch", "web-1"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	for line, want := range map[string]string{
		"plyfs cont":                    "container",
		"plyfs image pu":                "pull push",
		"plyfs container rm --forc":     "--force",
		"plyfs container rm w":          "web-1",
		"plyfs --version contai":        "container",
		"plyfs completion ":             "bash zsh fish",
		"plyfs image export --format=d": "docker-archive",
		"plyfs layer ls --driver over":  "overlay2",
		"plyfs fsck --json --no-such":   "",
	} {
		if got := bashCompletes(t, line, store); strings.Join(got, " ") != want {
			t.Errorf("%q completes to %q, want %q", line, got, want)
		}
	}
	if got := bashCompletes(t, "plyfs "); !slices.Contains(got, "mount") || slices.Contains(got, completeName) {
		t.Errorf("commands: %q", got)
	}
}

// A completion of names in a store that is not there must not make one.
func TestCompletionMakesNoStore(t *testing.T) {
	root := filepath.Join(testenv.Scratch(t), "absent")
	if got := bashCompletes(t, "plyfs image rm ", "PLYFS_ROOT="+root); strings.Join(got, "") != "" {
		t.Errorf("got %q", got)
	}
	if left, err := filepath.Glob(root + "*"); err != nil || len(left) > 0 {
		t.Errorf("made %v, %v", left, err)
	}
}

func TestCompletionRefusesOtherShells(t *testing.T) {
	for _, args := range [][]string{{"completion"}, {"completion", "tcsh"}, {"completion", "bash", "zsh"}, {"completion", "../x"}} {
		if r := runIn(t, ".", server.NamePlyfs, args...); r.code != storeUsage || !strings.Contains(r.stderr, completionUsage) || r.stdout != "" {
			t.Errorf("%v: %+v", args, r)
		}
	}
}
