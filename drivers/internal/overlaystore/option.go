package overlaystore

import (
	"fmt"
	"strconv"

	"plyfs/drivers"
)

// Bool reads the value of the driver's option name. An empty value means true, as for a flag. The error wraps drivers.ErrInvalid.
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
