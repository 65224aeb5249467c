package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/fs/server"
	"plyfs/internal/testenv"
)

// indexTree makes two lowers that share a directory: 6 entries in 3 directories.
func indexTree(t *testing.T) string {
	t.Helper()
	dir := testenv.Scratch(t)
	leavesNothing(t, dir)
	mkdirs(t, dir, "low1/d", "low2/d/sub")
	write(t, "one", dir, "low1/d/one")
	write(t, "two", dir, "low2/d/two")
	write(t, "hidden", dir, "low2/d/one")
	write(t, "three", dir, "low2/three")
	write(t, "deep", dir, "low2/d/sub/deep")
	return dir
}

const indexLayers = "lowerdir=low1:low2"

// plyfsIndex runs plyfs index in dir, with the indexes in dir/cache.
func plyfsIndex(t *testing.T, dir, command string, args ...string) result {
	t.Helper()
	return runIn(t, dir, "plyfs", append([]string{"index", command, "--dir", "cache"}, args...)...)
}

// fromJSON decodes the output of a run that ended with that code.
func fromJSON[T any](t *testing.T, r result, code int) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil || r.code != code {
		t.Fatalf("code %d, want %d; %v\n%s%s", r.code, code, err, r.stdout, r.stderr)
	}
	return v
}

func mustBuild(t *testing.T, dir string, args ...string) indexBuilt {
	t.Helper()
	return fromJSON[indexBuilt](t, plyfsIndex(t, dir, "build", append([]string{"--json"}, args...)...), 0)
}

func listed(t *testing.T, dir string) []indexLine {
	t.Helper()
	return fromJSON[[]indexLine](t, plyfsIndex(t, dir, "ls", "--json"), 0)
}

