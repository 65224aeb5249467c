package server

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"plyfs/internal/launch"
)

// TestWidenTable: a process that nobody made room for makes it itself, and leaves no descriptor open.
func TestWidenTable(t *testing.T) {
	RaiseFileLimit()
	widenTable()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(status), "\nFDSize:")
	size := 0
	if _, err := fmt.Sscan(text, &size); err != nil || size <= launch.TableFD {
		t.Errorf("a table of %d descriptors, %v", size, err)
	}
	if _, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", launch.TableFD)); err == nil {
		t.Errorf("descriptor %d stays open", launch.TableFD)
	}
}
