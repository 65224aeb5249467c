package layer

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// dirent is a struct linux_dirent64 of the given length.
func dirent(name string, reclen int) []byte {
	b := make([]byte, max(reclen, direntName+len(name)))
	binary.NativeEndian.PutUint64(b, 7)
	binary.NativeEndian.PutUint16(b[direntReclen:], uint16(reclen))
	b[direntType] = unix.DT_REG
	copy(b[direntName:], name)
	return b
}

func TestParseDirents(t *testing.T) {
	for _, c := range []struct {
		about string
		buf   []byte
		want  []string
		err   error
	}{
		{about: "nothing"},
		{about: "one", buf: dirent("a", 24), want: []string{"a"}},
		{about: "dots", buf: slices.Concat(dirent(".", 24), dirent("..", 24), dirent("...", 24)), want: []string{"..."}},
		{about: "no room for a NUL", buf: dirent("abcde", 24), want: []string{"abcde"}},
		{about: "an unaligned record", buf: slices.Concat(dirent("a", 21), dirent("b", 24)), want: []string{"a", "b"}},
		{about: "a record of no length", buf: slices.Concat(dirent("a", 24), dirent("b", 0)), want: []string{"a"}, err: unix.EIO},
		{about: "a record shorter than its head", buf: dirent("b", 18), err: unix.EIO},
		{about: "a record beyond the buffer", buf: dirent("b", 24)[:23], err: unix.EIO},
	} {
		var got []string
		err := parseDirents(c.buf, func(e RawDirent) error {
			if e.Ino != 7 || e.Type != unix.DT_REG {
				t.Errorf("%s: %+v", c.about, e)
			}
			got = append(got, e.Name)
			return nil
		})
		if !errors.Is(err, c.err) || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v; want %q, %v", c.about, got, err, c.want, c.err)
		}
	}
}
