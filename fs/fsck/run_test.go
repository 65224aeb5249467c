package fsck_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/fs/fsck"
	"plyfs/fs/union/uniontest"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// TestInUse: layers that a mount uses are left alone, and may be looked at.
func TestInUse(t *testing.T) {
	for _, kernel := range []bool{false, true} {
		s := newSpec(t, []ls{{reg("d/f", "x"), reg("d/g", "y")}}, nil)
		if kernel {
			// The mount table escapes what is special to it.
			for _, dir := range []*string{&s.Upper, &s.Work} {
				ok(t, os.Rename(*dir, *dir+", = x"))
				*dir += ", = x"
			}
		}
		tree := openTree(t, s, kernel)
		ok(t, tree.Chmod("d/f", 0o600))
		ok(t, tree.Unlink("d/g"))
		for _, repair := range []bool{false, true} {
			_, err := run(t, s, fsck.Options{Repair: repair})
			if !errors.Is(err, fsck.ErrInUse) || !strings.Contains(err.Error(), s.Upper) {
				t.Errorf("kernel %v, repair %v: %v; want that it is in use", kernel, repair, err)
			}
		}
		r, err := run(t, s, fsck.Options{InUse: true})
		if err != nil || r.summary.Errors > 0 || len(r.summary.Skipped) == 0 {
			t.Errorf("kernel %v: %+v, %v%s", kernel, r.summary, err, list(r.findings))
		}
		for _, f := range r.findings {
			if f.Class == fsck.StagedLeftover || f.Class == fsck.UnsyncedRecord {
				t.Errorf("kernel %v: of a live mount: %s", kernel, list([]fsck.Finding{f}))
			}
		}
		closeTree(t, tree)
		if _, err := run(t, s, fsck.Options{Repair: true}); err != nil {
			t.Errorf("kernel %v, after the unmount: %v", kernel, err)
		}
	}
}

// TestLowersDiffer: with the wrong lowers every whiteout lacks its victim. The kernel's overlayfs notes which was the
// topmost; nothing is repaired then.
func TestLowersDiffer(t *testing.T) {
	s := newSpec(t, []ls{{reg("f", "x")}, {reg("g", "y")}}, nil)
	tree := openTree(t, s, true)
	ok(t, tree.Unlink("f"))
	closeTree(t, tree)
	// The kernel's overlayfs leaves one staged whiteout behind, for the next mount to remove.
	if r := check(t, s, true); len(r.findings) != 1 || r.findings[0].Class != fsck.StagedLeftover {
		t.Fatalf("with the right lowers: %s", list(r.findings))
	}
	s.Lowers = s.Lowers[1:]
	r := check(t, s, true)
	if len(r.findings) != 1 || r.findings[0].Class != fsck.LowersDiffer || r.summary.Left() != 1 {
		t.Errorf("with other lowers: %+v%s", r.summary, list(r.findings))
	}
	if _, err := os.Lstat(filepath.Join(s.Upper, "f")); err != nil {
		t.Errorf("the whiteout: %v", err)
	}
}

// TestWithoutLowers: what needs them is left out, and that is said.
func TestWithoutLowers(t *testing.T) {
	s := newSpec(t, nil, ls{
		white("gone"), dirs("d"), xattr("d", "overlay.redirect", "/x"), reg("m", "x"), xattr("m", "overlay.metacopy", ""),
		dirs("o"), opaque("o"), white("o/x"),
	})
	s.Lowers, s.Work = nil, ""
	r, err := run(t, s, fsck.Options{})
	if err != nil || len(r.findings) != 1 || r.findings[0].Class != fsck.WhiteoutInOpaque || len(r.summary.Skipped) != 2 {
		t.Errorf("%+v, %v%s", r.summary, err, list(r.findings))
	}
}

// TestRepairWithoutLowers: whiteouts in a directory that a repair makes opaque go with it, also where nothing is known of the lowers.
func TestRepairWithoutLowers(t *testing.T) {
	s := newSpec(t, nil, ls{dirs("d"), xattr("d", "overlay.redirect", "/a/../.."), white("d/gone"), reg("d/own", "z")})
	s.Lowers = nil
	r, err := run(t, s, fsck.Options{Repair: true})
	if err != nil || len(r.findings) != 2 || r.summary.Left() != 0 {
		t.Errorf("%+v, %v%s", r.summary, err, list(r.findings))
	}
	r, err = run(t, s, fsck.Options{})
	if err != nil || len(r.findings) != 0 {
		t.Errorf("after the repair: %+v, %v%s", r.summary, err, list(r.findings))
	}
}

// TestOptions that exclude each other.
func TestOptions(t *testing.T) {
	s := newSpec(t, nil, nil)
	if _, err := run(t, s, fsck.Options{Repair: true, InUse: true}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("repair while in use: %v", err)
	}
	s.Work = ""
	if _, err := run(t, s, fsck.Options{Repair: true}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("repair without a work directory: %v", err)
	}
	if _, err := fsck.Run(t.Context(), fsck.Options{}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("without an upper: %v", err)
	}
}

