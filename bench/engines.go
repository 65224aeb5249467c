package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The systems that engine workloads are measured on: what podman has its layers mounted by, and the snapshotters of containerd.
const (
	EngineKernel        = "engine-kernel"
	EngineFuseOverlayfs = "engine-fuse-overlayfs"
	EnginePlyfs         = "engine-plyfs"
	SnapshotterOverlay  = "snapshotter-overlayfs"
	SnapshotterPlyfs    = "snapshotter-plyfs"
)

// EngineWorkload is one thing that users do with a container engine. The engine of each system is set up once, with a root, a
// configuration and sockets of its own; then samples are taken of each in turn.
type EngineWorkload struct {
	// Name and Doc are as those of a Workload.
	Name, Doc string
	// Systems are those that are compared.
	Systems []string
	// User says that the engine is run by a user without privileges.
	User bool
	// MaxSamples bounds the number of samples of an expensive workload; 0 is no bound.
	MaxSamples int
	// Sample prepares, calls Env.Measure around what counts, and cleans up.
	Sample func(ctx context.Context, e *Env, engine containerEngine) error
}

func (w EngineWorkload) entry() (name, doc string) { return w.Name, w.Doc }

// containerEngine is a throwaway engine with the image of engineLayers layers.
type containerEngine interface {
	// run runs a container that ends at once, build builds an image, load brings an image in that was removed before.
	run(ctx context.Context) error
	build(ctx context.Context, e *Env) error
	load(ctx context.Context, e *Env) error
	close() error
}

// AllEngines returns every engine workload, in the order in which reports show them.
func AllEngines() []EngineWorkload {
	podman := []string{EngineKernel, EngineFuseOverlayfs, EnginePlyfs}
	snapshotters := []string{SnapshotterOverlay, SnapshotterPlyfs}
	return []EngineWorkload{
		{Name: podmanRunRoot, Doc: "podman run --rm on an image of 41 layers, as root", Systems: podman, Sample: sampleRun},
		{Name: podmanRunUser, Doc: "podman run --rm on an image of 41 layers, as a user", Systems: podman, User: true, Sample: sampleRun},
		{
			Name: podmanBuild, Doc: "podman build: unpack 2,000 files, remove a directory of the image; as a user",
			Systems: podman, User: true, MaxSamples: 5, Sample: sampleBuild,
		},
		{Name: ctrRun, Doc: "ctr run --rm on an image of 41 layers", Systems: snapshotters, Sample: sampleRun},
		{Name: ctrImport, Doc: "ctr image import of an image of 41 layers", Systems: snapshotters, MaxSamples: 5, Sample: sampleLoad},
	}
}

const (
	podmanRunRoot = "podman-run-root"
	podmanRunUser = "podman-run-user"
	podmanBuild   = "podman-build-user"
	ctrRun        = "ctr-run"
	ctrImport     = "ctr-import"
)

func sampleRun(ctx context.Context, e *Env, engine containerEngine) error {
	return e.Measure(func() error { return engine.run(ctx) })
}

func sampleBuild(ctx context.Context, e *Env, engine containerEngine) error {
	return engine.build(ctx, e)
}

func sampleLoad(ctx context.Context, e *Env, engine containerEngine) error {
	return engine.load(ctx, e)
}

// engineRows are the demands on plyfs in engines.
func engineRows() []Row {
	return []Row{
		{Series: podmanRunRoot, System: EnginePlyfs, By: OfSystem, Base: EngineKernel, Max: 1.15},
		{Series: podmanRunRoot, System: EnginePlyfs, By: OfSystem, Base: EngineFuseOverlayfs, Max: 1},
		{Series: podmanRunUser, System: EnginePlyfs, By: OfSystem, Base: EngineFuseOverlayfs, Max: 1},
		{Series: podmanBuild, System: EnginePlyfs, By: OfSystem, Base: EngineFuseOverlayfs, Max: 1},
		{Series: ctrRun, System: SnapshotterPlyfs, By: OfSystem, Base: SnapshotterOverlay, Max: 1.15},
		{Series: ctrImport, System: SnapshotterPlyfs, By: OfSystem, Base: SnapshotterOverlay, Max: 1.2},
	}
}

// engineHost is what the engines of a run share.
type engineHost struct {
	dir string
	// program is the plyfs binary; its directory also holds plyfs-mount and plyfsd.
	program string
	image   string // archive of the image
	engines int    // how many were started
}

