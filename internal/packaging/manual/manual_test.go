package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plyfs/internal/cmdtable"
)

func TestBlocks(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"paragraphs", "one\ntwo\n\nthree", "one two\n.PP\nthree\n"},
		{"fonts", "a `b-c` **d `e`** *f* g*h", `a \fBb\-c\fR \fBd e\fR \fIf\fR g*h` + "\n"},
		{"double code", "``a`b``", `\fBa\(gab\fR` + "\n"},
		{"links", "see [the `x`](y.md#z) and [w](https://w.org)", `see the \fBx\fR and w <https://w.org>` + "\n"},
		{"requests", "'quoted\n\n.dot", `\(aqquoted` + "\n.PP\n" + `\&.dot` + "\n"},
		{"backslash", `a \: b`, `a \e: b` + "\n"},
		{"list", "* a\n  b\n* c", ".IP \\(bu 2\na b\n.IP \\(bu 2\nc\n"},
		{"numbers", "1. a", ".IP 1. 4\na\n"},
		{"code", "```sh\n.x -y\n```", ".RS 4\n.EX\n" + `\&.x \-y` + "\n.EE\n.RE\n"},
		{"indented", "    a\n    b\nc", ".RS 4\n.EX\na\nb\n.EE\n.RE\n.PP\nc\n"},
		{"table", "| f | means | default |\n|---|---|---|\n| `-a`\\|`b` | x | 1 |\n| c | | |", ".TP\n" + `\fB\-a\fR|\fBb\fR` + "\nx (default: 1)\n.TP\nc\n\\&\n"},
		{"heading", "### A `b` \"c\"\n\nd", ".SS \"A b \\(dqc\\(dq\"\nd\n"},
	} {
		if got := blocks(c.text); got != c.want {
			t.Errorf("%s: got\n%q, want\n%q", c.name, got, c.want)
		}
	}
}

func TestSection(t *testing.T) {
	const text = "# T\nintro\n## A\na\n### B\nb\n## C\nc\n"
	for heading, want := range map[string]string{"A": "a\n### B\nb", "B": "b", "C": "c\n"} {
		if got, err := section(text, heading); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", heading, got, err, want)
		}
	}
	if _, err := section(text, "D"); err == nil || !strings.Contains(err.Error(), `"D"`) {
		t.Errorf("no such section: %v", err)
	}
	if got := before("intro\n## A\na"); got != "intro\n" {
		t.Errorf("before the first heading: %q", got)
	}
}

// A command that docs/cli.md does not describe still has all that its table says.
func TestRun(t *testing.T) {
	table, err := json.Marshal([]cmdtable.Command{
		{
			Name: "new", Usage: "do what is new", Synopsis: "plyfs new [--x N] FILE",
			Flags: []cmdtable.Flag{{Names: []string{"x", "y"}, Value: "N", Usage: "how often", Default: "3", Env: []string{"E"}}},
			Commands: []cmdtable.Command{
				{Name: "sub", Usage: "a part", Synopsis: "plyfs new sub"}, {Name: "inner", Hidden: true},
			},
		},
		{Name: "daemon", Usage: "serve", Flags: []cmdtable.Flag{{Names: []string{"config"}}, {Names: []string{"key"}, Kind: "array"}}},
		{Name: "secret", Hidden: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	args := []string{"-docs", "../../../docs", "-date", "2026-01-31", "-version", "1.2", "-out", out}
	if err := run(args, strings.NewReader(string(table))); err != nil {
		t.Fatal(err)
	}
	for name, wants := range map[string][]string{
		"man1/plyfs-new.1": {
			`.TH "PLYFS\-NEW" 1 2026-01-31 "plyfs 1.2"`, `\fBplyfs new\fR [\-\-x N] FILE`, `\fB\-x\fR, \fB\-y\fR \fIN\fR`, "How often",
			"(default: 3)", "(environment: E)", `.SS "new sub"`,
		},
		"man1/plyfs.1":       {`.BR plyfs\-new (1)`, `.SH "ENVIRONMENT"`, `.SH "SIGNALS"`},
		"man5/plyfs.toml.5":  {".SH \"[daemon]\"", `\fBkey\fR = \fIarray\fR`},
		"man8/mount.plyfs.8": {`\fBlowerdir=DIR[:DIR]...\fR`, ".SS \"Quota\""},
	} {
		text, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range wants {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s has no %s:\n%.600s", name, w, text)
			}
		}
		if strings.Contains(string(text), "secret") || strings.Contains(string(text), "inner") {
			t.Errorf("%s tells of what is hidden", name)
		}
	}
	if err := run([]string{"-docs", "../../../docs"}, strings.NewReader("[]")); err == nil {
		t.Error("no error without -out")
	}
	if err := run(args, strings.NewReader("")); err == nil {
		t.Error("no error for an empty table")
	}
}
