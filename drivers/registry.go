package drivers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// Options say how a driver is opened.
type Options struct {
	// Home is the driver's directory in the store, absolute. Open makes it, with mode 0700.
	Home string
	// Run is a directory for what does not outlive a boot, absolute. Open makes it, with mode 0700.
	Run string
	// Options are the driver's own, by name (--driver-opt). Unknown ones are refused with ErrInvalid.
	Options map[string]string
	// Log takes what is worth knowing; nil discards.
	Log *slog.Logger
	// Ledger keeps the records of layers for a driver whose layers are no files, such as one of volumes; nil stands for a FileLedger in
	// Home. Other drivers ignore it. It must be the same one each time that the store is opened.
	Ledger Ledger
}

// Report says whether a driver is usable for a store on this machine by this user.
type Report struct {
	Driver string `json:"driver"`
	Usable bool   `json:"usable"`
	// Why is the reason, in one sentence: what was tried and found.
	Why string `json:"why"`
	// Todo is what to do to use the driver, or to use it better; empty for nothing.
	Todo string `json:"todo,omitempty"`
	// Warning is what is dear or weak about it here, though it is usable.
	Warning string `json:"warning,omitempty"`
	// Passed says that Choose passes over the driver although it is usable; Why says so.
	Passed bool `json:"passed,omitempty"`
}

// Factory makes drivers of one kind.
type Factory struct {
	Name string
	// Summary is one line for listings.
	Summary string
	// Probe finds out whether Open would succeed with these options, by trying what the driver needs in a scratch
	// directory beneath o.Home (or the nearest directory above that exists), and leaves nothing behind.
	Probe func(ctx context.Context, o Options) Report
	// Open opens or begins a store in o.Home. Nil for a driver that is known by name only: Probe says what to do instead.
	Open func(ctx context.Context, o Options) (Driver, error)
}

// Registry is the list of known drivers in the order of preference. It is immutable.
type Registry struct {
	factories []Factory
}

// NewRegistry returns a registry of the given drivers, the preferred first.
func NewRegistry(f ...Factory) *Registry { return &Registry{factories: slices.Clone(f)} }

// Names lists the drivers that can be opened, in order of preference.
func (r *Registry) Names() []string {
	var names []string
	for _, f := range r.factories {
		if f.Open != nil {
			names = append(names, f.Name)
		}
	}
	return names
}

// Factories lists all drivers, those known by name only included. The caller owns the slice.
func (r *Registry) Factories() []Factory { return slices.Clone(r.factories) }

// Lookup returns the factory of the named driver. For one that cannot be opened at all, the error wraps ErrNotSupported
// and says what to use instead; for an unknown one it wraps ErrNotFound and lists the known.
func (r *Registry) Lookup(name string) (Factory, error) {
	i := slices.IndexFunc(r.factories, func(f Factory) bool { return f.Name == name })
	if i < 0 {
		return Factory{}, fmt.Errorf("driver %q: %w; there are %s", name, ErrNotFound, strings.Join(r.Names(), ", "))
	}
	f := r.factories[i]
	if f.Open == nil {
		rep := f.Probe(context.Background(), Options{})
		return Factory{}, fmt.Errorf("driver %s: %s: %w; %s", name, rep.Why, ErrNotSupported, rep.Todo)
	}
	return f, nil
}

// Probe asks every driver, in order of preference. options returns the options with which the named driver would be opened.
func (r *Registry) Probe(ctx context.Context, options func(name string) Options) []Report {
	reports := make([]Report, 0, len(r.factories))
	for _, f := range r.factories {
		rep := f.Probe(ctx, options(f.Name))
		rep.Driver = f.Name
		reports = append(reports, rep)
	}
	return reports
}

// Choose returns the first driver of the reports that is usable and not passed over. The error names each with its
// reason.
func (r *Registry) Choose(reports []Report) (Factory, error) {
	var why []error
	for _, rep := range reports {
		if rep.Usable && !rep.Passed {
			return r.Lookup(rep.Driver)
		}
		why = append(why, fmt.Errorf("%s: %s", rep.Driver, rep.Why))
	}
	return Factory{}, fmt.Errorf("no driver is usable: %w\n%w", ErrPrerequisites, errors.Join(why...))
}
