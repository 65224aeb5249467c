package fsck_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/fs/fsck"
	"plyfs/fs/union/uniontest"
	"plyfs/internal/testenv"
)

// TestRedirectsThatMultiply: of layers whose redirects lead through directories with redirects, a check ends. Each layer would double
// its time.
func TestRedirectsThatMultiply(t *testing.T) {
	base := testenv.Scratch(t)
	s := uniontest.Spec{Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work")}
	ok(t, os.MkdirAll(s.Upper+"/d/d", 0o755))
	ok(t, os.Mkdir(s.Work, 0o755))
	for i := range 40 {
		root := fmt.Sprintf("%s/%d", base, i)
		ok(t, os.MkdirAll(root+"/d/d", 0o755))
		for _, dir := range []string{"/d", "/d/d"} {
			ok(t, unix.Setxattr(root+dir, "trusted.overlay.redirect", []byte("/d/d"), 0))
		}
		s.Lowers = append(s.Lowers, root)
	}
	r := check(t, s, false)
	if len(r.findings) != 1 || r.findings[0].Class != fsck.Unreadable || !strings.Contains(r.findings[0].Explanation, "redirects") {
		t.Errorf("%s", list(r.findings))
	}
}
