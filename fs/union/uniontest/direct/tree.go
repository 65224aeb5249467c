package direct

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/fs/union"
	"plyfs/fs/union/uniontest"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// Engine is the engine by direct calls.
type Engine struct {
	// Mutator makes the system calls that change layers; nil makes them directly.
	Mutator *sys.Mutator
	// MaxOpenFiles bounds the engine's descriptors; 0 is its own choice.
	MaxOpenFiles int
	// Indexed gives it an index of the lowers, made when the tree is opened; Index replaces that index by another. An index
	// made here must fit to the end.
	Indexed bool
	Index   func(made union.StackIndex) union.StackIndex
	// Verify compares all that the index says with the layers.
	Verify bool
	// AUFS has whiteouts written in the AUFS form.
	AUFS bool
	// PlainRenames says that the layers' file system takes no flags of renameat2; that the Mutator refuses them says it, too.
	PlainRenames bool
	// NoTrusted says that it takes no attributes trusted.*.
	NoTrusted bool
	// Quota bounds uppers. With it, or with an option quota_..., a closing tree checks that the account is exact.
	Quota union.Quota
}

// Name returns "engine".
func (Engine) Name() string { return "engine" }

// Traits returns those of the machine's root without a mount.
func (e Engine) Traits() uniontest.Traits {
	t := uniontest.SharedUpper
	if e.PlainRenames || e.Mutator != nil && e.Mutator.NoRenameFlags {
		t |= uniontest.PlainRenames
	}
	if e.AUFS {
		t |= uniontest.AUFSForm
	}
	if !testenv.InUserNamespace() {
		t |= uniontest.Devices | uniontest.Trusted | uniontest.InitialRoot
	}
	if e.NoTrusted {
		t &^= uniontest.Trusted
	}
	return t
}

// Open opens the layers and assembles a union.
func (e Engine) Open(t testing.TB, s uniontest.Spec) (uniontest.Tree, error) {
	t.Helper()
	tr, err := e.Tree(s)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr, nil
}

// Tree is Open without a test; the caller closes the tree.
func (e Engine) Tree(s uniontest.Spec) (*Tree, error) {
	tr := &Tree{shared: &shared{engine: e, spec: s}, cred: testenv.Root()}
	if err := tr.open(); err != nil {
		return nil, err
	}
	return tr, nil
}

// shared is what all users' views of one tree have in common.
type shared struct {
	engine Engine
	spec   uniontest.Spec
	u      *union.Union
	index  *memoryIndex // of an Indexed engine
	mu     sync.Mutex
	held   int // references to nodes not given back; guarded by mu
}

// Tree is a union that is used by direct calls, as one user.
type Tree struct {
	*shared
	cred testenv.Cred
}

// Union returns the engine, nil after Close.
func (t *Tree) Union() *union.Union { return t.u }

func (t *Tree) open() error {
	o := union.Options{Mutator: t.engine.Mutator, MaxOpenFiles: t.engine.MaxOpenFiles, UserXattr: testenv.InUserNamespace()}
	o.Quota = t.engine.Quota
	if t.engine.AUFS {
		o.Whiteout = union.WhiteoutAUFS
	}
	for _, opt := range t.spec.Options {
		k, v, _ := strings.Cut(opt, "=")
		if limit := map[string]*int64{"quota_bytes": &o.Quota.Bytes, "quota_inodes": &o.Quota.Inodes}[k]; limit != nil {
			if _, err := fmt.Sscan(v, limit); err != nil {
				return err
			}
			continue
		}
		switch opt {
		case "metacopy=off":
			o.NoMetacopy = true
		case "redirect_dir=off":
			o.RedirectDir = union.RedirectOff
		case "hardlink_index=off":
			o.NoIndex = true
		case "ro":
			o.ReadOnly = true
		case "volatile":
			o.Volatile = true
		case "whiteout=aufs":
			o.Whiteout = union.WhiteoutAUFS
		default:
			return fmt.Errorf("option %s=%s is unknown to the engine's tests", k, v)
		}
	}
	if err := t.openLayers(&o); err != nil {
		return err
	}
	if t.engine.Indexed && len(o.Lowers) > 0 {
		var err error
		if t.index, err = describe(o); err != nil {
			return err
		}
		o.StackIndex, o.VerifyIndex = t.index, t.engine.Verify
		if t.engine.Index != nil {
			o.StackIndex = t.engine.Index(t.index)
		}
	}
	u, err := union.New(o)
	if err != nil {
		return err
	}
	t.u = u
	return nil
}

