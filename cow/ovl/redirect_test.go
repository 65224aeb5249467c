package ovl_test

import (
	"strings"
	"testing"

	"plyfs/cow/ovl"
)

func TestRedirect(t *testing.T) {
	long := strings.Repeat("n", 255)
	for value, want := range map[string]ovl.Redirect{
		"name":             {Path: "name"},
		"...":              {Path: "..."},
		"a..b":             {Path: "a..b"},
		" \n\xff":          {Path: " \n\xff"},
		long:               {Path: long},
		"/a":               {Path: "a", Absolute: true},
		"/a/b/c":           {Path: "a/b/c", Absolute: true},
		"/.hidden/..x/...": {Path: ".hidden/..x/...", Absolute: true},
		"/" + long + "/x":  {Path: long + "/x", Absolute: true},
	} {
		got, err := ovl.ParseRedirect([]byte(value))
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", value, got, err, want)
		}
		if enc := string(want.Value()); enc != value {
			t.Errorf("%+v is written %q, want %q", want, enc, value)
		}
	}
}

// A layer of an untrusted image must not lead out of itself.
func TestRedirectRefuses(t *testing.T) {
	for _, value := range []string{
		"", "/", "//", "//a", "/a/", "/a//b", "a/", "a/b", "./a", ".", "..", "/.", "/..", "/../etc", "/a/../../etc", "/a/..", "/a/./b",
		"a\x00", "\x00", "/a\x00/b", strings.Repeat("n", 256), "/a/" + strings.Repeat("n", 256),
	} {
		if r, err := ovl.ParseRedirect([]byte(value)); err == nil {
			t.Errorf("%q: parsed as %+v", value, r)
		}
	}
}
