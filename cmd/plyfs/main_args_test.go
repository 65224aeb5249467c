package main

import (
	"strings"
	"testing"
)

func TestMountsWithoutCommand(t *testing.T) {
	app := newApp(t.Output())
	for args, want := range map[string]bool{
		"overlay /m -o lowerdir=a":       true,
		"overlay /m -olowerdir=a":        true,
		"mount overlay /m -o lowerdir=a": false,
		"-o x /m":                        false,
		"overlay /m":                     false,
		"umount -l /m":                   false,
		"":                               false,
	} {
		if got := mountsWithoutCommand(app, strings.Fields(args)); got != want {
			t.Errorf("%q: got %v", args, got)
		}
	}
}
