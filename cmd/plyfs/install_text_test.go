package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"plyfs/internal/testenv"
)

func TestSetTOML(t *testing.T) {
	path := []string{"storage", "options", "overlay", "mount_program"}
	const line = "mount_program = \"/p\"\n"
	for name, c := range map[string]struct{ old, want string }{
		"nothing":             {"", "[storage.options.overlay]\n" + line},
		"only comments":       {"# x\n", "# x\n\n[storage.options.overlay]\n" + line},
		"without a line end":  {"a = 1", "a = 1\n\n[storage.options.overlay]\n" + line},
		"a value":             {"[storage.options.overlay]\nmount_program='/q' # why\nx=1\n", "[storage.options.overlay]\nmount_program=\"/p\" # why\nx=1\n"},
		"a dotted value":      {"storage.options.overlay.mount_program = \"/q\"", "storage.options.overlay.mount_program = \"/p\""},
		"the table":           {"[storage.options.overlay]\n\n[other]\n", "[storage.options.overlay]\n" + line + "\n[other]\n"},
		"the table, indented": {"[storage]\n  [storage.options.overlay]\n    a = \"b\"\n", "[storage]\n  [storage.options.overlay]\n    a = \"b\"\n    " + line},
		"an example": {
			"[storage.options.overlay]\n# the program\n#mount_program = \"/usr/bin/fuse-overlayfs\"\n\n# more\n",
			"[storage.options.overlay]\n# the program\n#mount_program = \"/usr/bin/fuse-overlayfs\"\n" + line + "\n# more\n",
		},
		"a sibling": {
			"[storage.options.overlay]\nmountopt = \"nodev\" # as ever\n[storage.options.thinpool]\n",
			"[storage.options.overlay]\nmountopt = \"nodev\" # as ever\n" + line + "[storage.options.thinpool]\n",
		},
		"a dotted sibling": {
			"[storage.options]\noverlay.mountopt = \"nodev\"\n",
			"[storage.options]\noverlay.mountopt = \"nodev\"\noverlay." + line,
		},
		"a sibling of many lines": {
			"[storage.options.overlay]\nx = [\n \"mount_program = 1\",\n]\n[y]\n",
			"[storage.options.overlay]\nx = [\n \"mount_program = 1\",\n]\n" + line + "[y]\n",
		},
		"carriage returns": {"[storage]\r\nx = 1\r\n", "[storage]\r\nx = 1\r\n\r\n[storage.options.overlay]\r\nmount_program = \"/p\"\r\n"},
		"the same key elsewhere": {
			"[[storage.options.others]]\nmount_program = \"/q\"\n[storage.options.others.overlay]\nmount_program = \"/r\"\n",
			"[[storage.options.others]]\nmount_program = \"/q\"\n[storage.options.others.overlay]\nmount_program = \"/r\"\n\n[storage.options.overlay]\n" + line,
		},
	} {
		txt := &tomlText{name: "f", text: []byte(c.old)}
		if err := txt.set("/p", path...); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if string(txt.text) != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, txt.text, c.want)
		}
		if got, ok, err := txt.get(path...); got != "/p" || !ok || err != nil {
			t.Errorf("%s: read back: %q, %t, %v", name, got, ok, err)
		}
	}
}

func TestSetTOMLRefuses(t *testing.T) {
	for name, old := range map[string]string{
		"an inline table":   "[storage.options]\noverlay = {mountopt = \"nodev\"}\n",
		"no string":         "[storage.options.overlay]\nmount_program = 1\n",
		"no table":          "[storage]\noptions = \"none\"\n",
		"an array of table": "[[storage.options.overlay]]\nx = 1\n",
	} {
		txt := &tomlText{name: "f", text: []byte(old)}
		if err := txt.set("/p", "storage", "options", "overlay", "mount_program"); !errors.Is(err, errInstallConflict) {
			t.Errorf("%s: %v\n%s", name, err, txt.text)
		}
		if string(txt.text) != old {
			t.Errorf("%s: changed to\n%s", name, txt.text)
		}
	}
	txt := &tomlText{name: "f", text: []byte("a = 1\nb = \n")}
	if err := txt.set("/p", "c", "d"); err == nil || !strings.Contains(err.Error(), "f:2") {
		t.Errorf("a bad line: %v", err)
	}
}

func TestSetJSON(t *testing.T) {
	for old, want := range map[string]string{
		"":                     "{\n  \"k\": \"v\"\n}\n",
		"{}":                   "{\n  \"k\": \"v\"\n}",
		"{ }\n":                "{\n  \"k\": \"v\"\n}\n",
		"{\"a\":1}":            "{\"k\": \"v\", \"a\":1}",
		"{\n\t\"a\": {}\n}\n":  "{\n\t\"k\": \"v\",\n\t\"a\": {}\n}\n",
		"\n{ \"a\": \"{\" }\n": "\n{ \"k\": \"v\", \"a\": \"{\" }\n",
	} {
		got, err := setJSON("f", []byte(old), "k", "v")
		if err != nil || string(got) != want {
			t.Errorf("%q: got %q, %v", old, got, err)
		}
		if keys, err := objectKeys("f", got); err != nil || string(keys["k"]) != `"v"` {
			t.Errorf("%q: read back: %v, %v", old, keys, err)
		}
	}
	for _, old := range []string{"[]", "{", "{} x", "null", `{"k": 1}`} {
		if got, err := setJSON("f", []byte(old), "k", "v"); err == nil {
			t.Errorf("%q: became %q", old, got)
		}
	}
}

// What unifiedDiff says is what patch(1) does with it, or what git apply does.
func TestUnifiedDiff(t *testing.T) {
	many := strings.Repeat("a\nb\nc\nd\ne\nf\ng\nh\ni\n", 3)
	for _, c := range []struct{ old, text string }{
		{"", "new\n"},
		{"old\n", ""},
		{"a\nb\nc\n", "a\nc\n"},
		{"a\nb", "a\nb\n"},
		{"a\nb\n", "a\nb"},
		{many, "x\n" + many},
		{many, strings.Replace(strings.Replace(many, "b\n", "b\nbb\n", 1), "h\ni\na\n", "H\ni\na\n", 2)},
		{many, strings.ReplaceAll(many, "e", "E")},
	} {
		dir := testenv.Scratch(t)
		old := filepath.Join(dir, "f")
		writeText(t, old, c.old)
		diff := unifiedDiff("a/f", "b/f", []byte(c.old), []byte(c.text))
		cmd := exec.Command("git", "apply", "--allow-empty", "--unidiff-zero", "-")
		cmd.Dir = dir
		cmd.Stdin = strings.NewReader(diff)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("git apply: %v: %s\n%s", err, out, diff)
			continue
		}
		if got, err := os.ReadFile(old); err != nil || string(got) != c.text {
			t.Errorf("got %q, %v, want %q\n%s", got, err, c.text, diff)
		}
	}
	if d := unifiedDiff("a", "b", []byte("x\n"), []byte("x\n")); d != "" {
		t.Errorf("equal texts differ: %s", d)
	}
}
