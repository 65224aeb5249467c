package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/internal/testenv"
)

// stack is the layers on a disk: upper and work on it, the lower beside it.
type stack struct {
	lower, upper, work string
	// extra are further options of plyfs mount, each with a comma before it.
	extra string
}

// layersOn returns the stack of the disk that is mounted at root.
func layersOn(lower, root string) stack {
	return stack{lower: lower, upper: filepath.Join(root, "upper"), work: filepath.Join(root, "work")}
}

// make makes the upper and work directories, which every cut has.
func (s stack) make(t *testing.T) {
	t.Helper()
	err := errors.Join(os.Mkdir(s.upper, 0o755), os.Mkdir(s.work, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	unix.Sync()
}

func (s stack) options() string {
	return "lowerdir=" + s.lower + ",upperdir=" + s.upper + ",workdir=" + s.work
}

// plyfs runs plyfs and returns its exit status and output.
func plyfs(t *testing.T, args ...string) (int, string) {
	t.Helper()
	out, err := exec.Command(testenv.Binary(t), args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		return exit.ExitCode(), string(out)
	}
	return 0, string(out)
}

// serverEnd is how long a server may take to end after its unmount.
const serverEnd = 10 * time.Second

// mount mounts the stack with plyfs. What is returned unmounts it and waits for the server's end.
func (s stack) mount(t *testing.T, merged string) (unmount func()) {
	t.Helper()
	if code, out := plyfs(t, "mount", "-o", s.options()+s.extra, merged); code != 0 {
		t.Fatalf("plyfs mount: exit code %d: %s", code, out)
	}
	return func() {
		if code, out := plyfs(t, "umount", merged); code != 0 {
			t.Errorf("plyfs umount: exit code %d: %s", code, out)
		}
		// The last that a server does is to let go of the work directory.
		dir, err := os.Open(filepath.Join(s.work, cow.StageDir))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		for deadline := time.Now().Add(serverEnd); cow.InUse(int(dir.Fd())); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the server has not ended")
			}
		}
	}
}

// observe says, for each step, what is in its directory: names with their content.
func observe(merged string) ([]string, error) {
	states := make([]string, steps)
	for i := range steps {
		d := filepath.Join(merged, dirOf(i))
		var words []string
		entries, err := os.ReadDir(d)
		if errors.Is(err, os.ErrNotExist) {
			d += moved
			words = append(words, "moved")
			entries, err = os.ReadDir(d)
		} else if _, err := os.Lstat(d + moved); err == nil {
			words = append(words, "moved and not moved")
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			w, err := describe(filepath.Join(d, e.Name()), i)
			if err != nil {
				return nil, err
			}
			words = append(words, e.Name()+":"+w)
		}
		states[i] = strings.Join(words, " ")
	}
	return states, nil
}

// describe says what a file of step i holds.
func describe(name string, i int) (string, error) {
	st, err := os.Lstat(name)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	var what string
	switch {
	case bytes.Equal(b, original(i)):
		what = "old"
	case bytes.Equal(b, changed(i)):
		what = "new"
	case len(b) == 0:
		what = "empty"
	case len(bytes.Trim(b, "\x00")) == 0:
		what = fmt.Sprintf("%d-zeros", len(b))
	default:
		what = fmt.Sprintf("%d-bytes", len(b))
	}
	if st.Mode()&0o111 != 0 {
		what += ",x"
	}
	return what, nil
}

// judge compares states with what the kinds allow when the steps before promised were promised.
func judge(states []string, promised int) []string {
	var wrong []string
	ks := kinds()
	for i, s := range states {
		k := ks[i%len(ks)]
		want := k.may
		if i < promised {
			want = k.must
		}
		if !want.MatchString(s) {
			wrong = append(wrong, fmt.Sprintf("step %d of %d promised (%s): %q, want %v", i, promised, k.name, s, want))
		}
	}
	return wrong
}

// recovery is how a cut is looked at first.
type recovery string

const (
	byMount recovery = "mount"
	byFsck  recovery = "fsck"
)

func recoveries() []recovery { return []recovery{byMount, byFsck} }

// checkCut recovers the layers of a cut and checks them. They are changed by it.
func (s stack) checkCut(t *testing.T, r recovery, promised int) {
	t.Helper()
	merged := testenv.Scratch(t)
	var recovered []string
	switch r {
	case byMount:
		unmount := s.mount(t, merged)
		recovered = s.look(t, "plyfs", merged, promised)
		unmount()
	case byFsck:
		if code, out := plyfs(t, "fsck", "--repair", "-o", s.options()); code > 1 {
			t.Errorf("plyfs fsck --repair after a cut with %d promised: exit code %d: %s", promised, code, out)
		}
	}
	if code, out := plyfs(t, "fsck", "-o", s.options()); code != 0 {
		t.Errorf("plyfs fsck behind the recovery by %s with %d promised: exit code %d: %s", r, promised, code, out)
	}
	o := testenv.Overlay{Lowers: []string{s.lower}, Upper: s.upper, Work: s.work, Options: []string{"redirect_dir=on", "metacopy=on"}}
	if err := mountKernel(o, merged); err != nil {
		t.Fatal(err)
	}
	defer testenv.Unmount(t, merged)
	kernel := s.look(t, "overlayfs", merged, promised)
	for i := range recovered {
		if kernel[i] != recovered[i] {
			t.Errorf("step %d: plyfs shows %q, overlayfs %q", i, recovered[i], kernel[i])
		}
	}
}

// look observes what is mounted and fails the test if it is wrong.
func (s stack) look(t *testing.T, who, merged string, promised int) []string {
	t.Helper()
	states, err := observe(merged)
	if err != nil {
		t.Fatalf("%s: %v", who, err)
	}
	for _, w := range judge(states, promised) {
		t.Errorf("%s: %s", who, w)
	}
	return states
}

// mountKernel mounts the kernel's overlayfs through mount(2): older kernels have no new interface for it.
func mountKernel(o testenv.Overlay, target string) error {
	options := strings.Join(append(o.Options, "lowerdir="+o.Lowers[0], "upperdir="+o.Upper, "workdir="+o.Work), ",")
	out, err := exec.Command("mount", "-t", "overlay", "-o", options, "overlay", target).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mount overlay: %w: %s", err, out)
	}
	return nil
}

// newBoot makes the rest of the test look as if the machine had been started again: what servers that run already wrote under
// the old boot is from before the cut.
func newBoot(t *testing.T) {
	t.Helper()
	const place = "/proc/sys/kernel/random/boot_id"
	file := filepath.Join(testenv.Scratch(t), "boot_id")
	if err := os.WriteFile(file, []byte("11111111-2222-4333-8444-555555555555\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "--bind", file, place).CombinedOutput(); err != nil {
		t.Fatalf("mount over %s: %v: %s", place, err, out)
	}
	t.Cleanup(func() { testenv.Unmount(t, place) })
}
