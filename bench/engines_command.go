package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// enginesCommand is plyfs bench engines.
func enginesCommand() *cli.Command {
	return &cli.Command{
		Name:  "engines",
		Usage: "measure containers of podman and containerd, beside the kernel's overlayfs and fuse-overlayfs",
		Description: "Engines are set up with roots and sockets of their own, in namespaces of their own, below /var/tmp. Needs root,\n" +
			"podman, crun, containerd, runc, fuse-overlayfs, uidmap and busybox-static, and plyfs-mount and plyfsd beside plyfs. Exit status 1 says that\n" +
			"a sample failed or a demand is not met.",
		Flags:        keepFlags("list", "workloads", "plyfs", "samples", "check", "json", "plot", "timeout", "verbose"),
		OnUsageError: usageError,
		Action:       runEngines,
	}
}

func runEngines(c *cli.Context) error {
	if c.NArg() > 0 {
		return cli.Exit(fmt.Sprintf("bench engines: unexpected argument %q", c.Args().First()), 1)
	}
	if c.Bool("list") {
		return list(c.App.Writer, AllEngines())
	}
	if os.Geteuid() != 0 {
		return cli.Exit("bench engines: needs root", 1)
	}
	if os.Getenv(namespaceVariable) == "" {
		return runInNamespace(unix.CLONE_NEWPID)
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := enginesReport(ctx, c); err != nil {
		return cli.Exit("bench engines: "+err.Error(), 1)
	}
	return nil
}

func enginesReport(ctx context.Context, c *cli.Context) error {
	workloads, err := Select(AllEngines(), words(c.String("workloads")))
	if err != nil {
		return err
	}
	cfg, err := common(c)
	if err != nil {
		return err
	}
	program, err := programOf(c)
	if err != nil {
		return err
	}
	text := textOf(c)
	cfg.Systems = engineSystems(ctx, program, workloads)
	for _, s := range cfg.Systems {
		fmt.Fprintf(text, "%s: %s\n", s.Name, s.Version)
	}
	cfg.OnResult = func(r Result) { NewTable(text, systemsOf(r)).Add(r) }
	report, err := RunEngines(ctx, cfg, program, workloads)
	return errors.Join(err, finish(c, report, text))
}
