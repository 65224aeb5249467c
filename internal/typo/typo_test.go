package typo

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	known := []string{"mount", "umount", "n", "ls", "log-level", "redirect_dir", "rm"}
	for word, want := range map[string]string{
		"mont": "mount", "umonut": "umount", "Mount": "mount", "amount": "mount",
		"log_level": "log-level", "redirect_dri": "redirect_dir", "redirect-dir": "redirect_dir",
		"lss": "ls", "l": "ls",
		"x": "", "": "", "push": "", "frobnicate": "",
		strings.Repeat("m", 100): "",
	} {
		if got := Nearest(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}
