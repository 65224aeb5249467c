package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// event is one line of go test -json; cf. go doc test2json.
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build's output, with the package under test in brackets
	Test       string
	Elapsed    float64
	Output     string
	// FailedBuild is the import path of the build that made a package fail.
	FailedBuild string
}

// pkg is what is known of a package whose tests run.
type pkg struct {
	started time.Time
	output  strings.Builder // what belongs to no test
	tests   map[string]*test
	// order has the names of tests as they began.
	order []string
}

type test struct {
	started time.Time
	output  strings.Builder
	result  string // "" while it runs
	parent  bool   // it has subtests
	shown   bool   // its failure is printed
}

// failure is a test or a package that failed, and what it printed.
type failure struct {
	name, output string
	shown        bool
}

// report collects results and prints progress. It is used from one goroutine at a time.
type report struct {
	out      io.Writer
	now      func() time.Time
	pkgs     map[string]*pkg
	builds   map[string]*strings.Builder // output of the compiler, by import path
	failures []failure
	skips    []string
	stray    strings.Builder // output that is no event
	passed   int
	reported int // failures that one group of tests has added
}

func newReport(out io.Writer) *report {
	return &report{out: out, now: time.Now, pkgs: make(map[string]*pkg), builds: make(map[string]*strings.Builder)}
}

// take processes one event and reports whether it printed something.
func (r *report) take(e event) bool {
	switch e.Action {
	case "build-output", "build-fail":
		b := r.builds[e.ImportPath]
		if b == nil {
			b = new(strings.Builder)
			r.builds[e.ImportPath] = b
		}
		b.WriteString(e.Output)
		return false
	}
	if e.Package == "" {
		r.stray.WriteString(e.Output)
		return false
	}
	p := r.pkgs[e.Package]
	if p == nil {
		p = &pkg{started: r.now(), tests: make(map[string]*test)}
		r.pkgs[e.Package] = p
	}
	if e.Test == "" {
		return r.takePackage(p, e)
	}
	t := p.test(e.Test, r.now())
	switch e.Action {
	case "output":
		t.output.WriteString(e.Output)
	case "pass", "skip":
		t.result = e.Action
	case "fail":
		t.result = e.Action
		if t.parent && p.childFailed(e.Test) {
			return false
		}
		// At once: others of its package may run for an hour more.
		t.shown = true
		r.show(failure{name: e.Package + " " + e.Test, output: t.output.String()})
		return true
	}
	return false
}

// test returns the test of that name, adding it and marking the test that it is a subtest of if it is new.
func (p *pkg) test(name string, now time.Time) *test {
	t := p.tests[name]
	if t != nil {
		return t
	}
	t = &test{started: now}
	p.tests[name] = t
	p.order = append(p.order, name)
	// A subtest's own name may have slashes, so that what stands before one need not be a test.
	for i := strings.LastIndexByte(name, '/'); i > 0; i = strings.LastIndexByte(name[:i], '/') {
		if up := p.tests[name[:i]]; up != nil {
			up.parent = true
			break
		}
	}
	return t
}

func (r *report) takePackage(p *pkg, e event) bool {
	switch e.Action {
	case "output":
		p.output.WriteString(e.Output)
		return false
	case "pass", "fail", "skip":
		r.finishPackage(e, p)
		delete(r.pkgs, e.Package)
		return true
	}
	return false
}

// finishPackage counts a package's tests and prints its line, and the output of what failed.
func (r *report) finishPackage(e event, p *pkg) {
	if e.Action == "skip" && len(p.tests) == 0 {
		return // it has no tests
	}
	passed, skipped, failed := 0, 0, []failure(nil)
	for _, name := range p.order {
		t := p.tests[name]
		full := e.Package + " " + name
		switch {
		case t.result == "skip" && !t.parent:
			skipped++
			r.skips = append(r.skips, full+": "+reason(t.output.String()))
		case t.result == "pass" && !t.parent:
			passed++
		case t.result == "fail" && !(t.parent && p.childFailed(name)):
			failed = append(failed, failure{full, t.output.String(), t.shown})
		case t.result == "" && e.Action == "fail" && !(t.parent && p.childFailed(name)):
			failed = append(failed, failure{name: full + " (did not end)", output: t.output.String()})
		}
	}
	wholly := e.Action == "fail" && len(failed) == 0
	if wholly {
		out := p.output.String()
		if b := r.builds[e.FailedBuild]; b != nil {
			out = b.String()
		}
		failed = append(failed, failure{name: e.Package, output: out})
	}
	word := "ok  "
	if len(failed) > 0 {
		word = "FAIL"
	}
	fmt.Fprintf(r.out, "%s  %-34s %4d passed%s%s  %6.1f s\n", word, e.Package, passed,
		count(len(failed), "failed"), count(skipped, "skipped"), e.Elapsed)
	r.passed += passed
	for _, f := range failed {
		r.fail(f)
	}
	if extra := strings.TrimSpace(p.output.String()); e.Action == "fail" && !wholly && extra != "FAIL" {
		fmt.Fprintln(r.out, indent(extra))
	}
}

