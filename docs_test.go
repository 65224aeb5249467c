package plyfs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"plyfs/fs/mountopt"
	"plyfs/fs/union/uniontest"
)

// documents returns the text of every Markdown file by its path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			text, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			all[p] = string(text)
		}
	}
	return all
}

func TestLinksLead(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	docs := documents(t)
	for path, text := range docs {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target := path
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(path), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: link to %s: %v", path, m[1], err)
				continue
			}
			if m[2] != "" && !slices.Contains(anchors(docs[target]), m[2]) {
				t.Errorf("%s: %s has no heading #%s", path, target, m[2])
			}
		}
	}
}

// anchors returns the link targets of the headings in Markdown text.
func anchors(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if title := strings.TrimLeft(line, "#"); title != line {
			slug := strings.ReplaceAll(strings.ToLower(strings.TrimSpace(title)), " ", "-")
			out = append(out, regexp.MustCompile(`[^a-z0-9_-]`).ReplaceAllString(slug, ""))
		}
	}
	return out
}

func TestMakeTargetsExist(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z-]*):`).FindAllStringSubmatch(string(makefile), -1) {
		targets = append(targets, m[1])
	}
	mention := regexp.MustCompile("(?m)(?:`|^    |&& sudo |sudo )make ([a-z][a-z-]*)")
	for path, text := range documents(t) {
		for _, m := range mention.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(targets, m[1]) {
				t.Errorf("%s: there is no make %s", path, m[1])
			}
		}
	}
}

func TestSemanticsListsEveryDifference(t *testing.T) {
	text := documents(t)["docs/semantics.md"]
	for _, d := range uniontest.Differences() {
		if !strings.Contains(text, "| `"+d.ID+"` |") {
			t.Errorf("docs/semantics.md has no row for the difference %s", d.ID)
		}
	}
}

func TestSemanticsNamesRealTests(t *testing.T) {
	var code strings.Builder
	err := filepath.WalkDir("fs", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		text, err := os.ReadFile(path)
		code.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([a-z-]+/[a-z0-9:-]+)`")
	for line := range strings.Lines(documents(t)["docs/semantics.md"]) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(line, " | ")
		if strings.Contains(line, "``") {
			t.Errorf("docs/semantics.md has an empty name: %s", line)
		}
		for _, m := range name.FindAllStringSubmatch(cells[len(cells)-1], -1) {
			if _, err := os.Stat(m[1]); err != nil && !strings.Contains(code.String(), `"`+m[1]+`"`) {
				t.Errorf("docs/semantics.md names the test %s, which does not exist", m[1])
			}
		}
	}
}

// Each package has its place in docs/architecture.md, by its path or by that of a folder with "/..." behind, and the table of packages
// has no others.
func TestArchitectureNamesPackages(t *testing.T) {
	text := documents(t)["docs/architecture.md"]
	all := listPackages(t)
	path := regexp.MustCompile("`([a-z0-9/.-]+)`")
	var named []string
	for _, m := range path.FindAllStringSubmatch(text, -1) {
		named = append(named, m[1])
	}
	for _, p := range all {
		if p.name() != "" && !anyMatches(named, p.name()) {
			t.Errorf("docs/architecture.md says nothing about the package %s", p.name())
		}
	}
	_, table, _ := strings.Cut(text, "\n| package |")
	table, _, _ = strings.Cut(table, "\n\n")
	for row := range strings.Lines(table) {
		first, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		for _, m := range path.FindAllStringSubmatch(first, -1) {
			if !slices.ContainsFunc(all, func(p goPackage) bool { return matches(m[1], p.name()) }) {
				t.Errorf("docs/architecture.md: no package is %s", m[1])
			}
		}
	}
}

// A test that a row of docs/semantics.md names must be in the package that it names with it.
func TestSemanticsNamesPackages(t *testing.T) {
	named := regexp.MustCompile("((?:`Test[A-Za-z0-9]+`(?:, )?)+) in `([a-z/]+)`")
	test := regexp.MustCompile("`(Test[A-Za-z0-9]+)`")
	for line := range strings.Lines(documents(t)["docs/semantics.md"]) {
		found := 0
		for _, m := range named.FindAllStringSubmatch(line, -1) {
			paths, err := filepath.Glob(filepath.Join(m[2], "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			var code strings.Builder
			for _, p := range paths {
				text, err := os.ReadFile(p)
				if err != nil {
					t.Fatal(err)
				}
				code.Write(text)
			}
			for _, n := range test.FindAllStringSubmatch(m[1], -1) {
				if found++; !strings.Contains(code.String(), "func "+n[1]+"(t *testing.T)") {
					t.Errorf("docs/semantics.md names the test %s, which is not in %s", n[1], m[2])
				}
			}
		}
		if all := len(test.FindAllString(line, -1)); all != found {
			t.Errorf("docs/semantics.md names %d tests without their packages: %s", all-found, line)
		}
	}
}

// Every option in the first column of the tables of docs/cli.md must be one that plyfs knows. That every option of plyfs is
// there is a test of fs/mountopt.
func TestCLIOptionsExist(t *testing.T) {
	_, options, ok := strings.Cut(documents(t)["docs/cli.md"], "\n## Options\n")
	if !ok {
		t.Fatal("docs/cli.md has no section Options")
	}
	options, _, _ = strings.Cut(options, "\n## ")
	word := regexp.MustCompile("`([a-zA-Z0-9_+-]+)(=[^`]*)?`")
	for line := range strings.Lines(options) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		for _, m := range word.FindAllStringSubmatch(cell, -1) {
			o, err := mountopt.Parse(m[1])
			if isValue := strings.Contains(cell, "|"); err == nil && len(o.Unknown) > 0 && m[2] == "" && !isValue {
				t.Errorf("docs/cli.md: %s is not an option", m[1])
			}
		}
	}
}
