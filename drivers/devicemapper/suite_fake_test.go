//go:build !vm

package devicemapper

import (
	"context"
	"testing"

	"plyfs/drivers"
	"plyfs/drivers/drivertest"
)

// TestSimulated runs the suite on a simulated device mapper; make test-vm runs it on the kernel's.
func TestSimulated(t *testing.T) {
	f := newFake(t)
	drivertest.Run(t, drivertest.Suite{
		Factory: drivers.Factory{
			Name: name,
			Probe: func(ctx context.Context, o drivers.Options) drivers.Report {
				opts, err := parseOptions(o.Options)
				if err != nil {
					return drivers.Report{Why: err.Error()}
				}
				return probeWith(ctx, o, opts, f, f)
			},
			Open: func(ctx context.Context, o drivers.Options) (drivers.Driver, error) {
				opts, err := parseOptions(o.Options)
				if err != nil {
					return nil, err
				}
				return open(ctx, o, opts, f, f)
			},
		},
		Options:   map[string]string{optFS: fsExt4},
		Base:      drivertest.Scratch,
		SmallBase: drivertest.SmallScratch,
		Abilities: drivertest.Abilities{ReadOnlyImages: true, ReadOnlyGet: true, Independent: true},
		Differences: []drivertest.Difference{
			{Case: "ListDamaged", Reason: noFiles},
			{
				Case: "Killed",
				Reason: "the simulation lives in this process; TestEveryCallFails has kills, and make test-vm the " +
					"case",
			},
		},
	})
}
