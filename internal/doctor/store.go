package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
)

func storeChecks() []check {
	return []check{
		{"storage.files", groupStore, "file system", checkStorage},
		{"storage.store", groupStore, "the layer store", single(checkStore)},
		{"storage.drivers", groupStore, "graph drivers", checkDrivers},
		{"storage.index", groupStore, "indexes", single(checkIndexDir)},
	}
}

// place is a directory that somebody keeps layers in.
type place struct{ whose, dir string }

// places are the plyfs store, and those of engines that are there.
func (m *machine) places() []place {
	all := []place{{"plyfs", m.options.Root}}
	candidates := []place{
		{"podman", m.podmanStorage().GraphRoot}, {"docker", m.dockerConfig().DataRoot}, {"containerd", "/var/lib/containerd"},
	}
	for _, p := range candidates {
		if p.dir != "" && m.exists(p.dir) && m.Writable(p.dir) {
			all = append(all, p)
		}
	}
	return all
}

// checkStorage looks at the file system of each place.
func checkStorage(ctx context.Context, m *machine) []Finding {
	var all []Finding
	for _, p := range m.places() {
		if p.dir == "" {
			all = append(all, found(Problem, "this user has no home directory for a store").of(p.whose).
				with(say("set HOME, or name a directory with --root or PLYFS_ROOT")))
			continue
		}
		all = append(all, m.checkPlace(ctx, p)...)
	}
	return all
}

// checkPlace looks at the file system of a place: what keeps layers from being there, then what makes them dear.
func (m *machine) checkPlace(ctx context.Context, p place) []Finding {
	dir := m.nearest(p.dir)
	at := m.mountOf(dir)
	move := say("give the store another place (plyfs: --root or PLYFS_ROOT; podman: graphroot; docker: data-root; " +
		"containerd: root)")
	start := func(s Status, format string, args ...any) Finding {
		f := found(s, format, args...).of(p.whose)
		f.Title = "file system of " + p.dir
		return f
	}
	if at.has("ro") {
		return one(start(Problem, "%s on %s is mounted read-only", at.fstype, at.target).with(move))
	}
	if !m.Writable(dir) {
		return one(start(Problem, "%s may not write to %s", m.name(), dir).with(move))
	}
	facts, all := []string{at.fstype + " on " + at.target}, []Finding{}
	switch {
	case remote(at.fstype):
		all = append(all, start(Warning,
			"%s is %s: on a remote or shared file system owners, attributes and locks are not what layers need",
			at.target, at.fstype).with(move))
	case at.fstype == "tmpfs":
		all = append(all, start(Note, "%s is a tmpfs: images are gone after a reboot, and take up memory", at.target).
			with(move))
	}
	for _, option := range []string{"noexec", "nosuid", "nodev"} {
		if at.has(option) {
			all = append(all, start(Note, "%s is mounted %s: layers of the drivers vfs and btrfs are shown as they are there",
				at.target, option).
				with(asRoot("mount -o remount,%s %s", strings.TrimPrefix(option, "no"), quote(at.target))))
		}
	}
	all = append(all, m.checkSpace(p, dir, start)...)
	able, more := m.abilities(ctx, dir, start)
	all = append(all, more...)
	facts = append(facts, able...)
	if at.has("prjquota") || at.has("pquota") {
		facts = append(facts, "project quotas")
	}
	if slices.ContainsFunc(all, func(f Finding) bool { return f.Status == Problem || f.Status == Warning }) {
		return all
	}
	return append(all, start(OK, "%s", strings.Join(facts, ", ")))
}

// remote says whether a file system is of another machine, or of another server here.
func remote(fstype string) bool {
	return slices.Contains([]string{"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs"}, fstype) ||
		strings.HasPrefix(fstype, "fuse.") && fstype != "fuse.plyfs" && fstype != "fuse.fuse-overlayfs"
}

