package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"1": 1, "4K": 4 << 10, "512M": 512 << 20, "8G": 8 << 30} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q): %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "G", "0", "-1G", "1T", "1.5G", "99999999999G", "9223372036854775807K", "9223372036854775808"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q): %d", in, got)
		}
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-machine", "m", "-disk", "1G", "-disk", "2M", "go", "-v"})
	if err != nil || !slices.Equal(o.disks, []int64{1 << 30, 2 << 20}) || !slices.Equal(o.command, []string{"go", "-v"}) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{
		nil,
		{"command"},
		{"-machine", "m"},
		{"-machine", "m", "-shell", "command"},
		{"-machine", "m", "-disk", "big", "command"},
		append(append([]string{"-machine", "m"}, slices.Repeat([]string{"-disk", "1M"}, maxDisks+1)...), "command"),
	} {
		if o, err := parse(args); err == nil {
			t.Errorf("parse(%q): %+v", args, o)
		}
	}
}

// TestLoadOrder: what a module needs is loaded before it, each file once, and what is built in is left out.
func TestLoadOrder(t *testing.T) {
	dir := t.TempDir()
	text := "kernel/c.ko: kernel/b.ko kernel/a.ko\nkernel/b.ko: kernel/a.ko\nkernel/a.ko:\nkernel/x.ko: kernel/b.ko kernel/a.ko\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := loadOrder(dir, []string{"c", "builtin", "x"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range got {
		names = append(names, strings.TrimPrefix(f, dir+"/kernel/"))
	}
	if want := []string{"a.ko", "b.ko", "c.ko", "x.ko"}; !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
}

// TestInitialFiles: the archive is one that the kernel's unpacker takes: headers and data are aligned, and it has an end.
func TestInitialFiles(t *testing.T) {
	f, err := initialFiles([]byte(`{"Args":["true"]}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]byte, size)
	if _, err := f.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	if size%4 != 0 || !bytes.HasPrefix(all, []byte("070701")) {
		t.Errorf("%d bytes, beginning with %q", size, all[:6])
	}
	at := bytes.Index(all, []byte("job.json\x00"))
	if data := bytes.Index(all, []byte(`{"Args"`)); at < 0 || data%4 != 0 || data != (at+len("job.json\x00")+3)&^3 {
		t.Errorf("name at %d, data at %d", at, data)
	}
	if !bytes.Contains(all, []byte("TRAILER!!!\x00")) {
		t.Error("the archive has no end")
	}
}

func TestExitStatus(t *testing.T) {
	for line, want := range map[string]int{"exit 0": 0, "exit 7\r": 7} {
		if got, ok := exitStatus(line); !ok || got != want {
			t.Errorf("exitStatus(%q): %d, %v", line, got, ok)
		}
	}
	for _, line := range []string{"", "exit", "exit x", "7"} {
		if got, ok := exitStatus(line); ok {
			t.Errorf("exitStatus(%q): %d", line, got)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	long := strings.Repeat("x", 3*consoleTail) + "panic"
	if got := tail(strings.NewReader(long)); len(got) != consoleTail || !bytes.HasSuffix(got, []byte("xpanic")) {
		t.Errorf("%d bytes, ending with %q", len(got), got[max(0, len(got)-6):])
	}
}

// TestSymversRefuses: a file that is no kernel with absolute addresses gets an error and no panic.
func TestSymversRefuses(t *testing.T) {
	if err := symvers("/proc/self/exe", io.Discard); !errors.Is(err, errNoSymbols) {
		t.Errorf("symvers of a program: %v", err)
	}
	if err := symvers(filepath.Join(t.TempDir(), "none"), io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("symvers of nothing: %v", err)
	}
}

func TestMachineMustBeWhole(t *testing.T) {
	if _, err := openMachine(t.TempDir()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "prepare.sh") {
		t.Errorf("openMachine of an empty directory: %v", err)
	}
}
