package early_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"plyfs/internal/launch/early"
)

const (
	// notForked is what a program says that did all itself.
	notForked = "failed=false verdict=[] error=<nil> children=no child processes\n"
	entry     = "plyfs/internal/launch/early.Entry"
)

// build builds testdata/program, linked to start at Entry.
func build(t *testing.T) string {
	t.Helper()
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("no program starts at early.Entry on " + runtime.GOARCH)
	}
	program := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-ldflags=-E "+entry, "-o", program, "./testdata/program")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// run runs the program until nobody has its output any more.
func run(t *testing.T, cmd *exec.Cmd) (out string, code int) {
	t.Helper()
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return b.String(), cmd.ProcessState.ExitCode()
}

func TestEntry(t *testing.T) {
	program := build(t)
	for name, c := range map[string]struct {
		args, env []string
		want      string
		code      int
	}{
		"serves":           {args: []string{"serve"}, want: fmt.Sprintf("leader=true <nil> 0:0 1:0 2:0 3:1 table=%d <nil>\n", early.Room+1)},
		"refuses":          {args: []string{"refuse"}, want: `failed=true verdict=[32] error=<nil> rest="no layer" <nil> wait=<nil> children=no child processes` + "\n"},
		"ends":             {args: []string{"die"}, want: `failed=true verdict=[] error=<nil> rest="" <nil> wait=<nil> children=no child processes` + "\n"},
		"hands back":       {args: []string{"back"}, want: notForked},
		"loses its parent": {args: []string{"unheard"}, want: "nobody listens\n", code: -1},
		"a descriptor":     {args: []string{"serve", "/dev/fd/7"}, want: notForked},
		"is a server":      {args: []string{"serve"}, env: []string{"_PLYFS_X=3"}, want: notForked},
		"an empty string":  {args: []string{"back", ""}, env: []string{"_PLYFS"}, want: notForked},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(program, c.args...)
			cmd.Env = append([]string{"HOME=/"}, c.env...)
			// Neither gets into a server.
			cmd.ExtraFiles = []*os.File{os.Stdin, os.Stdin, os.Stdin, os.Stdin}
			if out, code := run(t, cmd); out != c.want || code != c.code {
				t.Errorf("%q, exit status %d; want %q, %d", out, code, c.want, c.code)
			}
		})
	}
}

// TestEntryClosed: where a standard file is closed, the pipe would take its place.
func TestEntryClosed(t *testing.T) {
	out, code := run(t, exec.Command("sh", "-c", build(t)+" serve <&-"))
	if out != notForked || code != 0 {
		t.Errorf("%q, exit status %d", out, code)
	}
}

// TestNotLinked: a program that starts where every program starts has no part in it.
func TestNotLinked(t *testing.T) {
	if early.Child() {
		t.Error("a child")
	}
	if f, failed, err := early.Outcome(); failed || err != nil || len(f.Verdict) != 0 {
		t.Errorf("%+v, %v, %v", f, failed, err)
	}
}