// TestIndexCommands: an index is built once, told of, found good, and removed.
func TestIndexCommands(t *testing.T) {
	dir := indexTree(t)
	if got := listed(t, dir); len(got) != 0 {
		t.Errorf("before the first: %+v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "cache")); err == nil {
		t.Error("ls made a directory")
	}
	b := mustBuild(t, dir, "-o", indexLayers+",upperdir=none,workdir=none")
	if !b.Built || b.Entries != 6 || b.Dirs != 3 || b.Bytes <= 0 || b.Digests {
		t.Errorf("built %+v", b)
	}
	r := plyfsIndex(t, dir, "build", "low1", "low2")
	if r.code != 0 || r.stderr != "" || !strings.HasPrefix(r.stdout, "index "+b.Name+": built already, 6 entries, ") {
		t.Errorf("again: %+v", r)
	}
	if again := mustBuild(t, dir, "--digest", "low1", "low2"); !again.Built || !again.Digests || again.Name != b.Name {
		t.Errorf("with digests: %+v", again)
	}
	if again := mustBuild(t, dir, "--force", "low1", "low2"); !again.Built || again.Digests {
		t.Errorf("by force: %+v", again)
	}
	got := listed(t, dir)
	layers := []string{filepath.Join(dir, "low1"), filepath.Join(dir, "low2")}
	if len(got) != 1 || got[0].Name != b.Name || got[0].State != indexOK || got[0].Entries != 6 || got[0].Built == nil ||
		!slices.Equal(got[0].Layers, layers) {
		t.Errorf("ls: %+v", got)
	}
	for _, which := range [][]string{{b.Name}, {"-o", indexLayers}} {
		v := fromJSON[verified](t, plyfsIndex(t, dir, "verify", append([]string{"--json"}, which...)...), 0)
		if v.Summary.Entries != 6 || v.Summary.Directories != 3 || len(v.Findings) != 0 {
			t.Errorf("verify %v: %+v", which, v)
		}
		s := fromJSON[indexStats](t, plyfsIndex(t, dir, "stats", append([]string{"--json"}, which...)...), 0)
		if len(s.Layers) != 2 || s.Layers[0].Entries != 2 || s.Layers[1].Entries != 4 || s.Biggest[0].Path != "/d" ||
			s.Biggest[0].Entries != 3 || s.Biggest[0].Lowers != 2 || len(s.Biggest) != 3 {
			t.Errorf("stats %v: %+v", which, s)
		}
	}
	if r := plyfsIndex(t, dir, "rm", b.Name); r.code != 0 || r.stdout != "removed "+b.Name+"\n" {
		t.Errorf("rm: %+v", r)
	}
	if got := listed(t, dir); len(got) != 0 {
		t.Errorf("after rm: %+v", got)
	}
}

// verified is the output of plyfs index verify --json.
type verified struct {
	Index    indexLine
	Findings []indexFinding
	Summary  indexVerified
}

// kinds are the findings as KIND PATH, sorted.
func (v *verified) kinds() []string {
	var all []string
	for _, f := range v.Findings {
		all = append(all, string(f.Kind)+" "+f.Path)
	}
	slices.Sort(all)
	return all
}

// TestIndexFullOutput: what can't be printed is said.
func TestIndexFullOutput(t *testing.T) {
	dir := indexTree(t)
	b := mustBuild(t, dir, "--digest", "low1", "low2")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range []string{
		"ls", "ls --json", "stats " + b.Name, "stats --json " + b.Name, "verify " + b.Name, "duplicates", "duplicates --json",
		"build low1 low2", "build --json low1 low2", "rm " + b.Name,
	} {
		command, rest, _ := strings.Cut(args, " ")
		cmd := indexProgram(t, dir, command, append([]string{"--dir", "cache"}, strings.Fields(rest)...)...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = full, &stderr
		err := cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != indexFailed || !strings.Contains(stderr.String(), unix.ENOSPC.Error()) {
			t.Errorf("%s: exit code %d, %v, %q", args, code, err, stderr.String())
		}
	}
}

// TestIndexVerifyFinds: every way in which a layer differs from its index has a name, and makes the index stale.
func TestIndexVerifyFinds(t *testing.T) {
	for _, tt := range []struct {
		change string
		want   []string
	}{
		{"printf TWO > low2/d/two", []string{"edited d/two"}},
		{"touch -h -d @0 low1/d/one", []string{"edited d/one"}},
		{"echo > low1/new", []string{"directory-changed .", "unrecorded new"}},
		{"echo > low1/three", []string{"directory-changed .", "unrecorded three"}},
		{"rm low2/three", []string{"directory-changed .", "gone three"}},
		{"mknod low1/three c 0 0", []string{"directory-changed ."}},
		{"mv low2/d/sub low2/d/other", []string{"directory-changed d", "directory-gone d/sub", "gone d/sub", "unrecorded d/other"}},
		{"chmod 700 low2/d/sub", []string{"directory-changed d/sub"}},
		{"rm low2/d/two; mkfifo low2/d/two", []string{"directory-changed d", "edited d/two"}},
	} {
		dir := indexTree(t)
		b := mustBuild(t, dir, "--digest", "low1", "low2")
		shell(t, dir, tt.change)
		v := fromJSON[verified](t, plyfsIndex(t, dir, "verify", "--json", b.Name), indexDiffers)
		if got := v.kinds(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.change, got, tt.want)
		}
		if l := listed(t, dir); len(l) != 1 || l[0].State != indexStale || l[0].Reason == "" {
			t.Errorf("%s: afterwards %+v", tt.change, l)
		}
		if again := mustBuild(t, dir, "low1", "low2"); !again.Built {
			t.Errorf("%s: not built anew", tt.change)
		}
		if r := plyfsIndex(t, dir, "verify", b.Name); r.code != 0 {
			t.Errorf("%s: the new index: %+v", tt.change, r)
		}
	}
}

// TestIndexVerifyOtherLayers: an index is not compared with directories that are others now.
func TestIndexVerifyOtherLayers(t *testing.T) {
	dir := indexTree(t)
	mkdirs(t, dir, "above/low")
	b := mustBuild(t, dir, "above/low", "low2")
	shell(t, dir, "mv above elsewhere; mkdir -p above/low")
	r := plyfsIndex(t, dir, "verify", b.Name)
	if r.code != indexFailed || !strings.Contains(r.stderr, "are other directories now (give the layers with -o lowerdir=)") {
		t.Errorf("by name: %+v", r)
	}
	if r := plyfsIndex(t, dir, "verify", "-o", "lowerdir=elsewhere/low:low2"); r.code != 0 {
		t.Errorf("by options: %+v", r)
	}
}

// TestIndexBitRot: a byte that changes on the disk is told from a file that was edited, and leaves the index good.
func TestIndexBitRot(t *testing.T) {
	dir := testenv.Scratch(t)
	root := testenv.Ext4(t, 16<<20)
	img := filepath.Join(filepath.Dir(root), "img")
	mkdirs(t, root, "low")
	const pattern = "these bytes are on the disk exactly once"
	write(t, pattern, root, "low/rotten")
	write(t, "sound", root, "low/sound")
	write(t, "old", root, "low/new")
	mustBuild(t, dir, "--digest", filepath.Join(root, "low"))
	write(t, "new", root, "low/new")
	testenv.Unmount(t, root)
	disk, err := os.ReadFile(img)
	if err != nil || bytes.Count(disk, []byte(pattern)) != 1 {
		t.Fatalf("%v, pattern %d times on the disk", err, bytes.Count(disk, []byte(pattern)))
	}
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{'T'}, int64(bytes.Index(disk, []byte(pattern)))); err != nil {
		t.Fatal(err)
	}
	f.Close()
	shell(t, dir, "mount -o loop -t ext4 "+img+" "+root)
	v := fromJSON[verified](t, plyfsIndex(t, dir, "verify", "--json", "-o", "lowerdir="+root+"/low"), indexDiffers)
	if got := v.kinds(); !slices.Equal(got, []string{"bit-rot rotten", "edited new"}) || v.Summary.Files != 2 {
		t.Errorf("%q, %+v", got, v.Summary)
	}
	mustBuild(t, dir, "--digest", "--force", filepath.Join(root, "low"))
	write(t, "fixed", root, "low/sound")
	if r := plyfsIndex(t, dir, "verify", "-o", "lowerdir="+root+"/low"); !strings.HasPrefix(r.stdout, "edited sound ") {
		t.Errorf("%+v", r)
	}
}

