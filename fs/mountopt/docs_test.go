package mountopt

import (
	"os"
	"strings"
	"testing"
)

// TestDocumented: each word of the grammar stands in docs/cli.md, as `word` or `word=...`.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range table() {
		for _, k := range s.keys {
			if !strings.Contains(string(text), "`"+k+"`") && !strings.Contains(string(text), "`"+k+"=") {
				t.Errorf("docs/cli.md says nothing about the option %s", k)
			}
		}
	}
}
