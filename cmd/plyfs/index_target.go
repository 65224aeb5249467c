package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/urfave/cli/v2"

	"plyfs/fs/mountopt"
	"plyfs/fs/server"
	"plyfs/fs/union"
	"plyfs/internal/exit"
	"plyfs/metadata"
	"plyfs/metadata/indexdb"
)

// errOtherLayers says that the layers of an index are gone or have been replaced.
var errOtherLayers = errors.New("its layers are not there any more")

// indexTarget is the index that a command line means.
type indexTarget struct {
	cache *indexdb.Cache
	index *indexdb.Index
	// stack is the index's layers, nil if they were not asked for.
	stack *server.Stack
}

func (t *indexTarget) close() {
	if t.stack != nil {
		t.stack.Close()
	}
	if t.index != nil {
		_ = t.index.Close() // of a database that is only read
	}
	if t.cache != nil {
		_ = t.cache.Close()
	}
}

// extent says how much of a target is opened.
type extent int

const (
	// indexAlone is the index without what it describes.
	indexAlone extent = iota
	// withLayers is the index, and the layers that it was built from.
	withLayers
)

// openTarget opens the index that NAME or options mean, a stale one too.
func openTarget(c *cli.Context, options []string, line string, what extent) (t *indexTarget, err error) {
	var name string
	switch {
	case c.NArg() == 1 && len(options) == 0:
		name = c.Args().First()
	case c.NArg() == 0 && len(options) > 0:
	default:
		return nil, faultf(indexUsage, "give the name of an index, or the options of its mount; usage: %s", line)
	}
	o, err := parseIndexOptions(options, nil, line)
	if err != nil {
		return nil, err
	}
	t = &indexTarget{}
	defer func() {
		if err != nil {
			t.close()
			t, err = nil, indexFault(err)
		}
	}()
	log := warnLog()
	if t.cache, err = existingIndexCache(c, o, log); err != nil {
		return t, err
	}
	if t.cache == nil {
		return t, fmt.Errorf("%w; build one with plyfs index build", indexdb.ErrNotBuilt)
	}
	server.RaiseFileLimit()
	if name == "" {
		return t, t.openOf(o, what, log)
	}
	if t.index, err = t.cache.OpenName(name); err != nil {
		return t, noIndex(err)
	}
	if what == withLayers {
		t.stack, err = layersOfIndex(t.index.Info())
	}
	return t, err
}

// openOf opens the index of the lowers of o.
func (t *indexTarget) openOf(o mountopt.Options, what extent, log *slog.Logger) error {
	s, err := openIndexStack(o)
	if err != nil {
		return err
	}
	if what == withLayers {
		t.stack = s
	} else {
		defer s.Close()
	}
	uo := lowersOnly(o, s, log)
	id, err := union.StackOf(&uo)
	if err != nil {
		return err
	}
	t.index, err = t.cache.Open(id)
	if errors.Is(err, indexdb.ErrStale) {
		t.index, err = t.cache.OpenName(id.Name())
	}
	return noIndex(err)
}

func noIndex(err error) error {
	if errors.Is(err, indexdb.ErrNotBuilt) {
		return fmt.Errorf("%w; plyfs index ls lists those that are there, plyfs index build makes one", err)
	}
	return err
}

// layersOfIndex opens the layers of an index by their paths. The error wraps errOtherLayers if those are other
// directories now.
func layersOfIndex(i metadata.Info) (*server.Stack, error) {
	for _, path := range i.Layers {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("index %s: %w: %s: %s (give them with -o lowerdir=)", i.Name, errOtherLayers, path,
				exit.Reason(err))
		}
	}
	s, err := server.OpenStack(mountopt.Options{LowerDirs: i.Layers})
	if err != nil {
		return nil, failedFault(err)
	}
	for _, redirect := range []mountopt.RedirectDir{mountopt.RedirectDefault, mountopt.RedirectNoFollow} {
		uo := lowersOnly(mountopt.Options{RedirectDir: redirect}, s, nil)
		id, err := union.StackOf(&uo)
		if err != nil {
			s.Close()
			return nil, err
		}
		if id.Name() == i.Name {
			return s, nil
		}
	}
	s.Close()
	return nil, fmt.Errorf("index %s: %w: %s and those below are other directories now (give the layers with -o lowerdir=)",
		i.Name, errOtherLayers, i.Layers[0])
}
