package overlaystore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"plyfs/cow"
	"plyfs/drivers"
)

// bootFile, in the directory of a layer, holds the boot in which the layer was mounted volatile.
const bootFile = "volatile"

// markOf is where a volatile mount marks its work directory. It is there until somebody who knows that the content is
// whole takes it away (cf. the kernel's overlayfs documentation, volatile mount).
func (s *Store) markOf(id string) string {
	return s.dir(id, workDir, cow.StageDir, cow.IncompatDir, cow.VolatileMark)
}

// beforeMount takes the mark of an earlier volatile mount away, if all that was written then is still there: nothing
// was lost as long as the machine did not go down.
func (s *Store) beforeMount(k Stack) error {
	if k.Upper == "" || s.readOnly {
		return nil
	}
	if err := s.forgetVolatile(k.ID); err != nil {
		return err
	}
	if !s.volatile || k.ReadOnly {
		return nil
	}
	return os.WriteFile(s.dir(k.ID, bootFile), []byte(cow.BootID()), 0o600)
}

// afterUnmount is beforeMount for the next one, which may come after the machine went down: the content has time to
// reach the disk until then, as that of any file.
func (s *Store) afterUnmount(id string) error {
	if s.readOnly {
		return nil
	}
	return s.forgetVolatile(id)
}

func (s *Store) forgetVolatile(id string) error {
	mark := s.markOf(id)
	if _, err := os.Lstat(mark); errors.Is(err, fs.ErrNotExist) {
		return removeEmpty(s.dir(id, bootFile))
	}
	boot, err := os.ReadFile(s.dir(id, bootFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if string(boot) != cow.BootID() {
		return fmt.Errorf("layer %s: the machine went down while it was mounted volatile, "+
			"its content may be incomplete: %w; remove the layer, or %s to use it as it is", id, drivers.ErrDamaged, mark)
	}
	if err := os.RemoveAll(filepath.Dir(mark)); err != nil {
		return err
	}
	return removeEmpty(s.dir(id, bootFile))
}