// TestIndexDuplicates counts each inode once, however often it is indexed and linked.
func TestIndexDuplicates(t *testing.T) {
	dir := testenv.Scratch(t)
	mkdirs(t, dir, "a", "b", "c", "d")
	same, small := strings.Repeat("same", 500), "tiny"
	write(t, same, dir, "a/x")
	write(t, same, dir, "b/y")
	write(t, small, dir, "a/s")
	write(t, small, dir, "b/s2")
	write(t, small, dir, "b/s3")
	write(t, "", dir, "a/empty")
	write(t, "", dir, "b/empty2")
	write(t, strings.Repeat("Same", 500), dir, "c/other")
	shell(t, dir, "ln a/x a/x2; ln a/s a/s1")
	for _, stack := range [][]string{{"a", "b"}, {"c", "a"}, {"b"}} {
		mustBuild(t, dir, append([]string{"--digest"}, stack...)...)
	}
	plain := mustBuild(t, dir, "d", "a")
	r := fromJSON[duplicatesReport](t, plyfsIndex(t, dir, "duplicates", "--json"), 0)
	if r.Indexes != 3 || r.ExtraBytes != 2000+2*4 || len(r.Groups) != 2 {
		t.Fatalf("%+v", r)
	}
	if g := r.Groups[0]; g.Size != 2000 || g.Copies != 2 || g.Extra != 2000 || len(g.Paths) != 2 || g.Paths[1] != filepath.Join(dir, "b/y") {
		t.Errorf("the largest: %+v", g)
	}
	if g := r.Groups[1]; g.Size != 4 || g.Copies != 3 || len(g.Paths) != 3 {
		t.Errorf("the next: %+v", g)
	}
	if len(r.Skipped) != 1 || r.Skipped[0].Name != plain.Name || !strings.Contains(r.Skipped[0].Reason, "plyfs index build --digest") {
		t.Errorf("left out: %+v", r.Skipped)
	}
	if r := fromJSON[duplicatesReport](t, plyfsIndex(t, dir, "duplicates", "--json", "--min", "1K"), 0); len(r.Groups) != 1 {
		t.Errorf("at least 1 KiB: %+v", r)
	}
	if r := plyfsIndex(t, dir, "duplicates"); r.code != 0 || !strings.Contains(r.stdout, "2.0 KiB held more than once, in 2 groups") {
		t.Errorf("lines: %+v", r)
	}
}