// TestUnreadable: a file system error is a finding, and what depends on the whole tree is not judged.
func TestUnreadable(t *testing.T) {
	s := newSpec(t, []ls{{dirs("x")}}, ls{dirs("closed/inner"), uniontest.Perm("closed", 0), white("gone")})
	for _, d := range []string{s.Base, s.Upper, s.Work} {
		ok(t, os.Chmod(d, 0o777))
	}
	upper, err := layer.Open(s.Upper)
	ok(t, err)
	defer upper.Close()
	var found []fsck.Finding
	err = testenv.RunAs(testenv.Cred{UID: 65534, GID: 65534}, func() error {
		_, err := fsck.Run(context.Background(), fsck.Options{
			Upper: upper, Report: func(f fsck.Finding) { found = append(found, f) },
		})
		return err
	})
	if err != nil || len(found) != 1 || found[0].Class != fsck.Unreadable || found[0].Path != "closed" {
		t.Errorf("%v%s", err, list(found))
	}
}

// TestRepairFails: an error in a repair is part of its finding, and the rest is repaired.
func TestRepairFails(t *testing.T) {
	s := newSpec(t, nil, ls{white("a"), white("b")})
	calls := 0
	r, err := run(t, s, fsck.Options{Repair: true, Mutator: &sys.Mutator{Hook: func(string) error {
		if calls++; calls == 1 {
			return unix.EIO
		}
		return nil
	}}})
	if err != nil || len(r.findings) != 2 || !errors.Is(r.findings[0].Failure, unix.EIO) || r.findings[0].Repaired ||
		!r.findings[1].Repaired || r.summary.Notes != 2 || r.summary.RepairedNotes != 1 {
		t.Errorf("%+v, %v%s", r.summary, err, list(r.findings))
	}
}

// TestCancelled: a check that is not wanted any more ends.
func TestCancelled(t *testing.T) {
	s := newSpec(t, nil, ls{dirs("a/b/c")})
	upper, err := layer.Open(s.Upper)
	ok(t, err)
	defer upper.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last fsck.Progress
	_, err = fsck.Run(ctx, fsck.Options{Upper: upper, Progress: func(p fsck.Progress) {
		if last = p; p.Path == "a/b" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || last.Path != "a/b" {
		t.Errorf("at %+v: %v", last, err)
	}
}

// TestDeep: a tree deeper than a path can be long is walked to its end, in the upper and in the work directory.
func TestDeep(t *testing.T) {
	const depth = 2200
	s := newSpec(t, []ls{{dirs("d")}}, nil)
	deep := func(root, first string) {
		fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
		ok(t, err)
		name := first
		for range depth {
			ok(t, unix.Mkdirat(fd, name, 0o755))
			next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
			ok(t, err)
			ok(t, unix.Close(fd))
			fd, name = next, "d"
		}
		ok(t, unix.Mknodat(fd, "gone", unix.S_IFCHR, 0))
		ok(t, unix.Close(fd))
	}
	ok(t, os.Mkdir(filepath.Join(s.Work, "work"), 0o700))
	deep(s.Upper, "d")
	deep(filepath.Join(s.Work, "work"), "plyfs-0123")
	r := check(t, s, true)
	if len(r.findings) != 2 || r.summary.RepairedNotes != 2 || r.summary.Directories != depth+1 {
		t.Errorf("%+v%.300s", r.summary, list(r.findings))
	}
	if r = check(t, s, false); len(r.findings) > 0 {
		t.Errorf("again: %.300s", list(r.findings))
	}
}

// TestRootless: in a user namespace, where attributes are those of users, the same is found and repaired.
func TestRootless(t *testing.T) {
	if !testenv.InUserNamespace() {
		testenv.RunInUserNamespace(t, "^TestRootless$")
		return
	}
	s := newSpec(t, []ls{{reg("d/f", "data")}}, ls{
		white("gone"), dirs("m"), xattr("m", "overlay.metacopy", ""), dirs("r"), xattr("r", "overlay.redirect", "/none"),
		reg("o", "x"), xattr("o", "overlay.origin", "x"), reg("d/f", ""), xattr("d/f", "overlay.metacopy", "x"),
	})
	r := check(t, s, true)
	for _, c := range []fsck.Class{
		fsck.WhiteoutWithoutVictim, fsck.MetacopyNotRegular, fsck.RedirectDangling, fsck.OriginMalformed,
		fsck.MetacopyMalformed,
	} {
		if !slices.ContainsFunc(r.findings, func(f fsck.Finding) bool { return f.Class == c && f.Repaired }) {
			t.Errorf("%s is not repaired:%s", c, list(r.findings))
		}
	}
	for _, f := range check(t, s, false).findings {
		if f.Class != fsck.OpaqueWithoutLower {
			t.Errorf("after the repair:%s", list([]fsck.Finding{f}))
		}
	}
}
