//go:build vm

package zfs

import (
	"fmt"
	"os/exec"
)

// run runs a program.
func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, out)
	}
	return nil
}
