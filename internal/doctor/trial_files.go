package doctor

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// tryFiles finds out what the file system of a directory, the argument, can do. Steps that fail don't end it. Its files
// have no names, or lose them at once where the file system can't do that.
func tryFiles(s *steps, _ string, args []string) {
	for _, dir := range args {
		s.files(dir)
	}
}

func (s *steps) files(dir string) {
	one, other, err := twoFiles(dir)
	if !s.note("files", dir, err) {
		return
	}
	defer one.Close()
	defer other.Close()
	fd := int(one.Fd())
	s.note("user", "", unix.Fsetxattr(fd, "user.plyfs-doctor", []byte("1"), 0))
	s.note("trusted", "", unix.Fsetxattr(fd, "trusted.plyfs-doctor", []byte("1"), 0))
	if _, err = one.WriteString("data"); err == nil {
		err = unix.IoctlFileClone(int(other.Fd()), fd)
	}
	s.note("reflink", "", err)
	s.note("types", "", typesInListings(dir))
}

// typesInListings says whether a listing of dir has the types of what is in it (d_type), without which the kernel's
// overlayfs refuses an upper.
func typesInListings(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		return err
	}
	// struct linux_dirent64: the length at 16, the type at 18. There are "." and ".." at least.
	for rest := buf[:n]; len(rest) > 18; {
		size := int(binary.NativeEndian.Uint16(rest[16:]))
		if rest[18] == unix.DT_UNKNOWN {
			return fmt.Errorf("listing of %s: entries have no types: %w", dir, unix.ENOTSUP)
		}
		if size <= 18 || size > len(rest) {
			break
		}
		rest = rest[size:]
	}
	return nil
}

// twoFiles makes two files in dir that are gone when they are closed.
func twoFiles(dir string) (one, other *os.File, err error) {
	if one, err = nameless(dir); err != nil {
		return nil, nil, err
	}
	if other, err = nameless(dir); err != nil {
		one.Close()
		return nil, nil, err
	}
	return one, other, nil
}

func nameless(dir string) (*os.File, error) {
	if f, err := unnamed(dir); err == nil {
		return f, nil
	}
	f, err := os.CreateTemp(dir, "."+scratchPrefix)
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// tryAlive asks each mount of the arguments something that only its server can answer. A step is missing where none did.
func tryAlive(s *steps, _ string, args []string) {
	var wg sync.WaitGroup
	for _, target := range args {
		wg.Go(func() {
			var st unix.Statfs_t
			err := unix.Statfs(target, &st)
			if err == nil {
				_, err = os.Lstat(filepath.Join(target, "."))
			}
			s.note(target, "", err)
		})
	}
	wg.Wait()
}
