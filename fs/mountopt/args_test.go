package mountopt

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParseArgs(t *testing.T) {
	tests := []struct {
		style Style
		args  string
		want  Args
	}{
		{StyleFUSE, "", Args{}},
		{StyleFUSE, "/m", Args{Target: "/m"}},
		{StyleFUSE, "-o a,b /m", Args{Options: []string{"a,b"}, Target: "/m"}},
		{StyleFUSE, "-oa -ob,c /m", Args{Options: []string{"a", "b,c"}, Target: "/m"}},
		{StyleFUSE, "overlay /m -o a", Args{Options: []string{"a"}, Source: "overlay", Target: "/m"}},
		{StyleFUSE, "x y /m", Args{Source: "x", Target: "/m", Extra: 1}},
		{StyleFUSE, "-f -d /m", Args{Foreground: true, Debug: true, Target: "/m"}},
		{StyleFUSE, "-fd /m", Args{Foreground: true, Debug: true, Target: "/m"}},
		{StyleFUSE, "-fo a /m", Args{Foreground: true, Options: []string{"a"}, Target: "/m"}},
		{StyleFUSE, "--debug --foreground /m", Args{Foreground: true, Debug: true, Target: "/m"}},
		{StyleFUSE, "-V", Args{Version: true}},
		{StyleFUSE, "--version", Args{Version: true}},
		{StyleFUSE, "-h", Args{Help: true}},
		{StyleFUSE, "--help", Args{Help: true}},
		{StyleFUSE, "-s -n -v /m", Args{Target: "/m"}},
		{StyleFUSE, "-x --bogus=1 /m", Args{Unknown: []string{"-x", "--bogus=1"}, Target: "/m"}},
		{StyleFUSE, "-N 1 /m", Args{Unknown: []string{"-N"}, Source: "1", Target: "/m"}},
		{StyleFUSE, "-- -o /m", Args{Source: "-o", Target: "/m"}},
		{StyleFUSE, "- /m", Args{Source: "-", Target: "/m"}},
		{StyleHelper, "spec /m -o rw,a", Args{Source: "spec", Target: "/m", Options: []string{"rw,a"}}},
		{StyleHelper, "spec /m -sfnv -N /proc/1/ns/mnt -o a -t fuse.plyfs", Args{
			Source: "spec", Target: "/m", Fake: true, Sloppy: true, Namespace: "/proc/1/ns/mnt", Options: []string{"a"},
		}},
		{StyleHelper, "spec /m -sno a", Args{Source: "spec", Target: "/m", Sloppy: true, Options: []string{"a"}}},
		{StyleHelper, "spec /m -tplyfs", Args{Source: "spec", Target: "/m"}},
	}
	for _, tt := range tests {
		got, err := ParseArgs(tt.style, strings.Fields(tt.args))
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q:\ngot  %+v, %v\nwant %+v", tt.args, got, err, tt.want)
		}
	}
}

func TestParseArgsErrors(t *testing.T) {
	for _, args := range []string{"-o", "/m -o", "-fo"} {
		if _, err := ParseArgs(StyleFUSE, strings.Fields(args)); !errors.Is(err, ErrNoArgument) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if _, err := ParseArgs(StyleHelper, []string{"-N"}); err == nil || err.Error() != "-N needs an argument" {
		t.Errorf("-N: %v", err)
	}
}
