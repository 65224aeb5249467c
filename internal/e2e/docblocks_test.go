//go:build engines

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

var fenced = regexp.MustCompile("(?ms)^```\\w+ (\\w+)=(\\S+)\n(.*?)^```$")

// docBlocks returns the code blocks of a page of docs that are marked with a key, by the value of the key: with the key
// "test", "```sh test=NAME" begins commands that the test NAME runs as they stand; with the key "file", "```toml file=NAME"
// begins the text of a file.
func docBlocks(t *testing.T, page, key string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	blocks := make(map[string]string)
	for _, m := range fenced.FindAllStringSubmatch(string(text), -1) {
		if m[1] != key {
			continue
		}
		if blocks[m[2]] != "" {
			t.Fatalf("docs/%s: two blocks with %s=%s", page, key, m[2])
		}
		blocks[m[2]] = m[3]
	}
	if len(blocks) == 0 {
		t.Fatalf("docs/%s has no block with %s=", page, key)
	}
	return blocks
}
