package mounted

import (
	"os"
	"path/filepath"
	"testing"

	"plyfs/fs/union/uniontest"
	"plyfs/internal/testenv"
)

// session is one mount, from mounting to unmounting.
type session interface {
	// end unmounts and waits until all of the mount is gone.
	end() error
}

// tree is a mounted tree and the way to mount it anew.
type tree struct {
	dirTree
	t     testing.TB
	spec  uniontest.Spec
	start func(s uniontest.Spec, mnt string) (session, error)
	live  session
	mnt   string
}

func openTree(t testing.TB, s uniontest.Spec, start func(uniontest.Spec, string) (session, error)) (uniontest.Tree, error) {
	t.Helper()
	mnt, err := os.MkdirTemp(s.Base, "mnt")
	if err != nil {
		return nil, err
	}
	tr := &tree{t: t, spec: s, start: start, mnt: mnt, dirTree: dirTree{plain: true, fd: -1}}
	if err := tr.mount(); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr, nil
}

func (t *tree) mount() error {
	live, err := t.start(t.spec, t.mnt)
	if err != nil {
		return err
	}
	t.live = live
	return t.open(t.mnt)
}

func (t *tree) As(c testenv.Cred) uniontest.Tree {
	return &borrowed{dirTree: dirTree{root: t.root, fd: t.fd, cred: c}, owner: t}
}

func (t *tree) Remount() error {
	if err := t.Close(); err != nil {
		return err
	}
	return t.mount()
}

func (t *tree) Close() error {
	if t.live == nil {
		return nil
	}
	live := t.live
	t.live = nil
	if t.fd >= 0 {
		_ = (&file{fd: t.fd}).Close()
		t.fd = -1
	}
	return live.end()
}

// borrowed is another user's view of a tree.
type borrowed struct {
	dirTree
	owner *tree
}

func (b *borrowed) As(c testenv.Cred) uniontest.Tree { return b.owner.As(c) }
func (b *borrowed) Remount() error                   { return b.owner.Remount() }
func (b *borrowed) Close() error                     { return b.owner.Close() }

// has reports whether an option is among the spec's.
func has(opts []string, o string) bool {
	for _, x := range opts {
		if x == o {
			return true
		}
	}
	return false
}

// logFile returns where a server's messages go.
func logFile(s uniontest.Spec, mnt string) string {
	return filepath.Join(s.Base, filepath.Base(mnt)+".log")
}
