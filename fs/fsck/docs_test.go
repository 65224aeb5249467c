package fsck_test

import (
	"os"
	"strings"
	"testing"

	"plyfs/fs/fsck"
)

// TestDocumented: every class has a row in the table of docs/cli.md.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	ok(t, err)
	for _, c := range fsck.Classes() {
		if !strings.Contains(string(text), "\n| `"+string(c)+"` | ") {
			t.Errorf("docs/cli.md has no row for %s", c)
		}
	}
}
