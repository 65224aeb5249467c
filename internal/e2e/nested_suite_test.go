//go:build engines

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// nestedEngine is an engine in an outer container.
type nestedEngine struct {
	*nested
	nestedCase
	want []string
}

// exec runs a script in the outer container, with $E the command of the inner engine and $R, $B the options of run and
// build that its surroundings ask for.
func (in *nestedEngine) exec(script string) (string, error) {
	options := "E=docker R='--network none' B='--network none -q' DOCKER_BUILDKIT=0; export DOCKER_BUILDKIT\n"
	if in.inner == "podman" {
		options = "E=podman R= B='--network host --isolation chroot -q'\n"
	}
	return in.try(in.nested.outer, "exec", "-u", in.user, "outer", "sh", "-euc", options+script)
}

func (in *nestedEngine) script(t *testing.T, text string) string {
	t.Helper()
	out, err := in.exec(text)
	if err != nil {
		t.Fatalf("%s within %s: %v", in.inner, in.nested.outer, err)
	}
	return out
}

// printed returns the lines of what a command printed.
func printed(text string) []string { return strings.Split(strings.TrimSuffix(text, "\n"), "\n") }

// listImage lists an image through a container of the inner engine.
func (in *nestedEngine) listImage(t *testing.T, image string) []string {
	t.Helper()
	return printed(in.script(t, "$E run --rm $R -v /images/treedump:/treedump:ro "+image+" /treedump / data"))
}

func (in *nestedEngine) image(t *testing.T) {
	t.Helper()
	checkLines(t, "the image within", in.want, keeps(in.listImage(t, imageName), in.lost))
	expect(t, "a container of another user", in.script(t, "$E run --rm $R -u guest "+imageName+" cat /data/top"), "40\n")
}

// container is run, exec, diff, commit, stop, start and rm.
func (in *nestedEngine) container(t *testing.T) {
	t.Helper()
	in.script(t, "$E run -d --name box $R -v /images/treedump:/treedump:ro "+imageName+" sleep 1000")
	in.script(t, "$E exec box sh -ec '"+strings.ReplaceAll(work, "'", `'\''`)+"'")
	live := printed(in.script(t, "$E exec box /treedump / data"))
	for _, l := range in.want {
		if name, _, _ := strings.Cut(l, " "); strings.HasPrefix(name, `"data/shared`) && !slices.Contains(keeps(live, in.lost), l) {
			t.Errorf("after work elsewhere the container does not have %s", l)
		}
	}
	expect(t, "exec as another user", in.script(t, "$E exec -u guest box cat /data/private/own"), "guest's\n")
	changes := printed(in.script(t, "$E diff box"))
	want := []string{"A /data/made", "D /data/f40", "C /data/top", "A /data/op/again", "D /data/f37", "A /data/renamed"}
	if !in.hides {
		want = append(want, "D /data/op/after33")
	}
	for _, w := range want {
		if !slices.Contains(changes, w) {
			t.Errorf("%s diff does not show %q: %v", in.inner, w, changes)
		}
	}
	in.script(t, "$E commit box localhost/committed; $E stop -t 0 box; $E start box")
	checkLines(t, "the image committed within", keeps(live, in.lost), keeps(in.listImage(t, "localhost/committed"), in.lost))
	checkLines(t, "the inner container, started again,", keeps(live, in.lost),
		keeps(printed(in.script(t, "$E exec box /treedump / data")), in.lost))
	in.script(t, "$E rm -f box; $E rmi -f localhost/committed")
}

// commitOpen commits a running container that has a file open for writing.
func (in *nestedEngine) commitOpen(t *testing.T) {
	t.Helper()
	out := in.script(t, `$E run -d --name box $R `+imageName+` sh -c \
		'exec 3>/data/dirty; dd if=/dev/zero bs=65536 count=10 >&3 2>/dev/null; echo ready; sleep 1000' >/dev/null
		for i in $(seq 300); do if $E logs box | grep -q ready; then break; fi; sleep 0.1; done
		$E commit box localhost/dirty >/dev/null
		$E run --rm $R localhost/dirty stat -c %s /data/dirty
		$E rm -f box >/dev/null; $E rmi -f localhost/dirty >/dev/null`)
	expect(t, "size of a dirty file in the commit", out, "655360\n")
}

