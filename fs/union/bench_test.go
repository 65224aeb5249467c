package union

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkRequest measures what one request costs the engine, without a front end, as the kernel sends them: the
// allocations are the same on every machine.
func BenchmarkRequest(b *testing.B) {
	root := &Caller{}
	for _, bc := range []struct {
		name string
		run  func(b *testing.B, u *Union, dir *Node)
	}{
		{"getattr-dir", func(b *testing.B, u *Union, dir *Node) {
			for b.Loop() {
				_, err := u.GetAttr(dir)
				okB(b, err)
			}
		}},
		{"lookup-absent", func(b *testing.B, u *Union, dir *Node) {
			for b.Loop() {
				if _, _, err := u.Lookup(dir, "absent"); !errors.Is(err, unix.ENOENT) {
					b.Fatal(err)
				}
			}
		}},
		{"create-write-unlink", func(b *testing.B, u *Union, dir *Node) {
			data := make([]byte, 4096)
			for b.Loop() {
				n, _, err := u.Create(root, dir, "f", 0o644, unix.O_EXCL)
				okB(b, err)
				_, err = u.Write(n, data, 0, KeepSetID)
				okB(b, err)
				okB(b, u.Unlink(dir, "f"))
				u.Forget(n, 1)
			}
		}},
		{"mkdir-rmdir", func(b *testing.B, u *Union, dir *Node) {
			for b.Loop() {
				n, _, err := u.Mkdir(root, dir, "d", 0o755)
				okB(b, err)
				okB(b, u.Rmdir(dir, "d"))
				u.Forget(n, 1)
			}
		}},
		{"lookup-lower", func(b *testing.B, u *Union, _ *Node) {
			for b.Loop() {
				n, _, err := u.Lookup(u.Root(), "f")
				okB(b, err)
				u.Forget(n, 1)
			}
		}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			s := newStack(b)
			u := s.open(nil)
			defer u.Close()
			dir, _, err := u.Mkdir(root, u.Root(), "dir", 0o755)
			okB(b, err)
			defer u.Forget(dir, 1)
			b.ReportAllocs()
			bc.run(b, u, dir)
		})
	}
}

func okB(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