// engineSystems are the systems of workloads, each with the versions of the programs that it is made of.
func engineSystems(ctx context.Context, program string, workloads []EngineWorkload) []System {
	version := func(program string) string {
		path, err := exec.LookPath(program)
		if err != nil {
			return program + " is not installed"
		}
		return programVersion(ctx, path)
	}
	versions := map[string]func() string{
		EngineKernel: func() string { return version("podman") + " on Linux " + kernelRelease() },
		EngineFuseOverlayfs: func() string {
			fuse, err := originalFuseOverlayfs(ctx)
			if err != nil {
				return version("podman") + ", " + err.Error()
			}
			return version("podman") + " with fuse-overlayfs " + programVersion(ctx, fuse)
		},
		EnginePlyfs:        func() string { return version("podman") + " with " + version(program) },
		SnapshotterOverlay: func() string { return version("containerd") + " on Linux " + kernelRelease() },
		SnapshotterPlyfs:   func() string { return version("containerd") + " with " + version(program) },
	}
	var systems []System
	for _, w := range workloads {
		for _, name := range w.Systems {
			if !slices.ContainsFunc(systems, func(s System) bool { return s.Name == name }) {
				systems = append(systems, System{Name: name, Version: versions[name]()})
			}
		}
	}
	return systems
}

// RunEngines measures engine workloads as c says, whose own workloads do not count; its systems are what the report says of those that
// are measured. It must be the first process of a process namespace, in a mount namespace of its own: what engines leave behind ends with
// it. It cleans up, and the report holds what was measured even with an error.
func RunEngines(ctx context.Context, c Config, program string, workloads []EngineWorkload) (report *Report, err error) {
	r := NewRunner(c)
	report = newReport(r.cfg, describeHost(numCPU()))
	if os.Getpid() != 1 {
		return report, errors.New("engines need a process namespace; run plyfs bench engines as root")
	}
	// A disk: who mounts containers in memory measures something else.
	dir, err := os.MkdirTemp("/var/tmp", "plyfs-bench-")
	if err != nil {
		return report, err
	}
	defer func() {
		_ = unix.Kill(-1, unix.SIGKILL) // all of this namespace but this process
		err = errors.Join(err, detachBelow(dir), os.RemoveAll(dir))
	}()
	host := &engineHost{dir: dir, program: program, image: filepath.Join(dir, "image.tar")}
	if err := errors.Join(os.Chmod(dir, 0o755), host.isolate(), writeEngineImage(host.image)); err != nil {
		return report, err
	}
	for _, w := range workloads {
		results, err := r.measureEngines(ctx, host, w)
		if err != nil {
			return report, err
		}
		r.record(report, results)
	}
	if slices.ContainsFunc(report.Results, Result.failed) {
		return report, errFailed
	}
	return report, nil
}

// measureEngines takes all samples of a workload; the systems alternate. Only the end of ctx is an error.
func (r *Runner) measureEngines(ctx context.Context, host *engineHost, w EngineWorkload) (res []Result, err error) {
	var systems []System
	for _, name := range w.Systems {
		systems = append(systems, System{Name: name})
	}
	disk := Medium{Name: fsName(host.dir), Dir: host.dir}
	rec := newRecorder(Workload{Name: w.Name, Doc: w.Doc}, Place{disk, disk}, systems)
	engines := make([]containerEngine, len(systems))
	defer func() {
		for _, e := range engines {
			if e != nil {
				err = errors.Join(err, e.close())
			}
		}
	}()
	for i, s := range systems {
		if engines[i], err = host.start(ctx, w, s.Name); err != nil {
			engines[i] = nil
			rec.add(i, message{}, &SkipError{Reason: err.Error()})
			r.cfg.Logger.Error("no engine", "workload", w.Name, "system", s.Name, "error", err)
		}
	}
	for i := range r.turns(len(systems), w.MaxSamples) {
		if rec.given(i) {
			continue
		}
		e := &Env{Scale: 1}
		err := sampleEngine(ctx, r.cfg, w, e, engines[i])
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		r.cfg.Logger.Debug("sample", "workload", w.Name, "system", systems[i].Name, "elapsed", e.elapsed, "err", err)
		rec.add(i, message{Elapsed: e.elapsed, Ops: 1}, err)
	}
	return rec.results(), nil
}

// sampleEngine takes one sample.
func sampleEngine(ctx context.Context, c Config, w EngineWorkload, e *Env, engine containerEngine) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return w.Sample(ctx, e, engine)
}

// start sets an engine up, and warms it: the first container of an engine finds files and caches missing.
func (h *engineHost) start(ctx context.Context, w EngineWorkload, system string) (containerEngine, error) {
	// A short name: podman puts sockets below it, and waits 20 seconds for one whose path is too long.
	h.engines++
	dir := filepath.Join(h.dir, strconv.Itoa(h.engines))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	var engine containerEngine
	var err error
	if strings.HasPrefix(system, "snapshotter-") {
		engine, err = h.newContainerd(ctx, dir, system)
	} else {
		engine, err = h.newPodman(ctx, dir, system, w.User)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", system, err)
	}
	if err := engine.run(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", system, err), engine.close())
	}
	return engine, nil
}
