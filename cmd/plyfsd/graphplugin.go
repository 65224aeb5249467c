package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"plyfs/drivers/all"
	"plyfs/drivers/graphplugin"
	"plyfs/drivers/plyfs"
	"plyfs/internal/daemon"
	"plyfs/layerdb"
)

// pluginSocket is where dockerd looks for a plugin that is to be its storage driver "plyfs".
const pluginSocket = "/run/docker/plugins/plyfs.sock"

// graphpluginCommand is plyfs graphplugin.
func graphpluginCommand() *cli.Command {
	return daemon.Command(daemon.Spec{
		Name:  "graphplugin",
		Usage: "serve Docker 20.10 to 26 as a graph-driver plugin",
		Description: "dockerd finds the plugin by its socket, and uses it with\n\n" +
			"    dockerd --experimental --storage-driver=plyfs\n\n" +
			"Docker 27 hides graph-driver plugins, and 28 has none: there use plyfs snapshotter.",
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "address", Value: pluginSocket,
				Usage: "`SOCKET` to listen at, a path or unix:///PATH; its name without .sock is that of the storage driver",
			},
			&cli.PathFlag{
				Name:  "state-dir",
				Usage: "`DIR` for what dockerd said when it started (default: graphplugin/NAME in the directory of the layer store)",
			},
			&cli.StringFlag{
				Name:  "driver",
				Usage: "`NAME` of the driver that keeps the layers, where dockerd names none (--storage-opt plyfs.driver=NAME)",
			},
			&cli.StringSliceFlag{Name: "driver-opt", Usage: "option of the driver, `NAME=VALUE`; may be repeated"},
		},
		Run: runGraphplugin,
	})
}

func runGraphplugin(ctx context.Context, c *cli.Context, log *slog.Logger) (err error) {
	conf, err := graphpluginConfig(c)
	if err != nil {
		return err
	}
	conf.Log = log
	p, err := graphplugin.New(ctx, conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	l, err := daemon.Listen(ctx, c.String("address"))
	if err != nil {
		return err
	}
	log.Info("waiting for dockerd", "socket", l.Addr().String())
	if err := daemon.Ready(); err != nil {
		return errors.Join(err, l.Close())
	}
	return p.Serve(ctx, l)
}

// graphpluginConfig reads the flags.
func graphpluginConfig(c *cli.Context) (conf graphplugin.Config, err error) {
	address := c.String("address")
	if strings.HasPrefix(address, "tcp:") {
		return conf, cli.Exit(fmt.Sprintf("address %s: any user could mount through a port; give the path of a socket", address), exitUsage)
	}
	conf = graphplugin.Config{
		State: c.Path("state-dir"), Drivers: all.Registry(), Driver: c.String("driver"), Options: make(map[string]string),
	}
	if conf.Driver != "" {
		// dockerd may come much later, and would be told then.
		if _, err := conf.Drivers.Lookup(conf.Driver); err != nil {
			return conf, cli.Exit("--driver: "+err.Error(), exitUsage)
		}
	}
	for _, opt := range c.StringSlice("driver-opt") {
		name, value, _ := strings.Cut(opt, "=")
		if name == "" {
			return conf, cli.Exit(fmt.Sprintf("driver-opt %q is not NAME=VALUE", opt), exitUsage)
		}
		conf.Options[name] = value
	}
	if conf.State == "" {
		root := layerdb.DefaultRoot()
		if root == "" {
			return conf, cli.Exit("this user has no home directory: give --state-dir", exitUsage)
		}
		conf.State = filepath.Join(root, "graphplugin", strings.TrimSuffix(filepath.Base(address), ".sock"))
	}
	if conf.State, err = filepath.Abs(conf.State); err != nil {
		return conf, err
	}
	conf.Defaults, err = mountProgramDefault()
	return conf, err
}

// mountProgramDefault has the driver plyfs use the plyfs beside this program, of the same version. Without one the driver looks on
// PATH.
func mountProgramDefault() (map[string]map[string]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's file: %w", err)
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return nil, fmt.Errorf("find this program's file: %w", err)
	}
	beside := filepath.Join(filepath.Dir(self), plyfs.Name)
	if _, err := exec.LookPath(beside); err != nil {
		return map[string]map[string]string{}, nil //nolint:nilerr // there is none
	}
	return map[string]map[string]string{plyfs.Name: {"mount_program": beside}}, nil
}
