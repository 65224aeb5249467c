// Package daemon is what the daemons of plyfs have in common: the command line with a configuration file behind it, the log, the
// socket that only its owner may use, and the words that systemd wants to hear. It knows nothing of what a daemon serves.
//
// A daemon is described by a Spec, of which Command makes a command of the program:
//
//	func snapshotterCommand() *cli.Command {
//		return daemon.Command(daemon.Spec{Name: "snapshotter", Usage: "serve containerd", Flags: flags(), Run: serve})
//	}
//
//	func serve(ctx context.Context, c *cli.Context, log *slog.Logger) error {
//		l, err := daemon.Listen(ctx, c.String("address"))
//		if err != nil {
//			return err
//		}
//		defer l.Close()
//		if err := daemon.Ready(); err != nil {
//			return err
//		}
//		... serve until ctx ends
//	}
//
// The package keeps no state of its own: the logger travels in the context, and the descriptors that systemd passes are looked up
// anew by each Listen. It has no locks.
package daemon
