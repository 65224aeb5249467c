package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
)

// server makes a script that stands in for a server, and returns it as one.
func server(t *testing.T, script string) Server {
	t.Helper()
	name := filepath.Join(t.TempDir(), "server")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return Server{Program: name, Args: []string{"plyfs", "mount", "x"}, Target: -1}
}

func TestStart(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   Failure
		err    error
	}{
		"serves":  {script: `test "$*" = "mount x" && printf '\0' >&$` + mountopt.VerdictEnv},
		"refuses": {script: `printf '\040no layer' >&$` + mountopt.VerdictEnv, want: Failure{Code: 32, Text: "no layer"}},
		"ends":    {script: "exit 3", err: ErrEnded},
		"killed":  {script: "kill -9 $$", err: ErrEnded},
	} {
		err := Start(server(t, c.script))
		var f *Failure
		if errors.As(err, &f) != (c.want != Failure{}) || f != nil && *f != c.want || c.err != nil && !errors.Is(err, c.err) ||
			c.want == (Failure{}) && c.err == nil && err != nil {
			t.Errorf("%s: %v, want %+v, %v", name, err, c.want, c.err)
		}
	}
	if err := Start(server(t, "exit 3")); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("the end is not told: %v", err)
	}
	err := Start(Server{Program: filepath.Join(t.TempDir(), "none"), Args: []string{"plyfs"}, Target: -1})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is not there: %v", err)
	}
}

// TestStartPassesTarget: the server gets the descriptor of the mount point, the standard files, and nothing else.
func TestStartPassesTarget(t *testing.T) {
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := server(t, `test $`+TargetEnv+` = 4 && test -d /proc/self/fd/4/. && ! test -e /proc/$$/fd/5 && printf '\0' >&$`+mountopt.VerdictEnv)
	s.Target = int(f.Fd())
	if err := Start(s); err != nil {
		t.Error(err)
	}
}

// TestStartMakesRoom: the server's table of descriptors is large from the beginning, where it may be, and nothing else is in it.
func TestStartMakesRoom(t *testing.T) {
	const verdict = `printf '\0' >&$` + mountopt.VerdictEnv
	room := fmt.Sprintf(`test "$(sed -n 's/^FDSize:[[:space:]]*//p' /proc/$$/status)" -gt %d && `, TableFD)
	if err := Start(server(t, room+fmt.Sprintf(`test -e /proc/$$/fd/%d && `, TableFD)+verdict)); err != nil {
		t.Error(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = TableFD
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	err := Start(server(t, fmt.Sprintf(`! test -e /proc/$$/fd/%d && `, TableFD)+verdict))
	if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || rerr != nil {
		t.Error(err, rerr)
	}
}
