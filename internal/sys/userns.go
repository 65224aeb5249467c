package sys

import (
	"fmt"
	"os"
	"strings"
)

// IdentityMapped says whether user ids here are those of the machine, which they are in the initial user namespace. One that maps
// every id to itself can't be told from it. The error is that of reading /proc.
func IdentityMapped() (bool, error) {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, fmt.Errorf("user namespace: %w", err)
	}
	return strings.Join(strings.Fields(string(text)), " ") == "0 0 4294967295", nil
}
