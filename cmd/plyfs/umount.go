package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/fs/server"
	"plyfs/internal/control"
	"plyfs/internal/exit"
)

// umountCommand is plyfs umount.
func umountCommand() *cli.Command {
	return &cli.Command{
		Name:      "umount",
		Usage:     "unmount a union",
		ArgsUsage: "MOUNTPOINT",
		Description: "All data is in the upper layer when the command returns; the server ends by itself.\n" +
			"Exit codes are those of mount(8).",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "lazy", Aliases: []string{"l"}, Usage: "detach a mount that is in use; it ends with the last open file"},
		},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return faultf(exitUsage, "%v; usage: plyfs umount [--lazy] MOUNTPOINT", err)
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return faultf(exitUsage, "one mount point is needed; usage: plyfs umount [--lazy] MOUNTPOINT")
			}
			return umount(c.Args().First(), c.Bool("lazy"))
		},
	}
}

// umount unmounts target, a FUSE mount. A plain user needs fusermount3 for that.
func umount(target string, lazy bool) error {
	target, err := server.OwnMount(target)
	if err != nil {
		return err
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	ended := settle(target)
	err = unix.Unmount(target, flags)
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		err = umountByHelper(target, lazy)
	} else {
		err = umountFault(target, err)
	}
	if err == nil {
		ended()
	}
	return err
}

// Patience with servers: with one that is asked to take what was written, and with one that finishes that.
const (
	// offeredWithin is how long the socket of a mount that was just made is waited for.
	offeredWithin = 30 * time.Millisecond
	settleWithin  = 3 * time.Second
	endWithin     = 10 * time.Second
)

// settle has the server of the mount on target, if it can be asked, take what was written through mappings, which an unmount takes back
// from it before Linux 6.18 (fusefs.FS.Settle). The function that it returns, for after the unmount, waits until the server has handled
// all of it and has ended, so that nothing keeps the layers any more, unless the mount is in use elsewhere. What can't be asked is unmounted
// as it is.
func settle(target string) (ended func()) {
	socket, ok := server.ControlSocket(target)
	for young := time.Now().Add(offeredWithin); !ok && time.Now().Before(young); socket, ok = server.ControlSocket(target) {
		time.Sleep(offeredWithin / 10)
	}
	if !ok {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleWithin)
	defer cancel()
	pid, err := socket.Settle(ctx)
	if err != nil {
		return func() {}
	}
	process := -1
	if pid > 0 {
		if process, err = unix.PidfdOpen(pid, 0); err != nil {
			process = -1
		}
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), endWithin)
		defer cancel()
		_, err := socket.Settle(ctx) // that it hangs up is what is waited for
		if process < 0 {
			return
		}
		defer unix.Close(process)
		if errors.Is(err, control.ErrRefused) || errors.Is(err, control.ErrGone) {
			awaitEnd(ctx, process)
		}
	}
}

// awaitEnd waits until the process of a pidfd has ended, or ctx has.
func awaitEnd(ctx context.Context, process int) {
	for ctx.Err() == nil {
		deadline, _ := ctx.Deadline()
		left := max(int(time.Until(deadline).Milliseconds()), 1)
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, left); n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// umountByHelper unmounts through fusermount3, which is privileged to unmount what the same user mounted.
func umountByHelper(target string, lazy bool) error {
	args := []string{"-u"}
	if lazy {
		args = append(args, "-z")
	}
	bin, err := server.UnmountHelper()
	if err != nil {
		return faultf(exitSystem, "umount %s: %v; install the package fuse3, or unmount as root", target, err)
	}
	out, err := exec.Command(bin, append(args, "--", target)...).CombinedOutput()
	switch text := strings.TrimSpace(string(out)); {
	case err == nil:
		return nil
	case strings.Contains(text, "busy"):
		return umountFault(target, unix.EBUSY)
	case text != "":
		return faultf(exitMount, "umount %s: %s", target, text)
	}
	return faultf(exitSystem, "umount %s: fusermount3: %v; only root can do without it", target, err)
}

func umountFault(target string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return faultf(exitMount, "%s is in use; end what uses it (fuser -m %s), or add --lazy", target, target)
	case errors.Is(err, unix.EPERM):
		return faultf(exitUsage, "umount %s: %s; unmount as the user who mounted, or as root", target, exit.Reason(err))
	}
	return faultf(exitMount, "umount %s: %s", target, exit.Reason(err))
}
