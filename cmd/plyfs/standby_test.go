package main

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"plyfs/fs/mountopt"
	"plyfs/fs/server"
)

func order(text string) string {
	return string(binary.LittleEndian.AppendUint32(nil, uint32(len(text)))) + text
}

// TestStandbyEnds holds that a server that stands by ends, quietly, when nobody wants it any more, and says what is wrong
// with a command line that it can't read.
func TestStandbyEnds(t *testing.T) {
	for name, c := range map[string]struct {
		in     string
		code   int
		stderr string
	}{
		"nobody": {},
		"cut":    {in: order(`["plyfs"]`)[:6], code: exitSystem, stderr: "unexpected EOF"},
	} {
		got := standingBy(t, c.in)
		if got.code != c.code || !strings.Contains(got.stderr, c.stderr) || c.stderr == "" && got.stderr != "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// standingBy runs plyfs as one that stands by, and sends it in before it closes the other end.
func standingBy(t *testing.T, in string) result {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, t.TempDir(), server.NamePlyfs)
	cmd.Env = append(os.Environ(), mountopt.StandbyEnv+"=3")
	cmd.ExtraFiles = []*os.File{r}
	if _, err := w.WriteString(in); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got := finish(t, cmd)
	_ = r.Close()
	return got
}
