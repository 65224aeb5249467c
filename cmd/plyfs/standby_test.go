package main

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func order(text string) string {
	return string(binary.LittleEndian.AppendUint32(nil, uint32(len(text)))) + text
}

func TestReceiveOrder(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want []string
		err  error
	}{
		"good":      {in: order(`["plyfs","mount","-o","lowerdir=a:b","x y"]`), want: []string{"plyfs", "mount", "-o", "lowerdir=a:b", "x y"}},
		"nobody":    {in: "", err: io.EOF},
		"no length": {in: "\x01\x00", err: io.ErrUnexpectedEOF},
		"cut":       {in: order(`["plyfs"]`)[:8], err: io.ErrUnexpectedEOF},
		"all cut":   {in: order(`["plyfs"]`)[:4], err: io.ErrUnexpectedEOF},
		"too long":  {in: "\xff\xff\xff\x7f", err: unix.E2BIG},
		"no name":   {in: order(`[]`), err: unix.EINVAL},
	} {
		got, err := receiveOrder(strings.NewReader(c.in))
		if !slices.Equal(got, c.want) || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s: %q, %v; want %q, %v", name, got, err, c.want, c.err)
		}
	}
	if got, err := receiveOrder(strings.NewReader(order(`{"not":"a list"}`))); err == nil {
		t.Errorf("no list: %q", got)
	}
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
	cmd := command(t, t.TempDir(), namePlyfs)
	cmd.Env = append(os.Environ(), standbyEnv+"=3")
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