// checkSpace looks at free space and inodes.
func (m *machine) checkSpace(p place, dir string, start func(Status, string, ...any) Finding) []Finding {
	const little = 1 << 30
	s, err := m.Statfs(dir)
	if err != nil {
		return one(start(Warning, "%v", err))
	}
	free := say("make room: plyfs layer gc, podman system prune, docker system prune, or give the store another place")
	if p.whose == "plyfs" {
		free = asUser("plyfs layer gc").because("then see what images are there: plyfs image ls")
	}
	switch {
	case s.Free < little:
		return one(start(Warning, "%d MiB of %d MiB are free", s.Free>>20, s.Size>>20).with(free))
	case s.Inodes > 0 && s.FreeInodes < s.Inodes/20:
		return one(start(Warning, "%d of %d inodes are free; an image takes tens of thousands", s.FreeInodes, s.Inodes).
			with(free))
	}
	return nil
}

// abilities tries what the file system can do.
func (m *machine) abilities(ctx context.Context, dir string,
	start func(Status, string, ...any) Finding,
) (facts []string, all []Finding) {
	results, err := m.Try(ctx, Trial{Name: trialFiles, In: Here, Args: []string{dir}})
	move := say("put the store on ext4, xfs, btrfs or another local file system with extended attributes")
	if r, ok := result(results, "files"); !ok || r.Error != "" {
		return nil, one(start(Problem, "no file can be made in %s: %v %s", dir, err, r.Error).with(move))
	}
	for _, x := range []struct {
		step, name string
		want       bool
	}{
		{"user", "user attributes", true},
		{"trusted", "trusted attributes", m.mayMount() && !m.nested},
		{"types", "types in listings", true},
	} {
		r, _ := result(results, x.step)
		switch {
		case r.Error == "":
			facts = append(facts, x.name)
		case x.want:
			all = append(all, start(Warning, "no %s in %s: %s", x.name, dir, r.Error).with(move))
		}
	}
	if r, ok := result(results, "reflink"); ok && r.Error == "" {
		facts = append(facts, "reflinks")
	} else {
		facts = append(facts, "no reflinks (copy-up copies the data)")
	}
	return facts, all
}

// checkStore looks at the directory of the store itself.
func checkStore(m *machine) Finding {
	root := m.options.Root
	if root == "" {
		return found(Problem, "this user has no home directory for a store").
			with(say("set HOME, or name a directory with --root or PLYFS_ROOT"))
	}
	st, err := m.Stat(root)
	if err != nil {
		return found(OK, "%s is not there yet; the first image makes it", root)
	}
	switch {
	case !st.Mode.IsDir():
		return found(Problem, "%s is no directory", root).with(say("give the store another place: --root or PLYFS_ROOT"))
	case st.UID != m.user.UID:
		return found(Problem, "%s belongs to uid %d", root, st.UID).with(asRoot("chown %d %s", m.user.UID, quote(root)))
	case st.Mode.Perm()&0o077 != 0:
		return found(Warning, "%s has mode %04o: others can reach set-user-id programs and files of containers in it", root,
			st.Mode.Perm()).
			with(asUser("chmod 0700 %s", quote(root)))
	}
	driver := m.text(filepath.Join(root, "driver"))
	if driver == "" {
		return found(OK, "%s, empty", root)
	}
	return found(OK, "%s, of the driver %s", root, driver)
}

// driverReport is what plyfs driver probe --json prints of a driver.
type driverReport struct {
	Driver  string `json:"driver"`
	Usable  bool   `json:"usable"`
	Why     string `json:"why"`
	Todo    string `json:"todo"`
	Warning string `json:"warning"`
	Passed  bool   `json:"passed"`
	Chosen  bool   `json:"chosen"`
}

// probeCommand is how plyfs is asked to try its drivers.
func probeCommand() []string { return []string{"driver", "probe", "--json"} }

