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
	"time"

	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/urfave/cli/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"plyfs/drivers"
	"plyfs/drivers/all"
	"plyfs/drivers/plyfs"
	"plyfs/drivers/snapshotter"
	"plyfs/internal/daemon"
	"plyfs/layerdb"
)

const (
	// maxMessage is the largest gRPC message, in bytes, as containerd bounds it (cf. containerd defaults).
	maxMessage = 16 << 20
	// stopWait bounds how long calls that are under way are waited for at the end.
	stopWait = 20 * time.Second
)

// The values of --sync.
const (
	syncRecord  = "record"
	syncContent = "content"
)

// The values of --mounts.
const (
	mountsAuto   = "auto"
	mountsHelper = "helper"
)

// snapshotterCommand is plyfs snapshotter.
func snapshotterCommand() *cli.Command {
	return daemon.Command(daemon.Spec{
		Name:  "snapshotter",
		Usage: "serve containerd as a snapshotter and a differ",
		Description: "containerd finds it by its configuration:\n\n" +
			"    [proxy_plugins.plyfs]\n" +
			"      type = \"snapshot\"\n" +
			"      address = \"/run/plyfs/snapshotter.sock\"\n\n" +
			"The store is the snapshotter's alone as long as it runs. docs/containerd.md has all that there is to set.",
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name:  "address",
				Usage: "`SOCKET` to listen at, a path or unix:///PATH (default: /run/plyfs/snapshotter.sock, of users $XDG_RUNTIME_DIR/plyfs/snapshotter.sock)",
			},
			&cli.PathFlag{Name: "root", Usage: "`DIR` of the store (default: snapshotter in the directory of the layer store)"},
			&cli.StringFlag{Name: "driver", Usage: "`NAME` of the graph driver; see plyfs driver probe (default: that of the store, plyfs for a new one)"},
			&cli.StringSliceFlag{Name: "driver-opt", Usage: "option of the driver, `NAME=VALUE`; may be repeated"},
			&cli.DurationFlag{Name: "wait", Value: 10 * time.Second, Usage: "`DURATION` to wait for a process that has the store open; 0 for none"},
			&cli.StringFlag{
				Name: "sync", Value: syncRecord,
				Usage: "`WHAT` is on disk when a snapshot is committed: record, as with containerd's overlayfs, or content",
			},
			&cli.StringFlag{
				Name: "mounts", Value: mountsAuto,
				Usage: "`WHO` mounts what the driver plyfs serves: helper, a program that containerd runs, or auto, the snapshotter " +
					"itself where containerd has the same mounts, else the helper",
			},
			&cli.StringFlag{
				Name: "containerd-address", EnvVars: []string{"CONTAINERD_ADDRESS"}, Value: "/run/containerd/containerd.sock",
				Usage: "`SOCKET` of containerd, whose content store the differ uses; empty for no differ",
			},
		},
		Run: runSnapshotter,
	})
}

