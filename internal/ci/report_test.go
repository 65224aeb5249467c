package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// feed gives the report lines of go test -json.
func feed(r *report, lines ...string) {
	r.consume(strings.NewReader(strings.Join(lines, "\n")))
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return lines[len(lines)-1]
}

func TestCountsLeavesOnly(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	feed(r,
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		`{"Action":"run","Package":"p","Test":"TestA/one"}`,
		`{"Action":"run","Package":"p","Test":"TestA/two"}`,
		`{"Action":"output","Package":"p","Test":"TestA/two","Output":"    a_test.go:7: wrong\n"}`,
		`{"Action":"pass","Package":"p","Test":"TestA/one"}`,
		`{"Action":"fail","Package":"p","Test":"TestA/two"}`,
		`{"Action":"fail","Package":"p","Test":"TestA"}`,
		`{"Action":"run","Package":"p","Test":"TestB"}`,
		`{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:3: no such thing here\n"}`,
		`{"Action":"skip","Package":"p","Test":"TestB"}`,
		`{"Action":"fail","Package":"p","Elapsed":1.5}`,
	)
	r.group(nil, "", nil)
	if status := r.finish(); status != 1 {
		t.Errorf("status %d, want 1", status)
	}
	if got := lastLine(out.String()); got != "1 passed, 1 failed, 1 skipped" {
		t.Errorf("last line %q\n%s", got, out.String())
	}
	for _, want := range []string{"a_test.go:7: wrong", "p TestA/two", "b_test.go:3: no such thing here"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
}

func TestShowsFailuresAtOnce(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	feed(r,
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		`{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: wrong\n"}`,
		`{"Action":"fail","Package":"p","Test":"TestA"}`,
		`{"Action":"run","Package":"p","Test":"TestB"}`,
	)
	if !strings.Contains(out.String(), "--- p TestA\n") || !strings.Contains(out.String(), "a_test.go:7: wrong") {
		t.Errorf("while other tests run the report is %q", out.String())
	}
	feed(r,
		`{"Action":"pass","Package":"p","Test":"TestB"}`,
		`{"Action":"fail","Package":"p","Elapsed":1.5}`,
	)
	r.finish()
	if n := strings.Count(out.String(), "a_test.go:7: wrong"); n != 1 || lastLine(out.String()) != "1 passed, 1 failed, 0 skipped" {
		t.Errorf("the failure is printed %d times:\n%s", n, out.String())
	}
}

func TestNamesWithSlashes(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	feed(r,
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		`{"Action":"run","Package":"p","Test":"TestA/group/one"}`,
		`{"Action":"fail","Package":"p","Test":"TestA/group/one"}`,
		`{"Action":"fail","Package":"p","Test":"TestA"}`,
		`{"Action":"fail","Package":"p"}`,
	)
	if r.finish(); lastLine(out.String()) != "0 passed, 1 failed, 0 skipped" {
		t.Error(out.String())
	}
}

func TestBuildFailureCounts(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	feed(r,
		`{"ImportPath":"p [p.test]","Action":"build-output","Output":"p.go:1: undefined: x\n"}`,
		`{"ImportPath":"p [p.test]","Action":"build-fail"}`,
		`{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`,
	)
	r.group(nil, "", nil)
	r.finish()
	if !strings.Contains(out.String(), "undefined: x") || lastLine(out.String()) != "0 passed, 1 failed, 0 skipped" {
		t.Error(out.String())
	}
}

func TestPanicNamesTheTest(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	feed(r,
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		`{"Action":"output","Package":"p","Test":"TestA","Output":"panic: boom\n"}`,
		`{"Action":"fail","Package":"p"}`,
	)
	r.finish()
	if !strings.Contains(out.String(), "p TestA (did not end)") || !strings.Contains(out.String(), "boom") {
		t.Error(out.String())
	}
}

func TestFailedTestMain(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	feed(r,
		`{"Action":"run","Package":"p","Test":"TestA"}`,
		`{"Action":"pass","Package":"p","Test":"TestA"}`,
		`{"Action":"output","Package":"p","Output":"a mount was left behind\n"}`,
		`{"Action":"fail","Package":"p"}`,
	)
	if r.finish() != 1 || !strings.Contains(out.String(), "a mount was left behind") ||
		lastLine(out.String()) != "1 passed, 1 failed, 0 skipped" {
		t.Error(out.String())
	}
}

func TestUnfinishedPackageFails(t *testing.T) {
	var out bytes.Buffer
	r := newReport(&out)
	feed(r, `{"Action":"run","Package":"p","Test":"TestA"}`)
	r.group(nil, "", nil)
	if r.finish() != 1 {
		t.Error(out.String())
	}
}

func TestChecks(t *testing.T) {
	var out bytes.Buffer
	status := run([]string{"-check", "good=true", "-check", "bad=echo it is wrong; exit 3"}, &out)
	if status != 1 || !strings.Contains(out.String(), "it is wrong") || lastLine(out.String()) != "1 passed, 1 failed, 0 skipped" {
		t.Errorf("status %d\n%s", status, out.String())
	}
}

func TestDeadlineEndsACheck(t *testing.T) {
	var out bytes.Buffer
	started := time.Now()
	status := run([]string{"-timeout", "200ms", "-check", "slow=sleep 60 & sleep 60"}, &out)
	if took := time.Since(started); status != 1 || took > 30*time.Second {
		t.Errorf("status %d after %v\n%s", status, took, out.String())
	}
	if !strings.Contains(out.String(), "deadline") {
		t.Error(out.String())
	}
}

// What go test started gets to undo what it did to the machine.
func TestDeadlineAsksFirst(t *testing.T) {
	var out bytes.Buffer
	run([]string{"-timeout", "500ms", "-check", "slow=trap 'echo undone; exit 1' TERM; sleep 60 & wait"}, &out)
	if !strings.Contains(out.String(), "undone") {
		t.Error(out.String())
	}
}

func TestUsage(t *testing.T) {
	if status := run([]string{"-check", "nameless"}, &bytes.Buffer{}); status != 2 {
		t.Errorf("status %d, want 2", status)
	}
}

func TestGroups(t *testing.T) {
	got := groups([]string{"-race", "./...", "--", "-tags", "x", "./y"})
	if len(got) != 2 || len(got[0]) != 2 || len(got[1]) != 3 {
		t.Errorf("%q", got)
	}
}
