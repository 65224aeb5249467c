package doctor

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// Every finding is in the table of the documentation, and nothing else is.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z]+\\.[a-z_]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		listed = append(listed, row[1])
	}
	known := []string{"kernel.passthrough"}
	for _, c := range checks() {
		known = append(known, c.id)
	}
	slices.Sort(listed)
	slices.Sort(known)
	if !slices.Equal(listed, known) {
		t.Errorf("docs/doctor.md lists\n%v\nand there are\n%v", listed, known)
	}
}