func runSnapshotter(ctx context.Context, c *cli.Context, log *slog.Logger) (err error) {
	o, durable, err := snapshotterStore(c)
	if err != nil {
		return err
	}
	who := c.String("mounts")
	if who != mountsAuto && who != mountsHelper {
		return cli.Exit(fmt.Sprintf("--mounts %s: want %s or %s", who, mountsAuto, mountsHelper), exitUsage)
	}
	o.Log = log
	address, err := snapshotterAddress(c.String("address"))
	if err != nil {
		return err
	}
	store, err := layerdb.Open(ctx, o)
	if err != nil {
		return err
	}
	s, err := snapshotter.New(store, snapshotter.Options{Durable: durable, Served: who == mountsAuto, Log: log})
	if err != nil {
		return errors.Join(err, store.Close())
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var d *snapshotter.Differ
	if peer := c.String("containerd-address"); peer != "" {
		conn, err := dialContainerd(peer)
		if err != nil {
			return err
		}
		defer conn.Close()
		d = snapshotter.NewDiffer(s, contentproxy.NewContentStore(conn))
	}
	server := grpc.NewServer(
		grpc.Creds(snapshotter.Credentials(log)),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(logCalls(log), snapshotter.ForwardContext),
	)
	snapshotter.Register(server, s, d)
	log.Info("serving containerd", "socket", address, "root", store.Root(), "driver", store.Driver().Name(), "differ", d != nil)
	return serveGRPC(ctx, server, address, log)
}

// serveGRPC serves until ctx ends, and then until the calls that are under way have ended.
func serveGRPC(ctx context.Context, server *grpc.Server, address string, log *slog.Logger) error {
	l, err := daemon.Listen(ctx, address)
	if err != nil {
		return err
	}
	if err := daemon.Ready(); err != nil {
		return errors.Join(err, l.Close())
	}
	unhook := context.AfterFunc(ctx, func() {
		hurry := time.AfterFunc(stopWait, func() {
			log.Warn("calls are cut off", "waited", stopWait)
			server.Stop()
		})
		server.GracefulStop()
		hurry.Stop()
	})
	defer unhook()
	err = server.Serve(l)
	if ctx.Err() != nil {
		// GracefulStop returns at once if another one is at it, when that has ended.
		server.GracefulStop()
	}
	return err
}

// snapshotterStore reads the flags that are about the store.
func snapshotterStore(c *cli.Context) (o layerdb.Options, durable layerdb.Durability, err error) {
	switch v := c.String("sync"); v {
	case syncRecord:
		durable = layerdb.DurableRecord
	case syncContent:
		durable = layerdb.DurableContent
	default:
		return o, durable, cli.Exit(fmt.Sprintf("--sync %s: want %s or %s", v, syncRecord, syncContent), exitUsage)
	}
	o = layerdb.Options{
		Root: c.Path("root"), Driver: c.String("driver"), Registry: all.Registry(), DriverOptions: make(map[string]string), Wait: c.Duration("wait"),
	}
	if o.Wait <= 0 {
		o.Wait = layerdb.NoWait
	}
	if o.Root == "" {
		base := layerdb.DefaultRoot()
		if base == "" {
			return o, durable, cli.Exit("this user has no home directory: give --root", exitUsage)
		}
		o.Root = filepath.Join(base, "snapshotter")
	}
	for _, opt := range c.StringSlice("driver-opt") {
		name, value, _ := strings.Cut(opt, "=")
		if name == "" {
			return o, durable, cli.Exit(fmt.Sprintf("driver-opt %q is not NAME=VALUE", opt), exitUsage)
		}
		o.DriverOptions[name] = value
	}
	return o, durable, findMountProgram()
}

// findMountProgram adds the directory of this program to the end of PATH if there is no plyfs on it: the driver of that name looks
// for its mount program there, as mount.fuse3 does where containerd runs.
func findMountProgram() error {
	if _, err := exec.LookPath(plyfs.Name); err == nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's file: %w", err)
	}
	return os.Setenv("PATH", os.Getenv("PATH")+string(os.PathListSeparator)+filepath.Dir(self))
}

// snapshotterAddress is where to listen: as told, or where the user's runtime files are.
func snapshotterAddress(told string) (string, error) {
	if strings.HasPrefix(told, "tcp:") {
		return "", cli.Exit(fmt.Sprintf("address %s: any user could mount through a port; give the path of a socket", told), exitUsage)
	}
	if told != "" {
		return told, nil
	}
	if os.Geteuid() == 0 && !drivers.UserNamespace().Nested {
		return "/run/plyfs/snapshotter.sock", nil
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(dir) {
		return "", cli.Exit("XDG_RUNTIME_DIR is not set: give --address", exitUsage)
	}
	return filepath.Join(dir, "plyfs", "snapshotter.sock"), nil
}

// dialContainerd prepares a connection, which is made when it is wanted first, and again when containerd was restarted.
func dialContainerd(address string) (*grpc.ClientConn, error) {
	path := strings.TrimPrefix(address, "unix://")
	if !filepath.IsAbs(path) {
		return nil, cli.Exit(fmt.Sprintf("containerd-address %s: want the absolute path of a socket", address), exitUsage)
	}
	return grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
}

// logCalls logs each call, and what failed of it.
func logCalls(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		began := time.Now()
		resp, err := handle(ctx, req)
		attrs := []any{"call", filepath.Base(info.FullMethod), "took", time.Since(began)}
		if k, ok := req.(interface{ GetKey() string }); ok {
			attrs = append(attrs, "snapshot", k.GetKey())
		}
		if err != nil {
			attrs = append(attrs, "error", err)
		}
		log.Debug("call", attrs...)
		return resp, err
	}
}
