package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSaveThenCheck(t *testing.T) {
	tree, file := t.TempDir(), filepath.Join(t.TempDir(), "saved")
	if err := os.WriteFile(filepath.Join(tree, "a"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run([]string{"save", file, tree}, &out); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"check", file, tree}, &out); err != nil || out.String() != "2\n" {
		t.Errorf("an unchanged tree: %v, output %q", err, out.String())
	}
	if err := os.Chmod(filepath.Join(tree, "a"), 0o640); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := run([]string{"check", file, tree}, &out); !errors.Is(err, errDiffer) ||
		!strings.Contains(out.String(), "a: mode: 0600 != 0640") {
		t.Errorf("a changed mode: %v, output %q", err, out.String())
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"save"}, {"drop", "a", "b"}} {
		if err := run(args, &bytes.Buffer{}); err == nil {
			t.Errorf("run(%q) did not fail", args)
		}
	}
}
