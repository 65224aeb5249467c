package main

import (
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"plyfs/fs/server"
)

const (
	installUsage = "plyfs install [--as fuse-overlayfs] [--storage-conf | --engine ENGINE [--write]] [--user] [--bindir DIR] " +
		"[--dry-run] [--json]"
	uninstallUsage = "plyfs uninstall [--user] [--leave-changed] [--dry-run] [--json]"
)

// installCommand is plyfs install.
func installCommand() *cli.Command {
	return &cli.Command{
		Name: "install", Usage: "put plyfs in place of fuse-overlayfs, and tell container engines of it",
		UsageText: installUsage,
		Description: "Links fuse-overlayfs in /usr/local/bin to this program (with --user: in ~/.local/bin) and, as root,\n" +
			"the helpers of mount(8) in /sbin; writes an engine's configuration where asked to, keeping what is in it;\n" +
			"shows what it changes, and records it. plyfs uninstall takes all of it back.\n\n" +
			"Engines: podman (also buildah and CRI-O: storage.conf), docker (daemon.json), containerd (proxy_plugins of\n" +
			"config.toml, which is only shown without --write).",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "as", Usage: "the program to stand in for: `NAME` is fuse-overlayfs"},
			&cli.BoolFlag{Name: "storage-conf", Usage: "as --engine podman: name it in storage.conf"},
			listFlag("engine", "write the configuration of `ENGINE`: podman, docker or containerd; may be repeated"),
			&cli.BoolFlag{Name: "write", Usage: "write containerd's config.toml, too"},
			&cli.StringFlag{Name: "bindir", Usage: "`DIR` for the link, on PATH before any other fuse-overlayfs"},
			&cli.BoolFlag{Name: "show", Usage: "say what is installed, and whether it is still as it was made"},
			&cli.BoolFlag{Name: "undo", Usage: "as plyfs uninstall"},
		}, installFlags()...),
		OnUsageError: installUsageError(installUsage),
		Action:       func(c *cli.Context) error { return installFault(runInstall(c)) },
	}
}

// uninstallCommand is plyfs uninstall.
func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name: "uninstall", Usage: "take back what plyfs install changed", UsageText: uninstallUsage,
		Flags:        installFlags(),
		OnUsageError: installUsageError(uninstallUsage),
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return faultf(storeUsage, "unexpected argument %s; usage: %s", c.Args().First(), uninstallUsage)
			}
			return installFault(runUninstall(c))
		},
	}
}

func installFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "user", Usage: "for this user alone"},
		&cli.BoolFlag{Name: "leave-changed", Usage: "of uninstall: leave files as they are that were changed since"},
		&cli.BoolFlag{Name: "dry-run", Usage: "change nothing, only show what would be changed"},
		jsonFlag(),
	}
}

func installUsageError(usage string) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error { return faultf(storeUsage, "%v; usage: %s", err, usage) }
}

// installFault gives an error its exit code, one of the store's commands'.
func installFault(err error) error {
	var f *fault
	switch {
	case err == nil || errors.As(err, &f):
		return err
	case errors.Is(err, errInstallLocked):
		return faultf(storeLocked, "%s", lines(err))
	case errors.Is(err, errInstallConflict), errors.Is(err, errInstallChanged):
		return faultf(storeExists, "%s", lines(err))
	case errors.Is(err, fs.ErrPermission), errors.Is(err, errInstallUntrusted):
		return faultf(storeUnsupported, "%s", lines(err))
	}
	return faultf(storeFailed, "%s", lines(err))
}

// readRequest reads the command line of plyfs install.
func readRequest(c *cli.Context) (installRequest, error) {
	q := installRequest{engines: listOf(c, "engine"), write: c.Bool("write")}
	if c.Bool("storage-conf") {
		q.engines = append(q.engines, enginePodman)
	}
	slices.Sort(q.engines)
	q.engines = slices.Compact(q.engines)
	for _, e := range q.engines {
		if e != enginePodman && e != engineDocker && e != engineContainerd {
			return q, faultf(storeUsage, "unknown engine %s: podman, docker and containerd are known", e)
		}
		// containerd runs plyfs by its own name.
		q.as = q.as || e != engineContainerd
	}
	switch as := c.String("as"); {
	case as == server.NameFuseOverlayfs:
		q.as = true
	case as != "":
		return q, faultf(storeUsage, "--as %s: plyfs can stand in for fuse-overlayfs only", as)
	case len(q.engines) == 0:
		return q, faultf(storeUsage, "nothing to install: give --as fuse-overlayfs, or --engine ENGINE; usage: %s", installUsage)
	}
	if q.write && !slices.Contains(q.engines, engineContainerd) {
		return q, faultf(storeUsage, "--write belongs to --engine containerd")
	}
	return q, nil
}