// endless makes a lower whose digests take longer than any test: a build is under way until it is ended.
func endless(t *testing.T) string {
	t.Helper()
	dir := indexTree(t)
	write(t, "", dir, "low1/d/huge")
	if err := os.Truncate(filepath.Join(dir, "low1/d/huge"), 1<<42); err != nil {
		t.Fatal(err)
	}
	return dir
}

func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "cache", ".*-*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestIndexBuildInterrupted: a build that is ended leaves nothing, and what one that was killed leaves goes with the next.
func TestIndexBuildInterrupted(t *testing.T) {
	for sig, code := range map[unix.Signal]int{unix.SIGTERM: indexInterrupted, unix.SIGINT: indexInterrupted, unix.SIGKILL: -1} {
		dir := endless(t)
		cmd := command(t, dir, "plyfs", "index", "build", "--digest", "--dir", "cache", "low1", "low2")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, "the build began", func() bool { return len(leftovers(t, dir)) == 1 })
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("%v: code %d, want %d", sig, got, code)
		}
		left := leftovers(t, dir)
		if code == -1 {
			mustBuild(t, dir, "low2")
			left = leftovers(t, dir)
		}
		if len(left) > 0 {
			t.Errorf("%v: left %q", sig, left)
		}
		if b := mustBuild(t, dir, "low1", "low2"); !b.Built || b.Entries != 7 {
			t.Errorf("%v: afterwards %+v", sig, b)
		}
	}
}

