package exit

import (
	"errors"
	"testing"
)

// What is told is one line, and names a path as it is.
func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"lowerdir=a  b: no such directory": "lowerdir=a  b: no such directory",
		"two\n\tlines\r\n":                 "two lines",
		"\n":                               "",
	} {
		if got := AsFault(errors.New(text)).Text; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if got := AsFault(errors.Join(errors.New("a"), errors.New("b"))).Text; got != "a b" {
		t.Errorf("%q", got)
	}
}
