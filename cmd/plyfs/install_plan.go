package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"plyfs/fs/server"
)

// The engines whose configuration plyfs install writes.
const (
	enginePodman     = "podman"
	engineDocker     = "docker"
	engineContainerd = "containerd"
)

// installRequest is what is to be installed.
type installRequest struct {
	// as says that plyfs stands in for fuse-overlayfs.
	as bool
	// engines are those whose configuration is to name it.
	engines []string
	// write says that containerd's configuration is to be written, and not only shown.
	write bool
}

// installPlan is what has to be done so that everything asked for is there.
type installPlan struct {
	changes []installChange
	// already names what is as it should be.
	already []string
	// warnings are what keeps it from having an effect, or what follows from it; next are commands.
	warnings, next []string
	// show is a configuration that the user may add.
	show string
}

func (p *installPlan) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

// plan finds out what to do. It changes nothing.
func (in *installer) plan(r installRecord, q installRequest) (*installPlan, error) {
	p := &installPlan{}
	if q.as {
		if err := in.planLink(p, r, in.bindir, server.NameFuseOverlayfs); err != nil {
			return nil, err
		}
	}
	if !in.user {
		for _, name := range helperNames() {
			if err := in.planLink(p, r, in.path("/sbin"), name); err != nil {
				return nil, err
			}
		}
	}
	for _, e := range q.engines {
		var err error
		switch e {
		case enginePodman:
			err = in.planPodman(p, r)
		case engineDocker:
			err = in.planDocker(p, r)
		case engineContainerd:
			err = in.planContainerd(p, r, q.write)
		}
		if err != nil {
			return nil, err
		}
	}
	if q.as {
		in.warnPath(p, q)
		if !slices.Contains(q.engines, enginePodman) {
			in.warnNative(p)
		}
	}
	return p, nil
}

// helperNames are the names by which mount(8) and mount.fuse3(8) find plyfs.
func helperNames() []string { return []string{"mount.plyfs", "mount.fuse.plyfs", "mount.fuse3.plyfs"} }

// planLink adds the link dir/name, with the directories that it needs.
func (in *installer) planLink(p *installPlan, r installRecord, dir, name string) error {
	c, err := in.link(r, dir, name)
	if err != nil {
		return err
	}
	if c == nil {
		p.already = append(p.already, filepath.Join(dir, name))
		return nil
	}
	in.addDirectories(p, dir)
	p.changes = append(p.changes, *c)
	return nil
}

// addDirectories adds what is missing of dir and is not planned yet.
func (in *installer) addDirectories(p *installPlan, dir string) {
	for _, d := range missingDirectories(dir, in.dirMode()) {
		if !slices.ContainsFunc(p.changes, func(c installChange) bool { return c.Path == d.Path }) {
			p.changes = append(p.changes, d)
		}
	}
}

// configEdit is given the name of a file and what it holds, nil if there is none, and returns what it has to hold.
type configEdit func(name string, old []byte) ([]byte, error)

// planFile adds the change of an engine's configuration.
func (in *installer) planFile(p *installPlan, r installRecord, engine, path string, edit configEdit) error {
	resolved, err := trustedPath(path, in.uid)
	if err != nil {
		return err
	}
	old, err := readConfig(resolved)
	if err != nil {
		return err
	}
	text, err := edit(path, old)
	if err != nil {
		return err
	}
	if old != nil && string(old) == string(text) {
		p.already = append(p.already, path)
		return nil
	}
	c := fileChange(engine, resolved, old, text)
	if r.owns(resolved) {
		return fmt.Errorf("%s was %w, and has to be changed again: plyfs uninstall --leave-changed first", path, errInstallChanged)
	}
	if c.Backup != "" {
		if was, err := sumOf(c.Backup); err != nil || was != "" {
			return errors.Join(err, fmt.Errorf("%s is there already, where %s would be kept, and was %w: move it away",
				c.Backup, path, errInstallConflict))
		}
	}
	in.addDirectories(p, filepath.Dir(resolved))
	p.changes = append(p.changes, c)
	return nil
}

// warnPath warns if callers that look for fuse-overlayfs by its name will find another, or none.
func (in *installer) warnPath(p *installPlan, q installRequest) {
	ours := filepath.Join(in.bindir, server.NameFuseOverlayfs)
	first := in.lookPath(server.NameFuseOverlayfs)
	switch {
	case !in.onPath(in.bindir):
		p.warn("%s is not on PATH, so that callers by name do not find %s there: put it first (in ~/.profile, and for services "+
			"of systemd in %s)", in.bindir, server.NameFuseOverlayfs, in.pathForServices())
	case first != "" && !in.leadsHere(first) && first != ours && in.before(filepath.Dir(first), in.bindir):
		p.warn("%s comes first on PATH and is another program: put %s before it", first, in.bindir)
	case in.user && slices.Contains(q.engines, engineDocker):
		p.warn("services of systemd have a PATH of their own: name %s in %s", in.bindir, in.pathForServices())
	}
}

// before says whether the directory a comes before b on PATH.
func (in *installer) before(a, b string) bool {
	list := filepath.SplitList(in.getenv("PATH"))
	return slices.Index(list, a) < slices.Index(list, b)
}

// pathForServices is where systemd is told of a PATH.
func (in *installer) pathForServices() string {
	if in.user {
		return "~/.config/environment.d/path.conf: PATH=" + in.bindir + ":$PATH"
	}
	return "a drop-in of the unit: Environment=PATH=" + in.bindir + ":/usr/sbin:/usr/bin:/sbin:/bin"
}

// leadsHere says whether path is a name of this program.
func (in *installer) leadsHere(path string) bool {
	resolved, err := filepath.EvalSymlinks(path)
	return err == nil && (resolved == in.program || resolved == in.self)
}