// build has a directory removed, one renamed and a file copied.
func (in *nestedEngine) build(t *testing.T) {
	t.Helper()
	out := in.script(t, `mkdir -p /tmp/context; cd /tmp/context; echo copied >file
		cat >Dockerfile <<-EOF
			FROM `+imageName+`
			RUN rm -r /data/shared && mkdir /data/shared && echo one >/data/shared/one
			RUN mv /data/deep /data/deeper && echo x >>/data/top
			COPY file /data/copied
			RUN rm /data/copied /data/f40 && echo z >/data/z && ln /data/z /data/zlink
		EOF
		$E build $B -t localhost/built . >/dev/null
		$E run --rm $R localhost/built sh -c 'ls /data/shared; cat /data/top; ls /data/deeper/a/b
			ls /data/copied /data/f40 /data/deep 2>&1 | wc -l; stat -c %h /data/zlink'
		$E rmi -f localhost/built >/dev/null`)
	expect(t, "the image built within", out, "one\n40\nx\nstays\n3\n2\n")
}

// save takes the image out and in again.
func (in *nestedEngine) save(t *testing.T) {
	t.Helper()
	in.script(t, `$E save -o /tmp/saved.tar `+imageName+`; $E rmi -f `+imageName+`; $E load -q -i /tmp/saved.tar; rm /tmp/saved.tar`)
	checkLines(t, "the image after save and load within", in.want, keeps(in.listImage(t, imageName), in.lost))
}

// parallel builds four images at the same time, each of which removes and renames what the others do.
func (in *nestedEngine) parallel(t *testing.T) {
	t.Helper()
	out := in.script(t, `mkdir -p /tmp/parallel; cd /tmp/parallel
		for i in 1 2 3 4; do
			mkdir -p $i
			cat >$i/Dockerfile <<-EOF
				FROM `+imageName+`
				RUN rm -r /data/shared && mv /data/deep /data/d$i && echo $i >/data/top
				RUN echo $i >>/data/top
			EOF
			$E build $B -t localhost/p$i $i >$i/log 2>&1 || { cat $i/log >&2; touch failed; } &
		done
		wait
		test ! -e failed
		for i in 1 2 3 4; do
			$E run --rm $R localhost/p$i sh -c "cat /data/top; ls /data/d$i/a/b; test ! -e /data/shared"
			$E rmi -f localhost/p$i >/dev/null
		done; rm -r /tmp/parallel`)
	var want strings.Builder
	for i := 1; i <= 4; i++ {
		fmt.Fprintf(&want, "%d\n%d\nstays\n", i, i)
	}
	expect(t, "images built in parallel", out, want.String())
}

// store is the life of a container of plyfs itself, which the page's commands have mounted once.
func (in *nestedEngine) store(t *testing.T) {
	t.Helper()
	out := in.script(t, `m=$(plyfs container mount box); /images/treedump $m data; plyfs container umount box`)
	checkLines(t, "the container within", in.want, printed(out))
	out = in.script(t, `m=$(plyfs container mount box)
		rm -r $m/data/op; mkdir $m/data/op; echo again >$m/data/op/again; mv $m/data/deep $m/data/moved; rm $m/data/f40
		plyfs container umount box; plyfs container umount box; plyfs container changes box
		plyfs container commit box localhost/committed; plyfs container rm box
		plyfs container create localhost/committed two; m=$(plyfs container mount two)
		cat $m/data/op/*; ls $m/data/moved/a/b; ls $m/data/f40 $m/data/deep 2>&1 | wc -l
		plyfs container umount two; plyfs container rm two`)
	for _, want := range []string{"D /data/f40\n", "A /data/op/again\n", "again\nstays\n2\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the store within does not show %q: %s", want, out)
		}
	}
}
