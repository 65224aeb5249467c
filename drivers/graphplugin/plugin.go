package graphplugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"plyfs/drivers"
)

// Config says how a plugin works.
type Config struct {
	// State is the directory, absolute, for what dockerd said in Init. New makes it, with mode 0700. Each plugin has its own.
	State string
	// Drivers are those to choose from.
	Drivers *drivers.Registry
	// Driver names the one to use, unless dockerd names one (--storage-opt plyfs.driver=NAME). With "" it is the one that made the
	// layers, or in an empty home the first that is usable.
	Driver string
	// Options are the driver's, by name. Options that dockerd gives override them.
	Options map[string]string
	// Defaults are options by the driver's name. Options, and those that dockerd gives, override them.
	Defaults map[string]map[string]string
	// Log takes what is worth knowing; nil discards.
	Log *slog.Logger
}

// errNoInit says that dockerd has not told yet where the layers are.
var errNoInit = errors.New("dockerd has not called GraphDriver.Init yet: start it with --experimental --storage-driver=NAME, " +
	"where the plugin's socket is NAME.sock")

// Plugin serves one dockerd. It may be used by any number of goroutines.
type Plugin struct {
	config Config
	log    *slog.Logger
	lock   *os.File

	mu     sync.RWMutex
	closed bool         // guarded by mu
	init   *initRequest // what dockerd said, nil if nothing yet; guarded by mu
	store  *store       // nil until it is open; guarded by mu
}

// New returns a plugin that goes on where its predecessor ended. A store that can't be opened at once is opened by the next call
// that needs it. The error wraps drivers.ErrInUse if another plugin has the state, drivers.ErrDamaged if it can't be read.
// The caller closes the plugin.
func New(ctx context.Context, c Config) (p *Plugin, err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(c.State) {
		return nil, fmt.Errorf("directory of the state %q: not an absolute path: %w", c.State, drivers.ErrInvalid)
	}
	p = &Plugin{config: c, log: c.Log}
	if p.lock, err = lockDir(c.State); err != nil {
		return nil, err
	}
	var last initRequest
	err = readJSON(p.initPath(), &last)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p, nil
	case err != nil:
		return nil, errors.Join(fmt.Errorf("%w; remove the file and restart dockerd, which says it again", err), p.lock.Close())
	}
	p.init = &last
	if err := p.with(ctx, func(*store) error { return nil }); err != nil {
		p.log.Error("the layers cannot be used", "error", err)
	}
	return p, nil
}

func (p *Plugin) initPath() string { return filepath.Join(p.config.State, "init.json") }

// Close ends the plugin when all calls have ended. Mounts, and the containers in them, stay.
func (p *Plugin) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return errors.Join(p.closeStoreLocked(), p.lock.Close())
}

// closeStoreLocked closes the store, if it is open. Precondition: mu is held for writing.
func (p *Plugin) closeStoreLocked() error {
	if p.store == nil {
		return nil
	}
	s := p.store
	p.store = nil
	return s.close()
}

// with calls fn with the store, which stays open as long as it runs.
func (p *Plugin) with(ctx context.Context, fn func(*store) error) error {
	p.mu.RLock()
	if p.store == nil {
		p.mu.RUnlock()
		if err := p.reopen(ctx); err != nil {
			return err
		}
		p.mu.RLock()
	}
	defer p.mu.RUnlock()
	if p.store == nil {
		return errNoInit // an Init that failed came between
	}
	return fn(p.store)
}

// reopen opens the store of the last Init.
func (p *Plugin) reopen(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return fmt.Errorf("the plugin is ending: %w", context.Canceled)
	case p.store != nil:
		return nil
	case p.init == nil:
		return errNoInit
	}
	var err error
	// The store is for all calls, so the end of this one must not end the opening.
	p.store, err = openStore(context.WithoutCancel(ctx), p.config, *p.init)
	return err
}

// initialise serves Init: a dockerd starts.
func (p *Plugin) initialise(ctx context.Context, r initRequest) error {
	if _, err := r.parse(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("the plugin is ending: %w", context.Canceled)
	}
	if p.store != nil && !p.init.equal(r) {
		if used := len(p.store.references()); used > 0 && filepath.Clean(r.Home) != p.store.home {
			return fmt.Errorf("%d layers in %s are mounted, for another dockerd: give %s a plugin with a name of its own: %w",
				used, p.store.home, r.Home, drivers.ErrInUse)
		}
		if err := p.closeStoreLocked(); err != nil {
			p.log.Warn("close the store", "error", err)
		}
	}
	if p.store == nil {
		s, err := openStore(ctx, p.config, r)
		if err != nil {
			return err
		}
		if err := writeJSON(p.initPath(), r); err != nil {
			return errors.Join(err, s.close())
		}
		p.init, p.store = &r, s
	}
	p.log.Info("a dockerd starts", "home", p.store.home, "driver", p.store.driver.Name(), "userns-remap", p.store.mapped())
	return p.store.dropPredecessor(ctx)
}
