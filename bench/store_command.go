package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// storeCommand is plyfs bench store.
func storeCommand() *cli.Command {
	return &cli.Command{
		Name:  "store",
		Usage: "measure the layer store and its drivers, beside tar and a naive differ",
		Description: "Every sample has an empty store. Needs root. Mounts are made in a private namespace. Exit status 1 says that a\n" +
			"sample failed or a demand is not met.",
		Flags:        keepFlags("list", "workloads", "plyfs", "samples", "layers-on", "quick", "check", "json", "plot", "timeout", "verbose"),
		OnUsageError: usageError,
		Action:       runStore,
	}
}

// keepFlags returns the flags of the benchmark that have one of the names.
func keepFlags(names ...string) []cli.Flag {
	var out []cli.Flag
	for _, f := range flags() {
		if slices.Contains(names, f.Names()[0]) {
			if check, ok := f.(*cli.BoolFlag); ok && check.Name == "check" {
				check.Usage = "judge each demand on the speed of plyfs"
			}
			out = append(out, f)
		}
	}
	return out
}

// runStore is the action of the command.
func runStore(c *cli.Context) error {
	if c.NArg() > 0 {
		return cli.Exit(fmt.Sprintf("bench store: unexpected argument %q", c.Args().First()), 1)
	}
	if c.Bool("list") {
		return list(c.App.Writer, AllStore())
	}
	if os.Getenv(namespaceVariable) == "" && os.Geteuid() == 0 {
		return runInNamespace(0)
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := storeReport(ctx, c); err != nil {
		return cli.Exit("bench store: "+err.Error(), 1)
	}
	return nil
}

func storeReport(ctx context.Context, c *cli.Context) error {
	workloads, err := Select(AllStore(), words(c.String("workloads")))
	if err != nil {
		return err
	}
	cfg, err := common(c)
	if err != nil {
		return err
	}
	cfg.LayersOn = words(c.String("layers-on"))
	if c.Bool("quick") {
		cfg.Scale = quickScale
	}
	if len(cfg.LayersOn) == 0 {
		cfg.LayersOn = []string{tmpfsMedium}
	}
	program, err := programOf(c)
	if err != nil {
		return err
	}
	text := textOf(c)
	cfg.OnResult = func(r Result) { NewTable(text, systemsOf(r)).Add(r) }
	report, err := RunStore(ctx, cfg, program, workloads)
	return errors.Join(err, finish(c, report, text))
}

// systemsOf are the columns of a result: each store workload has systems of its own.
func systemsOf(r Result) []System {
	var out []System
	for _, c := range r.Cells {
		out = append(out, System{Name: c.System})
	}
	return out
}