// TestIndexInherited: a server passes descriptors, gives their names in the environment, and is not outlived by an idle
// builder.
func TestIndexInherited(t *testing.T) {
	dir := endless(t)
	script := fmt.Sprintf(`%s=$(printf '["/a","/b"]') '%s' index build --idle --digest -q --fds 2 --dir cache 3<low1 4<low2 &
echo $!; wait`, server.LayerPathsEnv, program(t, "plyfs"))
	cmd := command(t, dir, "/bin/sh", "-c", script)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the build began", func() bool { return len(leftovers(t, dir)) == 1 })
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, name := range tasks {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // a thread that ended
		}
		f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		// cf. proc_pid_stat(5): fields 19 and 41, of which the first two are cut off.
		if nice, policy := f[19-3], f[41-3]; nice != "19" || policy != "5" {
			t.Errorf("%s: nice %s, policy %s", name, nice, policy)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	testenv.Eventually(t, "the builder ended", func() bool { return len(leftovers(t, dir)) == 0 })

	for paths, want := range map[string][]string{
		`["/a","/b"]`: {"/a", "/b"}, "": {filepath.Join(dir, "low2"), filepath.Join(dir, "low2/d")},
	} {
		cmd = command(t, dir, "plyfs", "index", "build", "-q", "--force", "--fds", "2", "--dir", "cache")
		cmd.Env = append(os.Environ(), server.LayerPathsEnv+"="+paths)
		for _, d := range []string{"low2", "low2/d"} {
			f, err := os.Open(filepath.Join(dir, d))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
		if got := finish(t, cmd); got != (result{}) {
			t.Fatalf("%+v", got)
		}
		if l := listed(t, dir); len(l) != 1 || !slices.Equal(l[0].Layers, want) {
			t.Errorf("ls: %+v", l)
		}
	}
}

// indexProgram prepares plyfs fsck, or a command of plyfs index.
func indexProgram(t *testing.T, dir, name string, args ...string) *exec.Cmd {
	t.Helper()
	if name != "fsck" {
		args = append([]string{"index", name}, args...)
	} else {
		args = append([]string{name}, args...)
	}
	return command(t, dir, "plyfs", args...)
}

// TestIndexUnprivileged: a user has indexes in the user's own cache directory.
func TestIndexUnprivileged(t *testing.T) {
	dir := indexTree(t)
	const uid = 65534
	mkdirs(t, dir, "home")
	if err := os.Chown(filepath.Join(dir, "home"), uid, uid); err != nil {
		t.Fatal(err)
	}
	run := func(command string, args ...string) result {
		cmd := indexProgram(t, dir, command, args...)
		cmd.Env = append(os.Environ(), server.IndexDirEnv+"=", "XDG_CACHE_HOME="+filepath.Join(dir, "home"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return finish(t, cmd)
	}
	b := fromJSON[indexBuilt](t, run("build", "--json", "--digest", "-o", indexLayers), 0)
	if b.Entries != 6 || b.Path != filepath.Join(dir, "home/plyfs/index", b.Name) {
		t.Errorf("%+v", b)
	}
	if r := run("verify", b.Name); r.code != 0 || !strings.HasSuffix(r.stdout, "4 files read, 15 B: 0 differences\n") {
		t.Errorf("%+v", r)
	}
	shell(t, dir, "mkdir upper; chown 65534 upper; chmod 0 low2/d/sub")
	r := run("fsck", "-o", indexLayers+",upperdir=upper")
	if r.code != fsckLeft || !strings.Contains(r.stdout, "error stack-index-unreadable index:d/sub ") {
		t.Errorf("what the user can't read: %+v", r)
	}
	if r := run("rm", "--all"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if r := run("verify", b.Name); r.code != indexFailed || !strings.Contains(r.stderr, "plyfs index build makes one") {
		t.Errorf("%+v", r)
	}
}

// TestIndexRmStale removes what is of no use and keeps the rest.
func TestIndexRmStale(t *testing.T) {
	dir := indexTree(t)
	good, stale := mustBuild(t, dir, "low2"), mustBuild(t, dir, "low1")
	write(t, "x", dir, "cache", stale.Name, "stale")
	broken := mustBuild(t, dir, "low2/d")
	shell(t, filepath.Join(dir, "cache", broken.Name), "for f in db/*; do printf broken > $f; done")
	if r := plyfsIndex(t, dir, "verify", broken.Name); r.code != indexDiffers && r.code != indexFailed || r.stderr == "" {
		t.Errorf("a broken index: %+v", r)
	}
	states := map[string]string{}
	for _, l := range listed(t, dir) {
		states[l.Name] = l.State
	}
	if len(states) != 3 || states[good.Name] != indexOK || states[stale.Name] != indexStale || states[broken.Name] != indexBroken {
		t.Errorf("%v", states)
	}
	if r := plyfsIndex(t, dir, "rm", "--stale"); r.code != 0 || strings.Count(r.stdout, "removed ") != 2 {
		t.Errorf("%+v", r)
	}
	if l := listed(t, dir); len(l) != 1 || l[0].Name != good.Name {
		t.Errorf("%+v", l)
	}
	// One that is there and one that is not: what is gone is named all the same.
	r := plyfsIndex(t, dir, "rm", "--json", good.Name, good.Name)
	if got := fromJSON[indexRemoved](t, r, indexFailed); !slices.Equal(got.Removed, []string{good.Name}) {
		t.Errorf("%+v", r)
	}
	if got := fromJSON[indexRemoved](t, plyfsIndex(t, dir, "rm", "--json", "--all"), 0); len(got.Removed) != 0 {
		t.Errorf("nothing is left, and yet %+v", got)
	}
}

// TestIndexRefuses: bad command lines.
func TestIndexRefuses(t *testing.T) {
	dir := indexTree(t)
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"build", indexUsage, "no lowerdir given"},
		{"build --fix low1", indexUsage, "usage: plyfs index build"},
		{"build low1 --force", indexUsage, "flag --force stands behind the arguments"},
		{"build none", indexFailed, "lowerdir=none: no such file or directory"},
		{"build low1 ./low1", indexFailed, "are the same directory"},
		{"build --fds 1 low1", indexUsage, "leave the paths out"},
		{"build --fds 501", indexUsage, "give a number from 1 to 500"},
		{"build --fds 1", indexFailed, "descriptor 3: "},
		{"build -o lwerdir=low1", indexUsage, "did you mean lowerdir?"},
		{"verify", indexUsage, "give the name of an index, or the options of its mount"},
		{"verify 0123456789abcdef", indexFailed, "no such index"},
		{"stats x y", indexUsage, "usage: plyfs index stats"},
		{"rm", indexUsage, "give names, or --all, or --stale"},
		{"rm --all x", indexUsage, "give names, or --all, or --stale"},
		{"rm ../x", indexFailed, "no such index"},
		{"ls x", indexUsage, "unexpected argument x"},
		{"duplicates --min many", indexUsage, "is no size"},
	} {
		command, rest, _ := strings.Cut(tt.args, " ")
		r := plyfsIndex(t, dir, command, strings.Fields(rest)...)
		if r.code != tt.code || !strings.Contains(r.stderr, tt.want) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: code %d, %q; want %d, %q", tt.args, r.code, r.stderr, tt.code, tt.want)
		}
	}
	if r := runIn(t, dir, "plyfs", "index", "bulid"); r.code != indexUsage {
		t.Errorf("unknown command: %+v", r)
	}
	shell(t, dir, "mkdir -p cache; chmod 777 cache")
	if r := plyfsIndex(t, dir, "build", "low1"); r.code != indexFailed || !strings.Contains(r.stderr, "others may write it") {
		t.Errorf("unsafe directory: %+v", r)
	}
}

// TestFsckStackIndex: fsck looks at the index that a mount would use.
func TestFsckStackIndex(t *testing.T) {
	dir := indexTree(t)
	mkdirs(t, dir, "upper", "work")
	mustBuild(t, dir, "low1", "low2")
	const options = indexLayers + ",upperdir=upper,workdir=work,index=./cache"
	if r := runIn(t, dir, "plyfs", "fsck", "-o", options); r.code != fsckClean || r.stderr != "" {
		t.Errorf("a good index: %+v", r)
	}
	write(t, "TWO", dir, "low2/d/two")
	r := runIn(t, dir, "plyfs", "fsck", "-o", options)
	if r.code != fsckLeft || !strings.HasPrefix(r.stdout, "error stack-index-differs index:d/two ") {
		t.Errorf("an edited file: %+v", r)
	}
	if r := runIn(t, dir, "plyfs", "fsck", "--repair", "-o", options); r.code != fsckCorrected {
		t.Errorf("repair: %+v", r)
	}
	if l := listed(t, dir); len(l) != 1 || l[0].State != indexStale {
		t.Errorf("%+v", l)
	}
	if r := runIn(t, dir, "plyfs", "fsck", "-o", options); r.code != fsckClean {
		t.Errorf("after the repair: %+v", r)
	}
}
