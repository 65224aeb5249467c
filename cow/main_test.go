package cow_test

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/internal/sys"
	"plyfs/internal/testenv"
)

// envChild makes the test binary hold the work directory that it names until it is killed.
const envChild = "PLYFS_COW_TEST_CHILD"

// envVolatile, when set, makes that a volatile mount's.
const envVolatile = "PLYFS_COW_TEST_VOLATILE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(envChild); dir != "" {
		os.Exit(holdWork(dir))
	}
	os.Exit(testenv.Main(m, testenv.Options{}))
}

var must = testenv.Must

// openLayer opens path as a layer for the time of the test.
func openLayer(t testing.TB, path string) *layer.Layer {
	t.Helper()
	l, err := layer.Open(path)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// abilities is all that a Work found out.
type abilities struct {
	names   *ovl.Names
	durable bool
	cow.FileFeatures
	cow.WhiteoutFeatures
}

func abilitiesOf(t testing.TB, w *cow.Work) abilities {
	t.Helper()
	files, err := w.Files()
	must(t, err)
	whiteouts, err := w.Whiteouts()
	must(t, err)
	return abilities{names: w.Names, durable: w.Durable, FileFeatures: files, WhiteoutFeatures: whiteouts}
}

// stageOf returns the staging directory of w, which it makes.
func stageOf(t testing.TB, w *cow.Work) int {
	t.Helper()
	fd, err := w.Stage()
	must(t, err)
	return fd
}

// openWork opens dir as a work directory for the time of the test.
func openWork(t testing.TB, dir string, o cow.WorkOptions) *cow.Work {
	t.Helper()
	w, err := cow.OpenWork(openLayer(t, dir), o)
	must(t, err)
	t.Cleanup(w.Close)
	return w
}

// names lists a directory in order.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	list := []string{}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// isWhiteout says whether path is one of the kernel's form.
func isWhiteout(path string) bool {
	var st unix.Statx_t
	return sys.Statx(unix.AT_FDCWD, path, &st) == nil && layer.IsWhiteoutDevice(&st)
}

func xattr(path, attr string) string {
	buf := make([]byte, 1<<16)
	n, err := unix.Lgetxattr(path, attr, buf)
	if err != nil {
		return "no " + attr + ": " + err.Error()
	}
	return string(buf[:n])
}

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

// recorder is a hook that notes the calls, and answers those that fail names.
type recorder struct {
	mu    sync.Mutex
	calls []string
	fail  func(op string, nth int) error // nth call of all, from 1; may be nil
}

func (r *recorder) hook(op string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, op)
	if r.fail == nil {
		return nil
	}
	return r.fail(op, len(r.calls))
}

func (r *recorder) mutator() *sys.Mutator { return &sys.Mutator{Hook: r.hook} }

// reset forgets the calls, and sets who fails from now on.
func (r *recorder) reset(fail func(op string, nth int) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls, r.fail = nil, fail
}

// made returns how often op was called.
func (r *recorder) made(op string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, c := range r.calls {
		if c == op {
			n++
		}
	}
	return n
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

// failing answers every call of op with err.
func failing(op string, err error) func(string, int) error {
	return func(o string, _ int) error {
		if o == op {
			return err
		}
		return nil
	}
}

func holdWork(dir string) int {
	l, err := layer.Open(dir)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	w, err := cow.OpenWork(l, cow.WorkOptions{Volatile: os.Getenv(envVolatile) != ""})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if err := w.BeginData(); err != nil {
		fmt.Println(err)
		return 1
	}
	for _, name := range []string{w.TempName(), w.TempName()} {
		if err := unix.Mkdirat(w.StageFD(), name, 0o700); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	fmt.Println("staged")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until killed
	return 1
}
