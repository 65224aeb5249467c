package sys

import (
	"fmt"
	"os"
	"strings"
)

// BootID returns the id of the running kernel's boot, which no other boot has. It fails where procfs is not mounted.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("identify this boot: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
