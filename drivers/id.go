package drivers

import (
	"fmt"
	"strings"
)

// MaxID is how long the id of a layer may be, in bytes.
const MaxID = 128

// ValidID returns an error that wraps ErrInvalid if id cannot name a layer: ids are 1 to MaxID letters, digits, '_',
// '.' and '-', the first of them a letter or a digit. Hexadecimal digests and random ids are such.
func ValidID(id string) error {
	if id == "" || len(id) > MaxID {
		return fmt.Errorf("layer id %q: length %d is not from 1 to %d: %w", id, len(id), MaxID, ErrInvalid)
	}
	for i, c := range []byte(id) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || i > 0 && strings.IndexByte("_.-", c) >= 0 {
			continue
		}
		return fmt.Errorf("layer id %q: byte %d is not a letter, a digit, or (not first) one of _.-: %w", id, i, ErrInvalid)
	}
	return nil
}
