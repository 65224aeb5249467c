package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DataMode is a data mode of plyfs.
type DataMode string

// The data modes that can be measured.
const (
	Passthrough DataMode = "passthrough"
	NoOpen      DataMode = "noopen"
	AutoData    DataMode = "auto"
)

// Choice says which systems to measure.
type Choice struct {
	// Systems are names of systems; empty for all that are installed.
	Systems []string
	// Data are the data modes of plyfs, each measured as a system of its own.
	Data []DataMode
	// Program is the plyfs binary.
	Program string
	// Options are further -o options for plyfs.
	Options string
}

// Detect returns the chosen systems in the order in which they are measured. One that was asked for by name but is not
// there is an error.
func Detect(ctx context.Context, c Choice) ([]System, error) {
	names := c.Systems
	if len(names) == 0 {
		names = []string{KernelOverlay, FuseOverlayfs, Plyfs, PlyfsIndex}
	}
	var out []System
	for _, name := range names {
		found, err := detectOne(ctx, name, c)
		if err != nil {
			if len(c.Systems) == 0 && name == FuseOverlayfs && errors.Is(err, exec.ErrNotFound) {
				continue
			}
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func detectOne(ctx context.Context, name string, c Choice) ([]System, error) {
	switch name {
	case KernelOverlay:
		return []System{{Name: KernelOverlay, Version: "Linux " + kernelRelease()}}, nil
	case FuseOverlayfs:
		program, err := originalFuseOverlayfs(ctx)
		if err != nil {
			return nil, err
		}
		v := programVersion(ctx, program)
		return []System{{Name: FuseOverlayfs, Version: v, Program: []string{program}}}, nil
	case Plyfs:
		var out []System
		for _, mode := range c.Data {
			sys := c.plyfs(ctx, mode)
			sys.Options += ",index=off"
			out = append(out, sys)
		}
		return out, nil
	case PlyfsIndex:
		sys := c.plyfs(ctx, NoOpen)
		sys.Name, sys.Indexer = PlyfsIndex, []string{c.Program, "index", "build"}
		return []System{sys}, nil
	}
	return nil, fmt.Errorf("unknown system %q; known are %s, %s, %s and %s",
		name, KernelOverlay, FuseOverlayfs, Plyfs, PlyfsIndex)
}

// plyfs is plyfs in a data mode, with nothing said of an index.
func (c Choice) plyfs(ctx context.Context, mode DataMode) System {
	opts := "data=" + string(mode)
	if c.Options != "" {
		opts += "," + c.Options
	}
	return System{
		Name: Plyfs + "-" + string(mode), Version: programVersion(ctx, c.Program),
		Program: []string{c.Program, "mount"}, Options: opts,
	}
}

// originalFuseOverlayfs finds the first fuse-overlayfs on PATH that is not plyfs, which may have that name (plyfs install).
func originalFuseOverlayfs(ctx context.Context) (string, error) {
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		program, err := exec.LookPath(filepath.Join(dir, FuseOverlayfs))
		if err == nil && filepath.IsAbs(program) && !bytes.Contains(versionText(ctx, program), []byte(Plyfs+": version ")) {
			return program, nil
		}
	}
	return "", fmt.Errorf("no %s but plyfs under that name: %w", FuseOverlayfs, exec.ErrNotFound)
}

// versionText is all that --version prints; nothing if it fails.
func versionText(ctx context.Context, program string) []byte {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return nil
	}
	return out
}

// programVersion is what --version prints on the line that names the program.
func programVersion(ctx context.Context, program string) string {
	out := versionText(ctx, program)
	if out == nil {
		return "unknown"
	}
	first := ""
	for line := range bytes.Lines(out) {
		s := strings.TrimSpace(string(line))
		if first == "" {
			first = s
		}
		if rest, ok := strings.CutPrefix(s, FuseOverlayfs+": version "); ok {
			return rest
		}
	}
	return first
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// Medium is a file system on which layers or uppers are kept.
type Medium struct {
	// Name is the type of the file system: tmpfs, ext4 and so on.
	Name string
	// Dir is a private directory on it.
	Dir string
}

// Place is where the layers and the upper of a run are.
type Place struct{ Layers, Upper Medium }

// String names the place in reports.
func (p Place) String() string {
	if p.Layers.Name == p.Upper.Name {
		return p.Layers.Name
	}
	return p.Layers.Name + "+" + p.Upper.Name
}

const (
	tmpfsMedium = "tmpfs"
	ext4Medium  = "ext4"
	loopMedium  = "loop"
)

// checkMedium says before anything is measured whether openMedium will find what it needs, as far as that can be told.
func checkMedium(base, name string) error {
	switch got := fsName(base); name {
	case "", tmpfsMedium:
		return nil
	case ext4Medium:
		if got != ext4Medium {
			return fmt.Errorf("%s is on %s, not on ext4; name a directory on ext4 or set TMPDIR", base, got)
		}
		return nil
	case loopMedium:
		if got == tmpfsMedium {
			return fmt.Errorf("%s is on %s, which is no disk; set TMPDIR, or leave loop out of --layers-on", base, got)
		}
		return nil
	}
	if strings.ContainsAny(name, ",:\\") {
		return fmt.Errorf("%s: a directory whose name has no comma, colon or backslash is needed", name)
	}
	if info, err := os.Stat(name); err != nil {
		return err
	} else if !info.IsDir() {
		return fmt.Errorf("%s: %w", name, unix.ENOTDIR)
	}
	return nil
}

// openMedium makes a private directory on what a flag names: "tmpfs" is a new tmpfs mounted below base, "ext4" the
// file system of base, which has to be one, "loop" a new ext4 in a file below base, and anything else a directory.
func openMedium(base, name string) (Medium, error) {
	switch name {
	case tmpfsMedium:
		dir := base + "/tmpfs"
		if err := os.Mkdir(dir, 0o700); err != nil {
			return Medium{}, err
		}
		// No bound on inodes: a million files are one of the fixtures.
		if err := unix.Mount("plyfs-bench", dir, "tmpfs", 0, "mode=0700,nr_inodes=0,size=90%"); err != nil {
			return Medium{}, fmt.Errorf("mount tmpfs: %w", err)
		}
		return Medium{Name: tmpfsMedium, Dir: dir}, nil
	case ext4Medium:
		if err := checkMedium(base, name); err != nil {
			return Medium{}, err
		}
		dir := base + "/ext4"
		return Medium{Name: ext4Medium, Dir: dir}, os.Mkdir(dir, 0o700)
	case loopMedium:
		return openLoop(base)
	}
	if err := checkMedium(base, name); err != nil {
		return Medium{}, err
	}
	dir, err := os.MkdirTemp(name, "plyfs-bench-")
	if err != nil {
		return Medium{}, err
	}
	return Medium{Name: fsName(dir), Dir: dir}, nil
}

// close removes what openMedium made.
func (m Medium) close(base string) error {
	switch m.Dir {
	case base + "/tmpfs":
		if err := detach(m.Dir); err != nil {
			return err
		}
	case base + loopDir:
		if err := errors.Join(detach(m.Dir), os.Remove(base+loopFile)); err != nil {
			return err
		}
	}
	return os.RemoveAll(m.Dir)
}

// fsName returns the type of the file system that holds dir.
func fsName(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "unknown"
	}
	names := map[int64]string{
		unix.TMPFS_MAGIC: tmpfsMedium, unix.EXT4_SUPER_MAGIC: ext4Medium, unix.XFS_SUPER_MAGIC: "xfs",
		unix.BTRFS_SUPER_MAGIC: "btrfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.FUSE_SUPER_MAGIC: "fuse",
	}
	if name, ok := names[st.Type]; ok {
		return name
	}
	return fmt.Sprintf("fs-%x", st.Type)
}

// Host describes the machine of a run.
type Host struct {
	Kernel      string `json:"kernel"`
	CPUs        int    `json:"cpus"`
	CPUModel    string `json:"cpu_model"`
	MemoryBytes int64  `json:"memory_bytes"`
	LoadAverage string `json:"load_average"`
}

// describeHost reads what /proc says of this machine; what it can't read stays empty.
func describeHost(cpus int) Host {
	h := Host{Kernel: kernelRelease(), CPUs: cpus}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		f := strings.Fields(string(b))
		h.LoadAverage = strings.Join(f[:min(3, len(f))], " ")
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		lines := strings.Split(string(b), "\n")
		if i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "model name") }); i >= 0 {
			_, model, _ := strings.Cut(lines[i], ":")
			h.CPUModel = strings.TrimSpace(model)
		}
	}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err == nil {
		h.MemoryBytes = int64(si.Totalram) * int64(si.Unit)
	}
	return h
}
