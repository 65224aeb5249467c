package plyfs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "plyfs"

// arrows says which packages of this module a package may import. A pattern that ends in "/..." stands for the package
// and all beneath it; for an importer the longest pattern counts.
func arrows() map[string][]string {
	return map[string][]string{
		"cmd/plyfs": {
			"layerdb/...", "drivers/...", "fs/fsck", "fs/mountopt", "fs/server", "fs/union", "cow/...", "metadata/...", "bench",
			"internal/cmdtable", "internal/control", "internal/daemon", "internal/doctor", "internal/exit", "internal/latency",
			"internal/sibling", "internal/sys", "internal/version",
		},
		// Every container waits for its start: no package that brings a database, a command-line framework or a network.
		"cmd/plyfs-mount":       {"fs/mountopt", "fs/server", "fs/union", "internal/exit", "internal/sibling"},
		"fs/server":             {"cow", "cow/layer", "fs/fusefs", "fs/mountopt", "fs/union", "internal/control", "internal/exit", "internal/launch/...", "internal/sys", "internal/version"},
		"internal/exit":         {},
		"internal/version":      {},
		"internal/sibling":      {},
		"internal/typo":         {},
		"internal/launch":       {"fs/mountopt", "internal/launch/early", "internal/sys"},
		"internal/launch/early": {},
		"cmd/plyfsd":            {"drivers/...", "layerdb/...", "cow/tarlayer", "fs/mountopt", "internal/cmdtable", "internal/control", "internal/daemon", "internal/exit", "internal/latency", "internal/sys", "internal/version"},
		"internal/daemon":       {"internal/sys", "internal/typo"},
		"layerdb":               {"drivers", "cow/...", "metadata/kv", "internal/sys"},
		"layerdb/image":         {"layerdb", "drivers", "cow/tarlayer", "internal/sys"},
		"drivers/snapshotter":   {"drivers", "layerdb", "internal/sys"},
		"drivers/graphplugin":   {"drivers", "cow/tarlayer", "internal/sys"},
		"drivers":               {"cow/layer", "cow/tarlayer", "internal/sys"},
		"drivers/...":           {"drivers", "drivers/internal/...", "cow/...", "fs/mountopt", "internal/sys"},
		"drivers/all/...":       {"drivers/..."},
		// The native differ reads a layer and those below it as the engine shows them.
		"drivers/internal/upperdiff": {"drivers", "drivers/internal/...", "cow/...", "fs/union", "internal/sys"},
		"fs/fusefs":                  {"fs/union", "internal/latency", "internal/sys"},
		"fs/union":                   {"cow/...", "metadata", "internal/latency", "internal/sys"},
		"fs/fsck":                    {"cow/...", "metadata", "metadata/indexdb", "internal/sys"},
		"fs/mountopt":                {"internal/typo"},
		"cow/...":                    {"cow/...", "internal/sys"},
		"metadata":                   {},
		"metadata/indexdb":           {"metadata", "metadata/kv", "internal/sys"},
		"metadata/metadatatest":      {"metadata"},
		"metadata/kv":                {"internal/sys"},
		"internal/cmdtable":          {"internal/typo"},
		"internal/packaging/...":     {"internal/cmdtable"},
		"internal/sys":               {},
		"internal/latency":           {},
		"internal/control":           {"internal/latency", "internal/sys"},
		// It asks the kernel's FUSE what it can do.
		"internal/doctor":      {"fs/fusefs", "internal/sys"},
		"internal/fingerprint": {},
		"internal/testenv":     {"internal/sys"},
		"internal/ci":          {},
		"internal/demo/...":    {"internal/fingerprint"},
		"internal/e2e/...":     {"internal/..."},
		"internal/vm":          {"internal/vm/guest"},
		// Tests in a virtual machine, and the programs that they run there.
		"internal/vm/...": {"..."},
		// The suites are test code that happens not to live in _test files.
		"fs/union/uniontest/...": {"..."},
		"drivers/drivertest":     {"drivers", "drivers/internal/...", "cow/...", "internal/fingerprint", "internal/testenv"},
		"bench":                  {"..."},
		"fuzz/...":               {"..."},
		"":                       {},
	}
}

