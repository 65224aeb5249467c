package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// servicePath is the PATH of what systemd starts (systemd.exec(5), DEFAULT_PATH).
const servicePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func engineChecks() []check {
	return []check{
		{"engines.found", groupEngines, "programs", checkPrograms},
		{"engines.fuse_overlayfs", groupEngines, "who serves as fuse-overlayfs", checkFuseOverlayfs},
		{"engines.podman", groupEngines, "podman and buildah", checkPodman},
		{"engines.docker", groupEngines, "docker", checkDocker},
		{"engines.containerd", groupEngines, "containerd", several(checkContainerd)},
		{"engines.nerdctl", groupEngines, "nerdctl", several(checkNerdctl)},
	}
}

// findEngine finds a program that users or services run.
func (m *machine) findEngine(name string) (path string, ok bool) {
	path, err := m.LookPath(name, "")
	if err != nil {
		path, err = m.LookPath(name, servicePath)
	}
	return path, err == nil
}

// checkPrograms lists the engines and runtimes with their versions.
func checkPrograms(ctx context.Context, m *machine) []Finding {
	names := []string{"podman", "buildah", "dockerd", "docker", "containerd", "nerdctl", "crun", "runc"}
	lines := make([]string, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		path, ok := m.findEngine(name)
		if !ok {
			continue
		}
		wg.Go(func() {
			out, err := m.Output(ctx, path, "--version")
			if err != nil {
				lines[i] = fmt.Sprintf("%s (%s --version: %v)", name, path, err)
				return
			}
			lines[i] = name + " " + versionIn(out)
		})
	}
	wg.Wait()
	lines = slices.DeleteFunc(lines, func(s string) bool { return s == "" })
	if len(lines) == 0 {
		return one(found(Note,
			"neither podman, buildah, docker, containerd nor a runtime is installed: plyfs works without, by plyfs container"))
	}
	return one(found(OK, "%s", strings.Join(lines, ", ")))
}

// versionIn is the first word of a text that begins with a digit, or a v and a digit.
func versionIn(text string) string {
	for _, word := range strings.Fields(text) {
		w := strings.TrimSuffix(strings.TrimPrefix(word, "v"), ",")
		if w != "" && w[0] >= '0' && w[0] <= '9' {
			return w
		}
	}
	return "of unknown version"
}

// program is a mount program as it introduces itself.
type program struct {
	path string
	// plyfs says that it is plyfs; else version is what it is.
	plyfs   bool
	version string
}

// String names it in sentences.
func (p program) String() string {
	if p.plyfs {
		return p.path + ", which is plyfs " + p.version
	}
	return p.path + ", which is fuse-overlayfs " + p.version
}

// ask asks a mount program what it is.
func (m *machine) ask(ctx context.Context, path string) (program, error) {
	out, err := m.Output(ctx, path, "--version")
	if err != nil {
		return program{path: path}, err
	}
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, "plyfs: "); ok {
			return program{path: path, plyfs: true, version: versionAfter(rest)}, nil
		}
	}
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, "fuse-overlayfs: "); ok {
			return program{path: path, version: versionAfter(rest)}, nil
		}
	}
	return program{path: path, version: "of unknown version"}, nil
}

// versionAfter is what follows the word version.
func versionAfter(text string) string {
	words := strings.Fields(text)
	if i := slices.Index(words, "version"); i >= 0 && i+1 < len(words) {
		return words[i+1]
	}
	return "of unknown version"
}

// installLink is how plyfs gets called where fuse-overlayfs is asked for.
func (m *machine) installLink() Step {
	if m.plain() {
		return asUser("plyfs install --as fuse-overlayfs --user").because("let it be plyfs, for this user")
	}
	return asRoot("plyfs install --as fuse-overlayfs").because("let it be plyfs")
}

// checkFuseOverlayfs finds out which program engines get that look for fuse-overlayfs by its name.
func checkFuseOverlayfs(ctx context.Context, m *machine) []Finding {
	mine, err := m.LookPath("fuse-overlayfs", "")
	if err != nil && !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) {
		return one(found(Warning, "%v", err))
	}
	services, serr := m.LookPath("fuse-overlayfs", servicePath)
	if mine == "" && serr != nil {
		return one(found(Note, "nobody: there is no fuse-overlayfs on PATH").with(m.installLink()))
	}
	p, err := m.ask(ctx, cmp.Or(mine, services))
	if err != nil {
		return one(found(Warning, "%v", err).with(m.installLink()))
	}
	if mine != "" && serr == nil && m.nearest(mine) != m.nearest(services) {
		other, err := m.ask(ctx, services)
		if err == nil && other.plyfs != p.plyfs {
			return one(found(Warning, "on this PATH it is %s; services find %s", p, other).with(m.installLink(),
				say("or give the services a PATH with %s: Environment=PATH=... in the unit", filepath.Dir(mine))))
		}
	}
	where := ""
	switch {
	case mine == "":
		where = "; it is on the PATH of services only"
	case serr != nil:
		where = "; services (systemd) don't find it, since " + filepath.Dir(mine) + " is not on their PATH"
	}
	if !p.plyfs {
		return one(found(Note, "%s%s", p, where).with(m.installLink()))
	}
	if serr != nil {
		return one(found(Note, "%s%s", p, where).
			with(say("name it with its full path (storage.conf: mount_program), or give the services that PATH")))
	}
	return one(found(OK, "%s%s", p, where))
}
