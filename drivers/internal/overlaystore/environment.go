package overlaystore

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"plyfs/drivers"
)

// InUserNamespace says whether this process is in a user namespace other than the initial one.
func InUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	f := strings.Fields(string(b))
	return len(f) != 3 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295"
}

// Bool reads the value of a driver's option; "" is true, as if it were a flag.
func Bool(name, value string) (bool, error) {
	if value == "" {
		return true, nil
	}
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("option %s=%s: give true or false: %w", name, value, drivers.ErrInvalid)
	}
	return b, nil
}
