package graphplugin

import (
	"os"
	"slices"
	"strings"
	"testing"

	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) {
	// Fuzzing needs no namespaces, and its workers find the files of the process that started them.
	if slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzz=") || a == "-test.fuzzworker" }) {
		os.Exit(m.Run())
	}
	if socket := os.Getenv(envElsewhere); socket != "" {
		os.Exit(getElsewhere(socket))
	}
	os.Exit(testenv.Main(m, testenv.Options{Binary: true, Daemons: true}))
}

var must = testenv.Must

// want fails the test if got is not what was expected.
func want[T comparable](t testing.TB, what string, got, expected T) {
	t.Helper()
	if got != expected {
		t.Errorf("%s is %v, want %v", what, got, expected)
	}
}

// wantErr fails the test if the error is none, or does not say all of parts.
func wantErr(t testing.TB, what string, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error, want one", what)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v; want it to say %q", what, err, p)
		}
	}
}