// onlyFor says which packages alone may import something, tests excepted where they are in those packages too.
func onlyFor() map[string][]string {
	return map[string][]string{
		"github.com/hanwen/go-fuse/": {"fs/fusefs"},
		"github.com/dgraph-io/":      {"metadata/kv"},
		"unsafe":                     {"internal/sys"},
		module + "/bench":            {"cmd/plyfs"},
		module + "/internal/testenv": {
			"fs/union/uniontest/...", "drivers/drivertest", "internal/e2e/...", "internal/vm/vmtest", "fuzz/...",
		},
		module + "/drivers/drivertest": {},
		module + "/fs/union/uniontest": {
			"fs/union/uniontest/...", "fuzz/...",
		},
	}
}

// goPackage is what is read of go list's output.
type goPackage struct {
	ImportPath   string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
}

func (p goPackage) name() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// listPackages returns all packages of the module.
func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Imports,TestImports,XTestImports,Deps", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func matches(pattern, name string) bool {
	if pattern == "..." {
		return true
	}
	base, below := strings.CutSuffix(pattern, "/...")
	return name == base || below && strings.HasPrefix(name, base+"/")
}

func anyMatches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, name) })
}

// allowed returns what the package may import, by the longest pattern that it matches.
func allowed(name string) (targets []string, known bool) {
	best := -1
	for pattern, list := range arrows() {
		if matches(pattern, name) && len(pattern) > best {
			best, targets = len(pattern), list
		}
	}
	return targets, best >= 0
}

func TestImportArrows(t *testing.T) {
	for _, p := range listPackages(t) {
		targets, known := allowed(p.name())
		if !known {
			t.Errorf("%s: not in the table of packages in arch_test.go", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			rest, ours := strings.CutPrefix(imp, module+"/")
			if ours && !anyMatches(targets, rest) {
				t.Errorf("%s imports %s; it may import only %s", p.ImportPath, imp, fmt.Sprint(targets))
			}
		}
	}
}

// TestTablesNamePackages: a row about a package that is not there allows nothing, and misleads who reads it.
func TestTablesNamePackages(t *testing.T) {
	all := listPackages(t)
	exists := func(pattern string) bool {
		return slices.ContainsFunc(all, func(p goPackage) bool { return matches(pattern, p.name()) })
	}
	for pattern, targets := range arrows() {
		for _, named := range append(slices.Clone(targets), pattern) {
			if !exists(named) {
				t.Errorf("the row of %s in arch_test.go: no package is %s", pattern, named)
			}
		}
	}
	for what, who := range onlyFor() {
		for _, named := range who {
			if !exists(named) {
				t.Errorf("the reservation of %s in arch_test.go: no package is %s", what, named)
			}
		}
	}
}

func TestReservedImports(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, imp := range p.Imports {
			for what, who := range onlyFor() {
				if imp != what && (!strings.HasSuffix(what, "/") || !strings.HasPrefix(imp, what)) {
					continue
				}
				if !anyMatches(who, p.name()) {
					t.Errorf("%s imports %s, which is for %s", p.ImportPath, imp, fmt.Sprint(who))
				}
			}
		}
	}
}

// The engine must stay usable without FUSE: nothing it depends on, however indirectly, may be a FUSE package.
func TestEngineKnowsNoFUSE(t *testing.T) {
	for _, p := range listPackages(t) {
		if !anyMatches([]string{"fs/union", "cow/...", "metadata/..."}, p.name()) {
			continue
		}
		for _, d := range p.Deps {
			if strings.Contains(d, "go-fuse") || d == module+"/fs/fusefs" {
				t.Errorf("%s depends on %s", p.ImportPath, d)
			}
		}
	}
}
