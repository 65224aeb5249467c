package graphplugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// The names in the home that dockerd gives; see the package doc.
const (
	driverFile = "driver"
	layersDir  = "layers"
	draftsDir  = "drafts"
	runDir     = "run"
)

// store is what one Init opened: a driver, and what is kept beside it.
type store struct {
	settings
	driver drivers.Driver
	differ drivers.Differ
	log    *slog.Logger
	lock   *os.File
	// locks are for operations on one layer that are more than one call of the driver.
	locks drivers.Locks
}

// openStore opens the store of an Init, or begins it, and cleans up after whoever used it last.
func openStore(ctx context.Context, c Config, r initRequest) (*store, error) {
	set, err := r.parse()
	if err != nil {
		return nil, err
	}
	s := &store{settings: set, log: c.Log}
	if s.lock, err = lockDir(s.home); err != nil {
		return nil, err
	}
	if err := s.open(ctx, c); err != nil {
		return nil, fmt.Errorf("open the store %s: %w", s.home, errors.Join(err, s.close()))
	}
	return s, nil
}

// open opens the driver.
func (s *store) open(ctx context.Context, c Config) error {
	run, err := s.prepare()
	if err != nil {
		return err
	}
	options := func(name string) drivers.Options {
		all := maps.Clone(c.Defaults[name])
		if all == nil {
			all = make(map[string]string)
		}
		maps.Copy(all, c.Options)
		maps.Copy(all, s.options)
		return drivers.Options{Home: s.path(layersDir), Run: run, Options: all, Log: s.log}
	}
	f, err := s.choose(ctx, c, options)
	if err != nil {
		return err
	}
	d, err := f.Open(ctx, options(f.Name))
	if err != nil {
		return err
	}
	s.driver, s.differ = d, drivers.DifferOf(d)
	if err := writeFile(s.path(driverFile), []byte(f.Name+"\n")); err != nil {
		return err
	}
	return errors.Join(d.Cleanup(ctx), s.recoverDrafts(ctx))
}

func (s *store) path(elem ...string) string {
	return filepath.Join(append([]string{s.home}, elem...)...)
}

// prepare makes the directories of the store and returns that of this boot. Those of other boots are removed: the PIDs in them may be
// those of other processes now.
func (s *store) prepare() (run string, err error) {
	boot, err := sys.BootID()
	if err != nil {
		return "", err
	}
	run = s.path(runDir, boot)
	for _, dir := range []string{s.path(draftsDir), run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", err
		}
	}
	entries, err := os.ReadDir(s.path(runDir))
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if e.Name() == filepath.Base(run) {
			continue
		}
		if err := os.RemoveAll(s.path(runDir, e.Name())); err != nil {
			return "", err
		}
	}
	return run, nil
}

// choose finds the driver: the one that Init names, else the one of the command line, else that of the layers that are there,
// else the first one that is usable here.
func (s *store) choose(ctx context.Context, c Config, options func(string) drivers.Options) (f drivers.Factory, err error) {
	b, err := os.ReadFile(s.path(driverFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	kept := strings.TrimSpace(string(b))
	name := s.settings.driver
	if name == "" {
		name = c.Driver
	}
	if name != "" && kept != "" && name != kept {
		return f, fmt.Errorf("driver %s: %w: %s made it; ask for that one, or remove %s, which ends all images and containers in it",
			name, drivers.ErrOtherDriver, kept, s.home)
	}
	if name == "" {
		name = kept
	}
	if name != "" {
		return c.Drivers.Lookup(name)
	}
	return c.Drivers.Choose(c.Drivers.Probe(ctx, options))
}

// close ends the use of the store. Layers and mounts stay.
func (s *store) close() error {
	var err error
	if s.driver != nil {
		err = s.driver.Close()
	}
	return errors.Join(err, s.lock.Close())
}

// references counts the Gets without a Put, by layer.
func (s *store) references() map[string]int {
	if r, ok := s.driver.(drivers.Referrer); ok {
		return r.References()
	}
	return nil
}

// writable says of each layer whether a container may be running in it. Drafts do not count: the build that wrote into them has ended
// with its dockerd.
func (s *store) writable(ctx context.Context) (map[string]bool, error) {
	all := make(map[string]bool)
	err := s.driver.List(ctx, func(i drivers.Info) error {
		all[i.ID] = i.Writable && !s.isDraft(i.ID)
		return nil
	})
	return all, err
}

// dropPredecessor drops the references of the dockerd before the one that starts: all, but for one to each writable layer, whose
// container may still run. What can't be unmounted stays, and is tried again when the layer is removed.
func (s *store) dropPredecessor(ctx context.Context) error {
	writable, err := s.writable(ctx)
	if err != nil {
		return err
	}
	for id := range s.references() {
		keep := 0
		if writable[id] {
			keep = 1
		}
		s.drop(ctx, id, keep)
	}
	return s.driver.Cleanup(ctx)
}

// dropAll serves Cleanup: it drops all references of a dockerd that ends, and whose containers have ended.
func (s *store) dropAll(ctx context.Context) error {
	for id := range s.references() {
		s.drop(ctx, id, 0)
	}
	return s.driver.Cleanup(ctx)
}

// drop gives references to a layer back until keep are left.
func (s *store) drop(ctx context.Context, id string, keep int) {
	defer s.locks.Lock(id)()
	s.dropLocked(ctx, id, keep)
}

// dropLocked is drop. Precondition: the layer's lock is held.
func (s *store) dropLocked(ctx context.Context, id string, keep int) {
	for n := s.references()[id]; n > keep; n-- {
		if err := s.driver.Put(ctx, id); err != nil {
			s.log.Warn("a layer to which dockerd does not refer any more stays mounted", "layer", id, "error", err)
			return
		}
		s.log.Debug("gave a reference back that dockerd did not", "layer", id)
	}
}