// childFailed says whether a subtest of name failed or did not end, so that name's own failure says nothing new.
func (p *pkg) childFailed(name string) bool {
	for child, t := range p.tests {
		if strings.HasPrefix(child, name+"/") && (t.result == "fail" || t.result == "") {
			return true
		}
	}
	return false
}

func count(n int, word string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d %s", n, word)
}

// fail records a failure and prints it, if that was not done.
func (r *report) fail(f failure) {
	r.failures = append(r.failures, f)
	r.reported++
	if !f.shown {
		r.show(f)
	}
}

// show prints a failure.
func (r *report) show(f failure) {
	fmt.Fprintf(r.out, "\n--- %s\n", f.name)
	if text := strings.TrimRight(f.output, "\n"); text != "" {
		fmt.Fprintln(r.out, indent(text))
	}
	fmt.Fprintln(r.out)
}

// indent sets text off from the report's own lines.
func indent(text string) string {
	return "    " + strings.ReplaceAll(text, "\n", "\n    ")
}

// reason takes the message of t.Skip out of a test's output.
func reason(output string) string {
	var last string
	for line := range strings.Lines(output) {
		if s := strings.TrimSpace(line); s != "" && !strings.HasPrefix(s, "---") && !strings.HasPrefix(s, "===") {
			last = s
		}
	}
	return last
}

// check records the result of a check.
func (r *report) check(name, output string, err error, took time.Duration) {
	if err == nil {
		r.passed++
		fmt.Fprintf(r.out, "ok    %-52s %6.1f s\n", name, took.Seconds())
		return
	}
	fmt.Fprintf(r.out, "FAIL  %-52s %6.1f s\n", name, took.Seconds())
	r.fail(failure{name: name, output: output + err.Error()})
}

// group ends one run of go test: packages whose end was never reported, and errors of go test itself, are failures.
func (r *report) group(args []string, stderr string, err error) {
	for _, name := range slices.Sorted(maps.Keys(r.pkgs)) {
		why := "the tests did not end\n"
		if err != nil {
			why = err.Error() + "\n"
		}
		p := r.pkgs[name]
		p.output.WriteString(why)
		r.finishPackage(event{Action: "fail", Package: name, Elapsed: r.now().Sub(p.started).Seconds()}, p)
	}
	clear(r.pkgs)
	if err != nil && r.reported == 0 {
		r.fail(failure{name: "go test " + strings.Join(args, " "), output: r.stray.String() + stderr + err.Error()})
	}
	r.reported = 0
	r.stray.Reset()
}

// running prints what has been running for long.
func (r *report) running() {
	for _, name := range slices.Sorted(maps.Keys(r.pkgs)) {
		p := r.pkgs[name]
		var busy []string
		for _, n := range p.order {
			if t := p.tests[n]; t.result == "" && !t.parent {
				busy = append(busy, n)
			}
		}
		if len(busy) > 0 {
			fmt.Fprintf(r.out, "...   %-34s %d tests so far, %s for %.0f s\n", name, len(p.order),
				busy[len(busy)-1], r.now().Sub(p.tests[busy[len(busy)-1]].started).Seconds())
		}
	}
}

// finish prints the end of the report and returns the exit status.
func (r *report) finish() int {
	if len(r.skips) > 0 {
		fmt.Fprintln(r.out, "\nSkipped:")
		for _, s := range r.skips {
			fmt.Fprintln(r.out, "  "+s)
		}
	}
	if len(r.failures) > 0 {
		fmt.Fprintln(r.out, "\nFailed:")
		for _, f := range r.failures {
			fmt.Fprintln(r.out, "  "+f.name)
		}
	}
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped\n", r.passed, len(r.failures), len(r.skips))
	if len(r.failures) > 0 {
		return 1
	}
	return 0
}
