package uniontest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// LayerDir is a directory that appliers make a layer of.
type LayerDir struct {
	Root string
	// Prefix is the namespace of overlay attributes: "trusted." or "user.".
	Prefix string
}

func (l *LayerDir) path(p string) string { return filepath.Join(l.Root, p) }

// Applier makes one thing in a layer, directly on the layer's file system.
type Applier func(l *LayerDir) error

// Layer is a list of appliers.
type Layer []Applier

// Apply runs all appliers.
func (ls Layer) Apply(l *LayerDir) error {
	for i, a := range ls {
		if err := a(l); err != nil {
			return fmt.Errorf("applier %d of layer %s: %w", i, l.Root, err)
		}
	}
	return nil
}

// Dir makes a directory and its parents, with the given mode for the last.
func Dir(p string, mode uint32) Applier {
	return func(l *LayerDir) error {
		if err := os.MkdirAll(l.path(p), 0o755); err != nil {
			return err
		}
		return unix.Chmod(l.path(p), mode)
	}
}

// Dirs makes directories with mode 0755.
func Dirs(ps ...string) Applier {
	return func(l *LayerDir) error {
		for _, p := range ps {
			if err := os.MkdirAll(l.path(p), 0o755); err != nil {
				return err
			}
		}
		return nil
	}
}

// Reg makes a file with mode 0644, and its parents.
func Reg(p, content string) Applier { return RegMode(p, content, 0o644) }

// RegMode makes a file with any mode, and its parents.
func RegMode(p, content string, mode uint32) Applier {
	return func(l *LayerDir) error {
		if err := os.MkdirAll(filepath.Dir(l.path(p)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(l.path(p), []byte(content), 0o600); err != nil {
			return err
		}
		return unix.Chmod(l.path(p), mode)
	}
}

// Sparse makes a file of the given size with the string data at each of the offsets.
func Sparse(p string, size int64, data string, offs ...int64) Applier {
	return func(l *LayerDir) error {
		if err := os.MkdirAll(filepath.Dir(l.path(p)), 0o755); err != nil {
			return err
		}
		f, err := os.Create(l.path(p))
		if err != nil {
			return err
		}
		defer f.Close()
		for _, off := range offs {
			if _, err := f.WriteAt([]byte(data), off); err != nil {
				return err
			}
		}
		return f.Truncate(size)
	}
}

// Sym makes a symlink.
func Sym(p, target string) Applier {
	return func(l *LayerDir) error {
		if err := os.MkdirAll(filepath.Dir(l.path(p)), 0o755); err != nil {
			return err
		}
		return unix.Symlink(target, l.path(p))
	}
}

// Hard makes a hard link p to the existing file old.
func Hard(old, p string) Applier {
	return func(l *LayerDir) error {
		if err := os.MkdirAll(filepath.Dir(l.path(p)), 0o755); err != nil {
			return err
		}
		return unix.Link(l.path(old), l.path(p))
	}
}

// Node makes a fifo, socket or device.
func Node(p string, mode uint32, dev uint64) Applier {
	return func(l *LayerDir) error {
		if err := os.MkdirAll(filepath.Dir(l.path(p)), 0o755); err != nil {
			return err
		}
		return unix.Mknod(l.path(p), mode, int(dev))
	}
}

// Fifo makes a fifo with mode 0644.
func Fifo(p string) Applier { return Node(p, unix.S_IFIFO|0o644, 0) }

// Owner changes owner and group, without following a symlink.
func Owner(p string, uid, gid int) Applier {
	return func(l *LayerDir) error { return unix.Lchown(l.path(p), uid, gid) }
}

// Perm changes the mode (after Owner, which clears set-id bits).
func Perm(p string, mode uint32) Applier {
	return func(l *LayerDir) error { return unix.Chmod(l.path(p), mode) }
}

// Times sets access and modification time, without following a symlink.
func Times(p string, atime, mtime unix.Timespec) Applier {
	return func(l *LayerDir) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, l.path(p), []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	}
}

// Xattr sets an attribute, without following a symlink. A name that begins "overlay." gets the layer's prefix.
func Xattr(p, name, value string) Applier {
	return func(l *LayerDir) error {
		attr := name // the applier may serve several layers at once
		if strings.HasPrefix(attr, "overlay.") {
			attr = l.Prefix + attr
		}
		return unix.Lsetxattr(l.path(p), attr, []byte(value), 0)
	}
}

// Whiteout makes the kernel's form of a whiteout, a 0:0 device.
func Whiteout(p string) Applier { return Node(p, unix.S_IFCHR, 0) }

// WhiteoutAUFS makes the AUFS form, an empty file with a prefix to its name.
func WhiteoutAUFS(p string) Applier {
	return Reg(filepath.Join(filepath.Dir(p), ".wh."+filepath.Base(p)), "")
}

// WhiteoutXattr makes the kernel's newer form, an empty file with an attribute; the directory is marked to hold some.
func WhiteoutXattr(p string) Applier {
	return func(l *LayerDir) error {
		return Layer{
			Reg(p, ""), Xattr(p, "overlay.whiteout", "y"), Xattr(filepath.Dir(p), "overlay.opaque", "x"),
		}.Apply(l)
	}
}

// Opaque marks an existing directory opaque in the kernel's form.
func Opaque(p string) Applier { return Xattr(p, "overlay.opaque", "y") }

// OpaqueAUFS marks an existing directory opaque in the AUFS form.
func OpaqueAUFS(p string) Applier { return Reg(filepath.Join(p, ".wh..wh..opq"), "") }

// FileTypes are the types that Typed makes.
func FileTypes() []string { return []string{"file", "empty", "full", "symlink", "fifo"} }

// Typed makes an object of a named type: a file, an empty directory, a full one, a symlink or a fifo. Content tells
// objects of different layers apart.
func Typed(p, kind, content string) Applier {
	switch kind {
	case "file":
		return Reg(p, content)
	case "empty":
		return Dirs(p)
	case "full":
		return func(l *LayerDir) error {
			return Layer{Reg(p+"/in-"+content, content), Reg(p+"/common", content), Dirs(p + "/sub")}.Apply(l)
		}
	case "symlink":
		return Sym(p, content)
	case "fifo":
		return Fifo(p)
	}
	return func(*LayerDir) error { return fmt.Errorf("no such type %q", kind) }
}
