package union_test

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// Where there are no extended attributes, a merged directory that was emptied can be replaced by another one all the same.
func TestRenameOverEmptiedWithoutXattrs(t *testing.T) {
	for name, e := range map[string]direct.Engine{
		"kernel": {}, "aufs": {AUFS: true}, "plain": {Mutator: &sys.Mutator{NoRenameFlags: true}},
	} {
		t.Run(name, func(t *testing.T) {
			base := testenv.Scratch(t)
			if err := unix.Mount("ramfs", base, "ramfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { testenv.Unmount(t, base) })
			s := uniontest.Spec{Base: base, Upper: filepath.Join(base, "u"), Work: filepath.Join(base, "w"), Lowers: []string{filepath.Join(base, "l")}}
			for dir, layer := range map[string]uniontest.Layer{
				"u": {}, "w": {}, "l": {uniontest.Reg("d/f", "f"), uniontest.Reg("d/g/h", "h"), uniontest.Reg("below", "")},
			} {
				l := &uniontest.LayerDir{Root: filepath.Join(base, dir), Prefix: "trusted."}
				if err := unix.Mkdir(l.Root, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := layer.Apply(l); err != nil {
					t.Fatal(err)
				}
			}
			tree := openEngine(t, e, s)
			do := steps(unlink("d/f"), unlink("d/g/h"), rmdir("d/g"), mkdir("new"), create("new/x"), rename("new", "d", 0))
			if err := do(tree); err != nil {
				t.Fatal(err)
			}
			after := snapshot(t, "after the rename", tree)
			if err := tree.Close(); err != nil {
				t.Fatal(err)
			}
			checkOpen(t, s, "opened again", after, after)
			again := openEngine(t, direct.Engine{}, s)
			defer again.Close()
			if err := rename("d", "new", 0)(again); err != nil {
				t.Errorf("and away again: %v", err)
			}
			if _, err := again.Lstat("d"); err == nil {
				t.Error("d is back")
			}
		})
	}
}
