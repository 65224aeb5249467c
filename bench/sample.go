package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// sample takes one sample: fresh upper, work directory and mount, one measuring process, and everything removed again.
func (r *Runner) sample(ctx context.Context, w Workload, sys System, fx builtFixture, place Place) (m message, err error) {
	if fx.err != nil {
		return m, fx.err
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	dir, err := os.MkdirTemp(place.Upper.Dir, "sample-")
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, discardSample(dir, place.Upper)) }()
	l := Layout{
		Lowers: fx.layers, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Target: r.target(),
	}
	if err := errors.Join(os.Mkdir(l.Upper, 0o755), os.Mkdir(l.Work, 0o755)); err != nil {
		return m, err
	}
	if err := prepareCaches(w.Caches, r.cfg.Caches, fx, place); err != nil {
		return m, err
	}
	index := ""
	if len(sys.Indexer) > 0 {
		if index, err = fx.index.dir, fx.index.err; err != nil {
			return m, err
		}
		sys.Options += ",index=" + index
	}
	spec := childSpec{
		Workload: w.Name, Worker: -1, Scale: r.cfg.Scale, Tree: fx.tree, Aux: fx.aux, System: sys, Layout: l,
		Caches: r.cfg.Caches, Index: index,
	}
	if place.Upper.Name != tmpfsMedium {
		spec.Settle = dir
	}
	if w.Mounting == Unmounted {
		m, err = runInChild(ctx, spec)
		return m, errors.Join(err, detach(l.Target), detachBelow(dir))
	}
	return r.sampleMounted(ctx, spec, w)
}

// sampleMounted mounts, measures and unmounts.
func (r *Runner) sampleMounted(ctx context.Context, spec childSpec, w Workload) (m message, err error) {
	profile := ""
	var wrap []string
	if r.cfg.ProfileDir != "" && strings.HasPrefix(spec.System.Name, Plyfs+"-") {
		profile = filepath.Join(r.cfg.ProfileDir, w.Name+"."+spec.System.Name+".pprof")
		wrap, spec.System.Program = profileCommand(spec.System.Program, profile)
	}
	v, err := spec.System.start(ctx, spec.Layout, wrap)
	if err != nil {
		return m, err
	}
	defer func() {
		if profile != "" {
			err = errors.Join(err, v.endProfile(profile))
		}
		err = errors.Join(err, v.stop())
		if err != nil && v.stderr != nil && v.stderr.Len() > 0 {
			err = fmt.Errorf("%w; the server said: %s", err, lastLines(v.stderr.String(), 5))
		}
	}()
	// A process that waits for a server that never answers can't be killed before the server is.
	defer context.AfterFunc(ctx, v.kill)()
	spec.ServerPID = v.pid()
	m, err = runInChild(ctx, spec)
	if err == nil && spec.Index != "" {
		err = expectIndexUsed(v.pid(), spec.Index)
	}
	return m, err
}

// lastLines returns the end of a text.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// discardSample removes what a sample wrote and, where that is work for the disk, waits for it, so that the next
// sample does not pay.
func discardSample(dir string, on Medium) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if on.Name == tmpfsMedium {
		return nil
	}
	return syncFS(on.Dir)
}

// prepareCaches brings the kernel's caches into the state that the workload wants.
func prepareCaches(c CacheState, policy CachePolicy, fx builtFixture, place Place) error {
	if c == BackingDropped && policy == MayDropCaches {
		if err := errors.Join(syncFS(place.Layers.Dir), syncFS(place.Upper.Dir)); err != nil {
			return err
		}
		return policy.drop()
	}
	if place.Layers.Name == tmpfsMedium {
		return nil
	}
	buf := make([]byte, 1<<20)
	return filepath.WalkDir(fx.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// A stat of directories too, and as a process that follows the path: what a lookup of the layer does.
		info, err := os.Lstat(p)
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyBuffer(io.Discard, struct{ io.Reader }{f}, buf)
		return err
	})
}
