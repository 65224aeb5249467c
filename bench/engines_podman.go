package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The user who runs engines without privileges, and its subordinate ids. They exist in this mount namespace only.
const (
	engineUser   = "plyfsbench"
	engineUserID = 61235
	engineSubIDs = 500000
)

// isolate gives engines a process list, a /run, a /dev/shm, a user and a FUSE device of their own.
func (h *engineHost) isolate() error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range []string{"/run", "/dev/shm"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=1777"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
		}
	}
	// crun does not get along with a hybrid hierarchy.
	if err := unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount the unified part of a hybrid cgroup hierarchy: %w", err)
	}
	ids := fmt.Sprintf("%s:%d:65536\n", engineUser, engineSubIDs)
	for file, line := range map[string]string{
		"/etc/passwd": fmt.Sprintf("%s:x:%d:%d::/nonexistent:/bin/sh\n", engineUser, engineUserID, engineUserID),
		"/etc/group":  fmt.Sprintf("%s:x:%d:\n", engineUser, engineUserID),
		"/etc/subuid": ids, "/etc/subgid": ids,
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("the user database (package uidmap): %w", err)
		}
		changed := filepath.Join(h.dir, filepath.Base(file))
		if err := os.WriteFile(changed, append(text, line...), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(changed, file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind over %s: %w", file, err)
		}
	}
	return h.ownFUSE()
}

// ownFUSE gives everybody in this namespace the use of a FUSE device.
func (h *engineHost) ownFUSE() error {
	const device = "/dev/fuse"
	own := filepath.Join("/run", "fuse")
	// Documentation/admin-guide/devices.txt: 10 is misc, 229 fuse.
	if err := unix.Mknod(own, unix.S_IFCHR, int(unix.Mkdev(10, 229))); err != nil {
		return fmt.Errorf("make %s: %w", own, err)
	}
	if err := os.Chmod(own, 0o666); err != nil {
		return err
	}
	if err := unix.Mount(own, device, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind over %s: %w", device, err)
	}
	return nil
}

// commandIn runs a program and returns what it printed; an error has all of it.
func commandIn(ctx context.Context, dir string, env []string, uid int, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()+stdout.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// podman is podman with storage and configuration of its own.
type podman struct {
	dir   string
	uid   int
	env   []string
	image string
}

// newPodman sets podman up, with the image.
func (h *engineHost) newPodman(ctx context.Context, dir, system string, user bool) (containerEngine, error) {
	p := &podman{dir: dir}
	if user {
		p.uid = engineUserID
	}
	for _, d := range []string{"home/.config/containers", "tmp", "run", "graph", "networks", "bin", "build"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	// As on any machine: what lasts until the next boot is not on the disk.
	run := filepath.Join(dir, "run")
	if err := unix.Mount("tmpfs", run, "tmpfs", 0, "mode=755"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs on %s: %w", run, err)
	}
	if err := os.Mkdir(filepath.Join(run, "user"), 0o700); err != nil {
		return nil, err
	}
	program, err := h.mountProgram(ctx, dir, system)
	if err != nil {
		return nil, err
	}
	if err := p.configure(program); err != nil {
		return nil, err
	}
	if err := writeBuild(filepath.Join(dir, "build")); err != nil {
		return nil, err
	}
	if err := filepath.WalkDir(dir, func(name string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(name, p.uid, p.uid))
	}); err != nil {
		return nil, err
	}
	if _, err := p.podman(ctx, "load", "-q", "-i", h.image); err != nil {
		return nil, err
	}
	p.image = engineImageName
	return p, nil
}

// mountProgram returns the path of the mount program of a system, "" for none.
func (h *engineHost) mountProgram(ctx context.Context, dir, system string) (string, error) {
	bin := filepath.Join(dir, "bin")
	target := filepath.Join(filepath.Dir(h.program), mountProgramName)
	switch system {
	case EngineKernel:
		return "", nil
	case EngineFuseOverlayfs:
		var err error
		if target, err = originalFuseOverlayfs(ctx); err != nil {
			return "", err
		}
	}
	// Copies: a user may not be allowed where the programs lie.
	program := filepath.Join(bin, FuseOverlayfs)
	err := copyProgram(program, target)
	if err == nil && system == EnginePlyfs {
		err = copyProgram(filepath.Join(bin, Plyfs), h.program)
	}
	return program, err
}

// mountProgramName is the program of plyfs that only mounts.
const mountProgramName = Plyfs + "-mount"

func copyProgram(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// configure writes podman's configuration, which asks for no more limits, cgroups and networks than any machine has.
func (p *podman) configure(program string) error {
	at := func(name string) string { return filepath.Join(p.dir, name) }
	conf := at("home/.config/containers")
	storage := fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n", at("graph"), at("run"))
	if program != "" {
		storage += fmt.Sprintf("[storage.options.overlay]\nmount_program = %q\n", program)
	}
	for name, text := range map[string]string{
		"storage.conf": storage,
		"containers.conf": fmt.Sprintf("[containers]\ndefault_ulimits = [\"nofile=1024:4096\", \"nproc=4096:4096\"]\n"+
			"netns = \"none\"\ncgroups = \"disabled\"\nlog_driver = \"k8s-file\"\n[network]\nnetwork_config_dir = %q\n"+
			"[engine]\nruntime = \"crun\"\nevents_logger = \"file\"\ncgroup_manager = \"cgroupfs\"\nlock_type = \"file\"\n"+
			"tmp_dir = %q\nstatic_dir = %q\nvolume_path = %q\n", at("networks"), at("run/libpod"), at("graph/libpod"), at("graph/volumes")),
		"registries.conf": "unqualified-search-registries = []\n",
		"policy.json":     `{"default":[{"type":"insecureAcceptAnything"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(conf, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	p.env = []string{
		"HOME=" + at("home"), "PATH=" + os.Getenv("PATH"), "TMPDIR=" + at("tmp"), "LANG=C.UTF-8", "XDG_RUNTIME_DIR=" + at("run/user"),
		"BUILDAH_ISOLATION=chroot",
	}
	if p.uid == 0 {
		for variable, file := range map[string]string{
			"CONTAINERS_STORAGE_CONF": "storage.conf", "CONTAINERS_CONF": "containers.conf", "CONTAINERS_REGISTRIES_CONF": "registries.conf",
		} {
			p.env = append(p.env, variable+"="+filepath.Join(conf, file))
		}
	}
	return nil
}

func (p *podman) podman(ctx context.Context, args ...string) (string, error) {
	return commandIn(ctx, p.dir, p.env, p.uid, append([]string{"podman"}, args...)...)
}

func (p *podman) run(ctx context.Context) error {
	_, err := p.podman(ctx, "run", "--rm", p.image, "true")
	return err
}

func (p *podman) build(ctx context.Context, e *Env) error {
	const built = "localhost/built"
	err := e.Measure(func() error {
		_, err := p.podman(ctx, "build", "-q", "--no-cache", "--network=host", "-t", built, filepath.Join(p.dir, "build"))
		return err
	})
	if err != nil {
		return err
	}
	out, err := p.podman(ctx, "run", "--rm", built, "sh", "-c", "test ! -e /opt/old && ls /opt/new | wc -l")
	if err != nil {
		return err
	}
	if _, err := p.podman(ctx, "rmi", "-f", built); err != nil {
		return err
	}
	return expect("directories of the built image", out, fmt.Sprint(buildFiles/perDir))
}

func (p *podman) load(context.Context, *Env) error { return errors.New("podman load is not measured") }

// close lets the storage go: c/storage keeps it mounted.
func (p *podman) close() error { return detachBelow(p.dir) }
