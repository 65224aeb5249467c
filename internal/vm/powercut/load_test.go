package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// steps is how many steps a load has: each kind several times.
const steps = 60

// kind is what a step does. Each works in a directory of its own, in which the lower has a file f.
type kind struct {
	name string
	do   func(dir string, i int) error
	// may are the states that a cut may leave, and must those that it may leave once the step was promised. They are compared
	// with what observe says.
	may, must *regexp.Regexp
}

// allowed makes the states of a kind. A step that promises nothing has no must.
func allowed(name, may, must string, do func(dir string, i int) error) kind {
	if must == "" {
		must = may
	}
	return kind{name, do, regexp.MustCompile("^(" + may + ")$"), regexp.MustCompile("^(" + must + ")$")}
}

func kinds() []kind {
	return []kind{
		allowed("overwrite, fsync", "f:old|f:new", "f:new", func(d string, i int) error {
			return edit(d+"/f", 0, changed(i), fsync)
		}),
		allowed("overwrite", "f:old|f:new", "", func(d string, i int) error {
			return edit(d+"/f", 0, changed(i), nil)
		}),
		allowed("truncate and write, fsync", "f:old|f:empty|f:new", "f:new", func(d string, i int) error {
			return edit(d+"/f", os.O_TRUNC, changed(i), fsync)
		}),
		allowed("truncate and write", "f:old|f:empty|f:new", "", func(d string, i int) error {
			return edit(d+"/f", os.O_TRUNC, changed(i), nil)
		}),
		allowed("replace by rename", "f:old|f:old t:.*|f:new", "f:new", func(d string, i int) error {
			return errors.Join(edit(d+"/t", os.O_CREATE, changed(i), fsync), os.Rename(d+"/t", d+"/f"), syncDir(d))
		}),
		allowed("remove", "f:old|", "", func(d string, _ int) error { return os.Remove(d + "/f") }),
		allowed("remove, fsync of the directory", "f:old|", "", func(d string, _ int) error {
			return errors.Join(os.Remove(d+"/f"), syncDir(d))
		}),
		allowed("chmod, fsync", "f:old|f:old,x", "f:old,x", func(d string, _ int) error {
			return errors.Join(os.Chmod(d+"/f", 0o755), edit(d+"/f", 0, nil, fsync))
		}),
		allowed("overwrite, rename", "f:old|f:new|g:old|g:new", "", func(d string, i int) error {
			return errors.Join(edit(d+"/f", 0, changed(i), nil), os.Rename(d+"/f", d+"/g"))
		}),
		// One name at any time, although no directory is synced. In the later half of the load the file is durable before it moves.
		allowed("overwrite, rename, fsync", "f:old|f:new|g:old|g:new", "g:new", func(d string, i int) error {
			var first func(*os.File) error
			if i > steps/2 {
				first = fsync
			}
			return errors.Join(edit(d+"/f", 0, changed(i), first), os.Rename(d+"/f", d+"/g"), edit(d+"/g", 0, nil, fsync))
		}),
		allowed("exchange, fsync", "f:old|f:old t:.*|f:new t:old", "f:new t:old", func(d string, i int) error {
			return errors.Join(
				edit(d+"/t", os.O_CREATE, changed(i), fsync), syncDir(d),
				unix.Renameat2(unix.AT_FDCWD, d+"/t", unix.AT_FDCWD, d+"/f", unix.RENAME_EXCHANGE), edit(d+"/t", 0, nil, fsync))
		}),
		allowed("link, fsync of the directory", "f:old|f:old g:old", "f:old g:old", func(d string, _ int) error {
			return errors.Join(os.Link(d+"/f", d+"/g"), syncDir(d))
		}),
		// What is made durable beside a copied-up file must not take that one's mark, or the record of marks, apart from it.
		allowed("overwrite, new file with fsync", "f:(old|new)( n:.*)?", "f:(old|new) n:new", func(d string, i int) error {
			return errors.Join(edit(d+"/f", 0, changed(i), nil), edit(d+"/n", os.O_CREATE, changed(i), fsync), syncDir(d))
		}),
		allowed("rename of the directory", "f:old|moved f:old", "moved f:old", func(d string, _ int) error {
			return errors.Join(os.Rename(d, d+moved), syncDir(filepath.Dir(d)))
		}),
	}
}

// moved is the end of a renamed directory's name.
const moved = ".moved"

func dirOf(i int) string { return fmt.Sprintf("step%03d", i) }

// original is the content of step i's file in the lower, changed what the step makes of it. Both have the same length, so that a
// file whose data is missing has its size.
func original(i int) []byte { return content(i, "old") }
func changed(i int) []byte  { return content(i, "new") }

func content(i int, what string) []byte {
	line := fmt.Appendf(nil, "%s content of step %d\n", what, i)
	size := 500 + 4096*(i%7)
	return bytes.Repeat(line, size/len(line)+1)[:size]
}

// writeLower makes the lower that the load begins with.
func writeLower(t *testing.T, dir string) {
	t.Helper()
	for i := range steps {
		d := filepath.Join(dir, dirOf(i))
		if err := errors.Join(os.MkdirAll(d, 0o755), os.WriteFile(d+"/f", original(i), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// load is a program under test: steps, each of which is durable when its promise is printed.
type load struct {
	name  string
	steps int
	// start prepares a step function that works in dir.
	start func(dir string) (func(i int) error, error)
}

func mergedLoad() load {
	return load{"merged", steps, func(dir string) (func(i int) error, error) {
		ks := kinds()
		return func(i int) error {
			k := ks[i%len(ks)]
			if err := k.do(filepath.Join(dir, dirOf(i)), i); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			return nil
		}, nil
	}}
}

// promise is the line that a load prints when step i is durable.
func promise(i int) string { return fmt.Sprintf("durable %d", i) }

// runLoad does all steps of a load. It waits for a line on stdin after each promise, so that whoever reads it can note that it
// was given before anything else reaches the disk.
func runLoad(name, dir string, out io.Writer) error {
	k := slices.IndexFunc(loads(), func(l load) bool { return l.name == name })
	if k < 0 {
		return fmt.Errorf("there is no load %q", name)
	}
	l := loads()[k]
	step, err := l.start(dir)
	if err != nil {
		return err
	}
	answer := make([]byte, 1)
	for i := range l.steps {
		if err := step(i); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		if _, err := fmt.Fprintln(out, promise(i)); err != nil {
			return err
		}
		if _, err := io.ReadFull(os.Stdin, answer); err != nil {
			return err
		}
	}
	return nil
}

// edit opens a file for writing, writes, and calls then before it closes.
func edit(name string, flags int, data []byte, then func(*os.File) error) error {
	f, err := os.OpenFile(name, os.O_RDWR|flags, 0o644)
	if err != nil {
		return err
	}
	if len(data) > 0 {
		_, err = f.Write(data)
	}
	if err == nil && then != nil {
		err = then(f)
	}
	return errors.Join(err, f.Close())
}

func fsync(f *os.File) error { return f.Sync() }

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// startLoad runs a load in a process of its own. promised is called with each promise, while the load waits, and running as soon as it goes on.
func startLoad(t *testing.T, l load, dir string, promised, running func(i int)) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), loadEnv+"="+l.name+":"+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for i := range l.steps {
		want := promise(i) + "\n"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(out, got); err != nil || string(got) != want {
			break // it failed, and says why
		}
		promised(i)
		if _, err := in.Write([]byte("\n")); err != nil {
			break
		}
		running(i)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("load: %v: %s", err, stderr.String())
	}
}