// probeDrivers returns what plyfs driver probe prints. For root it runs in namespaces of its own, with which mounts and
// servers end should it get stuck; for a plain user it makes them itself.
func (m *machine) probeDrivers(ctx context.Context) (string, error) {
	var args []string
	if m.options.Root != "" {
		args = []string{"--root", m.options.Root}
	}
	if m.mayMount() {
		all, err := m.Try(ctx, Trial{Name: trialDrivers, In: NewMounts, Args: args})
		r, ok := result(all, "probe")
		switch {
		case ok && r.Error == "":
			return r.Value, nil
		case ok:
			return "", errors.New(r.Error)
		case ctx.Err() != nil:
			return "", err
		}
	}
	return m.Self(ctx, append(probeCommand(), args...)...)
}

// checkDrivers has plyfs try its drivers in a process of its own, which for a plain user is one in a user namespace.
func checkDrivers(ctx context.Context, m *machine) []Finding {
	out, err := m.probeDrivers(ctx)
	var reports []driverReport
	if jerr := json.Unmarshal([]byte(out), &reports); jerr != nil {
		if err == nil {
			err = jerr
		}
		return one(found(Problem, "the drivers could not be tried: %v", err).
			with(asUser("plyfs driver probe").because("after seeing to the other findings")))
	}
	var usable, not []string
	var all []Finding
	for _, r := range reports {
		switch {
		case r.Chosen:
			usable = append(usable, r.Driver+" (what a new store gets)")
		case r.Usable:
			usable = append(usable, r.Driver)
		default:
			not = append(not, r.Driver)
		}
		if r.Driver == "plyfs" && !r.Usable {
			all = append(all, found(Problem, "%s", r.Why).of(r.Driver).with(say("%s", r.Todo)))
		}
		if r.Driver == "plyfs" && r.Warning != "" {
			all = append(all, found(Warning, "%s", r.Warning).of(r.Driver))
		}
	}
	if len(usable) == 0 && len(all) == 0 {
		return append(all, found(Problem, "none is usable").with(asUser("plyfs driver probe").because("it says why")))
	}
	if len(usable) == 0 {
		return all
	}
	return append(all, found(OK, "usable: %s; not: %s (plyfs driver probe says why)", strings.Join(usable, ", "),
		strings.Join(not, ", ")))
}

// checkIndexDir looks at the directory of indexes: who can change them decides what mounts show.
func checkIndexDir(m *machine) Finding {
	dir := m.options.IndexDir
	if dir == "" {
		return found(Note, "there is no directory for indexes: mounts work without").
			with(say("set HOME, XDG_CACHE_HOME or PLYFS_INDEX_DIR"))
	}
	st, err := m.Stat(dir)
	switch {
	case err != nil:
		return found(OK, "%s is not there yet; the first mount that lasts makes it", dir)
	case !st.Mode.IsDir():
		return found(Warning, "%s is no directory: mounts have no index", dir).with(asUser("rm %s", quote(dir)))
	case st.UID != m.user.UID:
		return found(Warning, "%s belongs to uid %d: plyfs does not use it", dir, st.UID).
			with(asRoot("chown -R %d %s", m.user.UID, quote(dir)))
	case st.Mode.Perm()&0o077 != 0:
		return found(Warning, "%s has mode %04o: plyfs wants it to be this user's alone", dir, st.Mode.Perm()).
			with(asUser("chmod 0700 %s", quote(dir)))
	case remote(m.mountOf(dir).fstype):
		return found(Warning, "%s is on %s, and must be on a local file system", dir, m.mountOf(dir).fstype).
			with(say("set PLYFS_INDEX_DIR to a local directory, or mount with index=off"))
	}
	return found(OK, "%s is this user's alone", dir)
}

// quote makes one word of a path for a shell.
func quote(s string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("/._-+:@%", c)
	}
	if s != "" && strings.IndexFunc(s, func(c rune) bool { return !plain(c) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
