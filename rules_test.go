package plyfs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// maxFileLines is the length beyond which a file holds more than one subject.
const maxFileLines = 700

// goFile is a parsed source file.
type goFile struct {
	pkg  string // import path relative to the module
	path string
	fset *token.FileSet
	ast  *ast.File
	test bool // a _test file, or of a package that only tests use
}

func (f goFile) at(n ast.Node) string {
	p := f.fset.Position(n.Pos())
	return f.path + ":" + strconv.Itoa(p.Line)
}

// testOnly are the packages that only tests import.
func testOnly(name string) bool {
	return anyMatches([]string{"fs/union/uniontest/...", "drivers/drivertest", "internal/testenv", "internal/e2e/...", "fuzz/..."}, name)
}

func parseAll(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	for _, p := range listPackages(t) {
		paths, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			fset := token.NewFileSet()
			parsed, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Error(err)
				continue
			}
			files = append(files, goFile{
				pkg: p.name(), path: path, fset: fset, ast: parsed,
				test: strings.HasSuffix(path, "_test.go") || testOnly(p.name()),
			})
		}
	}
	return files
}

func TestOnePackageDoc(t *testing.T) {
	docs := make(map[string][]string)
	for _, f := range parseAll(t) {
		if strings.HasSuffix(f.ast.Name.Name, "_test") {
			continue
		}
		if docs[f.pkg] == nil {
			docs[f.pkg] = []string{}
		}
		if f.ast.Doc == nil {
			continue
		}
		docs[f.pkg] = append(docs[f.pkg], filepath.Base(f.path))
		text := f.ast.Doc.Text()
		if !strings.HasPrefix(text, "Package "+f.ast.Name.Name) && !strings.HasPrefix(text, "Command ") {
			t.Errorf("%s: a package doc begins with \"Package %s\" or \"Command\"", f.path, f.ast.Name.Name)
		}
	}
	for pkg, files := range docs {
		if len(files) != 1 {
			t.Errorf("package %q has %d package docs %v, it must have one", pkg, len(files), files)
		}
	}
}

// calls visits every call of pkg.Name in the file, and of plain functions with an empty pkg.
func (f goFile) calls(visit func(call *ast.CallExpr, pkg, name string)) {
	ast.Inspect(f.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		switch fun := call.Fun.(type) {
		case *ast.Ident:
			visit(call, "", fun.Name)
		case *ast.SelectorExpr:
			if x, ok := fun.X.(*ast.Ident); ok {
				visit(call, x.Name, fun.Sel.Name)
			}
		}
		return true
	})
}

func TestNoPanic(t *testing.T) {
	for _, f := range parseAll(t) {
		if f.test {
			continue
		}
		f.calls(func(call *ast.CallExpr, pkg, name string) {
			if pkg == "" && name == "panic" {
				t.Errorf("%s: panic: a request must not end the server", f.at(call))
			}
		})
	}
}

// A layer is only ever changed beneath its descriptor: a path could be led elsewhere, or back into the mount.
func TestNoMutationByPath(t *testing.T) {
	byPath := map[string][]string{
		"os": {
			"Chmod", "Chown", "Lchown", "Chtimes", "Rename", "Remove", "RemoveAll", "Mkdir", "MkdirAll", "Symlink", "Link",
			"Truncate", "WriteFile", "Create",
		},
		"unix": {
			"Chmod", "Chown", "Lchown", "Rename", "Unlink", "Rmdir", "Mkdir", "Mknod", "Symlink", "Link", "Truncate", "Utimes",
			"UtimesNano", "Setxattr", "Removexattr", "Lsetxattr", "Lremovexattr",
		},
	}
	byPath["syscall"] = byPath["unix"]
	for _, f := range parseAll(t) {
		if f.test || !anyMatches([]string{"fs/union", "cow/..."}, f.pkg) {
			continue
		}
		f.calls(func(call *ast.CallExpr, pkg, name string) {
			if slices.Contains(byPath[pkg], name) {
				t.Errorf("%s: %s.%s changes something by path; use a call beneath a layer's descriptor", f.at(call), pkg, name)
			}
		})
	}
}

// What a driver shows is a plain tree (see layer.OpenPlain): attributes that an application may set must decide nothing.
func TestShownTreesArePlain(t *testing.T) {
	stacked := []string{"drivers/plyfs/driver.go", "layerdb/legacy.go"} // these open what unions stack
	for _, f := range parseAll(t) {
		if f.test || !anyMatches([]string{"drivers/...", "layerdb/..."}, f.pkg) || slices.Contains(stacked, f.pkg+"/"+filepath.Base(f.path)) {
			continue
		}
		f.calls(func(call *ast.CallExpr, pkg, name string) {
			if pkg == "layer" && name == "Open" {
				t.Errorf("%s: layer.Open believes attributes of whoever writes to the tree; use layer.OpenPlain", f.at(call))
			}
		})
	}
}

// Identity and umask belong to the whole process, which may serve many mounts.
func TestNoProcessWideIdentity(t *testing.T) {
	names := []string{"Setuid", "Setgid", "Setreuid", "Setregid", "Setresuid", "Setresgid", "Seteuid", "Setegid", "Setgroups", "Chroot"}
	for _, f := range parseAll(t) {
		// A virtual machine's first process is alone in it, and the kernel starts programs below that process's root.
		if f.test || f.pkg == "internal/vm/guest" {
			continue
		}
		f.calls(func(call *ast.CallExpr, pkg, name string) {
			if (pkg == "unix" || pkg == "syscall") && slices.Contains(names, name) {
				t.Errorf("%s: %s.%s changes the whole process", f.at(call), pkg, name)
			}
		})
	}
}

func TestFormatsHaveOneHome(t *testing.T) {
	for _, f := range parseAll(t) {
		if f.test || anyMatches([]string{"cow/ovl", "cow/tarlayer"}, f.pkg) {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Errorf("%s: %v", f.at(lit), err)
				return true
			}
			if strings.ContainsRune(text, ' ') {
				return true // a sentence for people may speak of the formats
			}
			for _, part := range []string{"overlay.", ".wh."} {
				if strings.Contains(text, part) {
					t.Errorf("%s: %s: the on-disk formats are spelled in cow/ovl and cow/tarlayer only", f.at(lit), lit.Value)
				}
			}
			return true
		})
	}
}

func TestNothingUnfinished(t *testing.T) {
	for _, f := range parseAll(t) {
		for _, group := range f.ast.Comments {
			for _, word := range []string{"TODO", "FIXME", "XXX", "HACK"} {
				if slices.Contains(strings.FieldsFunc(group.Text(), notLetter), word) {
					t.Errorf("%s: %s in a comment", f.at(group), word)
				}
			}
		}
	}
}

func notLetter(r rune) bool { return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') }

func TestFilesHaveOneSubject(t *testing.T) {
	for _, f := range parseAll(t) {
		if n := f.fset.Position(f.ast.FileEnd).Line; n > maxFileLines {
			t.Errorf("%s has %d lines, at most %d fit one subject", f.path, n, maxFileLines)
		}
	}
}
