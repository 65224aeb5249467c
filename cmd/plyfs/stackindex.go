package main

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"plyfs/fs/mountopt"
	"plyfs/fs/union"
	"plyfs/metadata/indexdb"
)

// buildAfter is how long a mount must have served before its index is built in the background: the many short mounts of an
// image build are over by then. Up to buildSpread is added, so that of many mounts of one stack, started at once, one builds and
// the others find it done.
const (
	buildAfter  = 4 * time.Second
	buildSpread = 4 * time.Second
)

// stackIndex is the index of a mount's lowers: open, or yet to be built.
type stackIndex struct {
	log   *slog.Logger
	cache *indexdb.Cache
	index *indexdb.Index // nil where there is none yet
	build *indexBuild     // nil where none is to be built

	mu    sync.Mutex
	timer *time.Timer
	ended bool // guarded by mu
}

// openIndex finds the index of o's lowers and gives it to o. It never fails: without an index the layers are read. What
// was asked for by name and cannot be had is a warning.
func openIndex(opts mountopt.Options, o *union.Options, log *slog.Logger) *stackIndex {
	if opts.Index == mountopt.IndexOff || opts.Index == mountopt.IndexDefault && opts.Timeout != nil || len(o.Lowers) == 0 {
		return nil
	}
	level := slog.LevelDebug
	if opts.Index != mountopt.IndexDefault {
		level = slog.LevelWarn
	}
	without := func(err error) *stackIndex {
		log.Log(context.Background(), level, "no stack index", "error", err)
		return nil
	}
	dir := opts.IndexDir
	if dir == "" {
		var err error
		if dir, err = indexdb.DefaultDir(); err != nil {
			return without(err)
		}
	}
	dir, err := filepath.Abs(dir) // the builder works in another directory
	if err != nil {
		return without(err)
	}
	x := &stackIndex{log: log}
	err = x.find(dir, opts, o)
	switch {
	case errors.Is(err, indexdb.ErrNotBuilt) || errors.Is(err, indexdb.ErrStale):
		x.build = newIndexBuild(dir, opts, o.Lowers)
	case err != nil:
		x.close()
		return without(err)
	}
	return x
}

// find opens the index of o's lowers in dir and gives it to o. A mount that may be over soon makes no directory: that is left to
// the builder.
func (x *stackIndex) find(dir string, opts mountopt.Options, o *union.Options) (err error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return indexdb.ErrNotBuilt
	}
	if x.cache, err = indexdb.OpenCache(dir, x.log); err != nil {
		return err
	}
	stack, err := union.StackOf(o)
	if err != nil {
		return err
	}
	if x.index, err = x.cache.Open(stack); err != nil {
		return err
	}
	o.StackIndex, o.VerifyIndex = x.index, opts.Index == mountopt.IndexVerify
	return nil
}

// buildLater starts the build of a missing index once the mount has served for a while.
func (x *stackIndex) buildLater() {
	if x == nil || x.build == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.ended {
		x.timer = time.AfterFunc(buildAfter+rand.N(buildSpread), func() { x.build.run(x.log) })
	}
}

// endBuild ends a build that is under way, and sees to it that none begins. It comes before the union's layers are closed.
func (x *stackIndex) endBuild() {
	if x == nil {
		return
	}
	x.mu.Lock()
	x.ended = true
	if x.timer != nil {
		x.timer.Stop()
	}
	x.mu.Unlock()
	x.build.end()
}

// close closes the index. The union must not use it any more.
func (x *stackIndex) close() {
	if x == nil {
		return
	}
	x.endBuild()
	if x.index != nil {
		if err := x.index.Close(); err != nil {
			x.log.Warn("stack index", "error", err)
		}
	}
	if x.cache != nil {
		_ = x.cache.Close()
	}
}