func (t *Tree) openLayers(o *union.Options) (err error) {
	for _, p := range t.spec.Lowers {
		l, err := layer.Open(p)
		if err != nil {
			return err
		}
		o.Lowers = append(o.Lowers, l)
	}
	if t.spec.Upper == "" {
		return nil
	}
	if o.Upper, err = layer.Open(t.spec.Upper); err != nil {
		return err
	}
	o.Work, err = layer.Open(t.spec.Work)
	return err
}

// As returns another user's view.
func (t *Tree) As(c testenv.Cred) uniontest.Tree { return &Tree{shared: t.shared, cred: c} }

// Root returns "": there is no mount.
func (t *Tree) Root() string { return "" }

// Remount closes and opens.
func (t *Tree) Remount() error {
	if err := t.Close(); err != nil {
		return err
	}
	return t.open()
}

// Close closes the union and checks that it forgot every node that was given back.
func (t *Tree) Close() error {
	if t.u == nil {
		return nil
	}
	u := t.u
	t.u = nil
	var left error
	if s := u.Stats(); t.held == 0 && s.Nodes > 1 && s.Marked == 0 { // a sync that is due keeps nodes
		left = fmt.Errorf("the union keeps %d nodes that were all forgotten", s.Nodes)
	}
	if reason := t.Stale(); reason != "" && t.engine.Index == nil {
		left = fmt.Errorf("the index was not believed: %s", reason)
	}
	if t.held != 0 {
		left = fmt.Errorf("the test holds %d nodes", t.held)
	}
	return errors.Join(left, checkQuota(u, t.spec.Upper), u.Close())
}

// checkQuota says whether the account of an upper with a quota differs from what the upper holds.
func checkQuota(u *union.Union, upper string) error {
	use := u.QuotaUse()
	if err := u.RecountQuota(); err != nil {
		return err
	}
	found := u.QuotaUse()
	if found == use {
		return nil
	}
	late, err := lateMaps(upper)
	if found.Inodes == use.Inodes && found.Bytes <= use.Bytes+late && use.Bytes <= found.Bytes+late {
		return err // the kernel wrote back in between, at a moment of its own
	}
	return errors.Join(err, fmt.Errorf("the account has %+v, the upper %+v", use, found))
}

// lateMaps is how many bytes write-back may add to what is below upper, if it is on ext4: a file of more than four extents, and so of more
// blocks than that, gets one that maps them when it is written back, and the account may expect it before.
func lateMaps(upper string) (bytes int64, err error) {
	const block, inInode = 4096, 4
	var fs unix.Statfs_t
	if err := unix.Statfs(upper, &fs); err != nil || fs.Type != unix.EXT4_SUPER_MAGIC {
		return 0, err
	}
	err = filepath.WalkDir(upper, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Blocks*512 > inInode*block {
			bytes += block
		}
		return nil
	})
	return bytes, err
}

// Abandon drops the union without closing it, as a killed server would.
func (t *Tree) Abandon() { t.u = nil }

func (t *Tree) caller() *union.Caller {
	c := &union.Caller{UID: uint32(t.cred.UID), GID: uint32(t.cred.GID), PID: 1, Umask: uint32(t.cred.Umask)}
	for _, g := range t.cred.Groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c
}

