package union

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
)

// TestRedirectsThatMultiply: layers whose redirects lead through directories with redirects would take a time that doubles with each layer.
// Forty of them would take years.
func TestRedirectsThatMultiply(t *testing.T) {
	base := t.TempDir()
	var lowers []*layer.Layer
	for i := range 40 {
		root := fmt.Sprintf("%s/%d", base, i)
		if err := os.MkdirAll(root+"/d/d", 0o755); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"/d", "/d/d"} {
			if err := unix.Setxattr(root+dir, "user.overlay.redirect", []byte("/d/d"), 0); err != nil {
				t.Fatal(err)
			}
		}
		l, err := layer.Open(root)
		if err != nil {
			t.Fatal(err)
		}
		lowers = append(lowers, l)
	}
	u, err := New(Options{Lowers: lowers})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	n, _, err := u.Lookup(u.Root(), "d")
	if err == nil {
		defer u.Forget(n, 1)
		_, _, err = u.Lookup(n, "d")
	}
	if !errors.Is(err, unix.ELOOP) {
		t.Errorf("error is %v, want ELOOP", err)
	}
}
