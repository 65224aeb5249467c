package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"time"

	"plyfs/fs/mountopt"
	"plyfs/fs/union"
)

// buildAfter is how long a mount must have served before its index is built in the background: the many short mounts of an
// image build are over by then. Up to buildSpread is added, so that of many mounts of one stack, started at once, one builds and
// the others find it done.
const (
	buildAfter  = 4 * time.Second
	buildSpread = 4 * time.Second
)

// Indexes is how a program gets at stack indexes. They are kept in a database, which the program that only mounts is better
// off without.
type Indexes interface {
	// Open opens the index of u's lowers in the cache directory dir and gives it to u, until release, which waits for the disk:
	// badger syncs a database when it is closed, though it was only read. So a process that ends leaves that to its end: whoever
	// unmounted waits for it. An error that wraps ErrNoIndex says that there is none that can be used, and that one may be built. It
	// makes no directory: a mount may be over soon. A HandOver says that another program can open it.
	Open(dir string, o mountopt.Options, u *union.Options, log *slog.Logger) (release func() error, err error)
	// Builder is the program that has the command index build.
	Builder() (string, error)
}

// ErrNoIndex says that a stack has no index yet, or none that is still right.
var ErrNoIndex = errors.New("no index of these layers")

// HandOver says that the program of that path can open an index that this one cannot.
type HandOver string

// Error implements error.
func (h HandOver) Error() string {
	return fmt.Sprintf("%s has to serve mounts with an index", string(h))
}

// stackIndex is the index of a mount's lowers: open, or yet to be built.
type stackIndex struct {
	log   *slog.Logger
	build *indexBuild // nil where none is to be built
	// release gives an open index back; nil for none.
	release func() error

	mu    sync.Mutex
	timer *time.Timer
	ended bool // guarded by mu
}

// openIndex finds the index of o's lowers and gives it to o. Without one the layers are read, so that it never fails, but by a
// HandOver. What was asked for by name and cannot be had is a warning.
func openIndex(from Indexes, opts mountopt.Options, o *union.Options, log *slog.Logger) (*stackIndex, error) {
	if opts.Index == mountopt.IndexOff || opts.Index == mountopt.IndexDefault && opts.Timeout != nil || len(o.Lowers) == 0 {
		return nil, nil
	}
	x, err := findIndex(from, opts, o, log)
	var other HandOver
	if errors.As(err, &other) {
		return nil, other
	}
	if err != nil {
		level := slog.LevelDebug
		if opts.Index != mountopt.IndexDefault {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "no stack index", "error", err)
	}
	return x, nil
}

func findIndex(from Indexes, opts mountopt.Options, o *union.Options, log *slog.Logger) (*stackIndex, error) {
	dir := opts.IndexDir
	if dir == "" {
		var err error
		if dir, err = IndexDir(); err != nil {
			return nil, err
		}
	}
	dir, err := filepath.Abs(dir) // the builder works in another directory
	if err != nil {
		return nil, err
	}
	x := &stackIndex{log: log}
	switch x.release, err = from.Open(dir, opts, o, log); {
	case errors.Is(err, ErrNoIndex):
		x.build = newIndexBuild(from, dir, opts, o.Lowers)
	case err != nil:
		return nil, err
	}
	return x, nil
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