// writable fails where the VFS would not ask a file system that is mounted read-only.
func (t *Tree) writable() error {
	if t.spec.Upper == "" {
		return unix.EROFS
	}
	for _, o := range t.spec.Options {
		if o == "ro" {
			return unix.EROFS
		}
	}
	return nil
}

func (t *Tree) hold(n int) {
	t.mu.Lock()
	t.held += n
	t.mu.Unlock()
}

// forget gives back the reference that a walk or a creation took.
func (t *Tree) forget(n *union.Node) {
	if n != nil && n != t.u.Root() {
		t.u.Forget(n, 1)
		t.hold(-1)
	}
}

func (t *Tree) lookup(dir *union.Node, name string) (*union.Node, error) {
	if dir.Mode()&unix.S_IFMT != unix.S_IFDIR {
		return nil, unix.ENOTDIR
	}
	n, _, err := t.u.Lookup(dir, name)
	if err == nil && n != nil {
		t.hold(1)
		return n, nil
	}
	if err == nil {
		err = unix.ENOENT
	}
	return nil, err
}

// maxLinks is how many symlinks one path may lead through.
const maxLinks = 40

// walk finds the node of a path; follow says whether a symlink in the last component is followed.
func (t *Tree) walk(p string, follow bool) (*union.Node, error) {
	dir, name, err := t.parent(p, follow)
	if err != nil || name == "" {
		return dir, err
	}
	defer t.forget(dir)
	return t.lookup(dir, name)
}

// parent finds the directory of a path's last component, and that component: "" for the root itself. With follow, a
// symlink there is replaced by what it leads to.
func (t *Tree) parent(p string, follow bool) (dir *union.Node, name string, err error) {
	stack := []*union.Node{t.u.Root()}
	defer func() {
		for i, n := range stack {
			if err != nil || i < len(stack)-1 {
				t.forget(n)
			}
		}
	}()
	rest, links := split(p), 0
	for {
		top := stack[len(stack)-1]
		if len(rest) == 0 {
			return top, "", nil
		}
		name, rest = rest[0], rest[1:]
		if name == ".." {
			if len(stack) > 1 {
				t.forget(top)
				stack = stack[:len(stack)-1]
			}
			continue
		}
		if len(rest) == 0 && !follow {
			if top.Mode()&unix.S_IFMT != unix.S_IFDIR {
				return nil, "", unix.ENOTDIR
			}
			return top, name, nil
		}
		n, err := t.lookup(top, name)
		if err != nil {
			if len(rest) == 0 && errors.Is(err, unix.ENOENT) {
				return top, name, nil
			}
			return nil, "", err
		}
		if n.Mode()&unix.S_IFMT != unix.S_IFLNK {
			if len(rest) == 0 {
				t.forget(n)
				return top, name, nil
			}
			stack = append(stack, n)
			continue
		}
		target, err := t.u.Readlink(n)
		t.forget(n)
		if err != nil {
			return nil, "", err
		}
		if links++; links > maxLinks {
			return nil, "", unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			// It leads out of the union.
			return nil, "", unix.EXDEV
		}
		rest = append(split(target), rest...)
	}
}

// split returns the components of a path, "." left out.
func split(p string) []string {
	all := strings.FieldsFunc(p, func(r rune) bool { return r == '/' })
	return slices.DeleteFunc(all, func(c string) bool { return c == "." })
}

// at calls f with the parent of a path whose last component is not followed.
func (t *Tree) at(op, p string, f func(dir *union.Node, name string) error) error {
	dir, name, err := t.parent(p, false)
	if err == nil {
		defer t.forget(dir)
		if name == "" {
			err = unix.EBUSY
		} else {
			err = f(dir, name)
		}
	}
	return uniontest.Errno(op, p, err)
}

// on calls f with the node of a path.
func (t *Tree) on(op, p string, follow bool, f func(n *union.Node) error) error {
	n, err := t.walk(p, follow)
	if err == nil {
		defer t.forget(n)
		err = f(n)
	}
	return uniontest.Errno(op, p, err)
}