// runInstall is plyfs install.
func runInstall(c *cli.Context) error {
	switch {
	case c.NArg() > 0:
		return faultf(storeUsage, "unexpected argument %s; usage: %s", c.Args().First(), installUsage)
	case c.Bool("show"):
		return runShow(c)
	case c.Bool("undo"):
		return runUninstall(c)
	}
	q, err := readRequest(c)
	if err != nil {
		return err
	}
	in, err := newInstaller(c.Bool("user"), c.String("bindir"))
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		r, err := in.journal().load()
		if err != nil {
			return err
		}
		p, err := in.plan(r, q)
		if err != nil {
			return err
		}
		return printInstall(c, p)
	}
	p, err := in.install(q)
	if err != nil {
		return err
	}
	return printInstall(c, p)
}

// install does all that q asks for, or nothing.
func (in *installer) install(q installRequest) (*installPlan, error) {
	j := in.journal()
	if _, err := trustedPath(j.path, in.uid); err != nil {
		return nil, err
	}
	made, release, err := j.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	p, err := in.installLocked(j, made, q)
	if err != nil {
		return nil, errors.Join(err, undoAll(made))
	}
	return p, nil
}

// installLocked is install with the record's lock held. made are the directories that were made for the record.
func (in *installer) installLocked(j journal, made []installChange, q installRequest) (*installPlan, error) {
	r, err := j.load()
	if err != nil {
		return nil, err
	}
	if r, err = j.recover(r); err != nil {
		return nil, err
	}
	p, err := in.plan(r, q)
	if err != nil {
		return nil, err
	}
	if len(p.changes) == 0 {
		return p, undoAll(made)
	}
	r.Program = in.program
	return p, j.apply(r, made, p.changes)
}

// runUninstall is plyfs uninstall.
func runUninstall(c *cli.Context) error {
	in, err := newInstaller(c.Bool("user"), "")
	if err != nil {
		return err
	}
	j := in.journal()
	if _, err := os.Lstat(j.path); errors.Is(err, fs.ErrNotExist) {
		return faultf(storeNotFound, "plyfs install has changed nothing that could be taken back: there is no %s%s",
			j.path, in.otherScope())
	}
	if _, err := trustedPath(j.path, in.uid); err != nil {
		return err
	}
	_, release, err := j.lock()
	if err != nil {
		return err
	}
	defer release()
	r, err := j.load()
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		undone, err := r.undoable(c.Bool("leave-changed"))
		if err != nil {
			return err
		}
		return printUninstall(c, append(undone, r.Pending...), nil)
	}
	if r, err = j.recover(r); err != nil {
		return err
	}
	undone, err := j.undo(r, c.Bool("leave-changed"))
	if err != nil {
		return err
	}
	// Once more those of the record's directories that were not empty while it was there.
	if err := undoAll(directoriesOf(undone)); err != nil {
		return err
	}
	return printUninstall(c, undone, append(in.warnUndone(undone), in.warnDangling(undone)...))
}

func directoriesOf(changes []installChange) []installChange {
	return slices.DeleteFunc(slices.Clone(changes), func(c installChange) bool { return c.Kind != changeDirectory })
}

// otherScope is a hint for root, who may look for what a user installed, and the other way round.
func (in *installer) otherScope() string {
	if in.user {
		return "; what root installed, root takes back without --user"
	}
	return "; what a user installed with --user, that user takes back with --user"
}

// runShow is plyfs install --show.
func runShow(c *cli.Context) error {
	in, err := newInstaller(c.Bool("user"), "")
	if err != nil {
		return err
	}
	s, err := in.state()
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return encodeJSON(c.App.Writer, s)
	}
	return printed(c, storeFailed, s.print)
}

// state finds out what is installed, and whether it is still as it was made.
func (in *installer) state() (installState, error) {
	r, err := in.journal().load()
	if err != nil {
		return installState{}, err
	}
	s := installState{
		Record: in.journal().path, Program: r.Program, Interrupted: len(r.Pending) > 0, Changes: []installedState{},
		Found: in.lookPath(server.NameFuseOverlayfs),
	}
	for _, change := range r.Done {
		state := installedState{installChange: change, State: "as installed"}
		if err := change.intact(); err != nil {
			state.State = err.Error()
		} else if _, err := os.Lstat(change.Path); err != nil {
			state.State = "gone"
		}
		s.Changes = append(s.Changes, state)
	}
	return s, nil
}
