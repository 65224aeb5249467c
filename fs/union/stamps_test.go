package union

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/sys"
	"plyfs/metadata"
)

// staleIndex hears what is found wrong.
type staleIndex struct{ reasons []string }

func (*staleIndex) Dir(string) (*metadata.Dir, error) { return nil, nil }
func (x *staleIndex) MarkStale(reason string)         { x.reasons = append(x.reasons, reason) }

// TestStampsOfTallStack: in a stack so tall that several goroutines compare it, one changed directory is found wherever it
// is, and said once, with its layer.
func TestStampsOfTallStack(t *testing.T) {
	const layers = 4*stampsAlone + 3
	root := t.TempDir()
	var ls []*layer.Layer
	rec := &metadata.Dir{}
	for i := range layers {
		dir := fmt.Sprintf("%s/%d", root, i)
		if err := os.MkdirAll(dir+"/d", 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := layer.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l)
		var st unix.Statx_t
		if err := sys.Statx(l.FD(), "d", &st); err != nil {
			t.Fatal(err)
		}
		rec.Lowers = append(rec.Lowers, metadata.Lower{Layer: int32(i), Path: "d", Stamp: stampOf(&st)})
	}
	index := &staleIndex{}
	u, err := New(Options{Lowers: ls, StackIndex: index})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if !u.checkStamps("d", rec) || len(index.reasons) > 0 {
		t.Fatalf("nothing changed, and yet: %q", index.reasons)
	}
	for _, i := range []int{0, layers / 2, layers - 1} {
		good := rec.Lowers[i].Stamp
		rec.Lowers[i].Stamp.Ctime.Nsec ^= 1
		if u.checkStamps("d", rec) {
			t.Errorf("the change in layer %d is not found", i)
		}
		rec.Lowers[i].Stamp = good
		if want := fmt.Sprintf("/d changed in layer %s/%d", root, i); len(index.reasons) != 1 ||
			!strings.HasPrefix(index.reasons[0], want) {
			t.Errorf("said %q, want %q", index.reasons, want)
		}
		index.reasons = nil
		u.distrusted.Store(false)
	}
}
