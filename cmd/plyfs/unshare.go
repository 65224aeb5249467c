package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// An unprivileged user works in a user namespace, in which the user is root and the user's subordinate ids (/etc/subuid) are
// the other owners, and in a mount namespace of its own. A Go program can't enter one, since it has threads: it starts
// itself again in new namespaces. That process can do nothing until its ids are mapped, which only the first one can do,
// and has no capabilities until it then executes a program anew.
const (
	// envNamespace tells a process how far it is.
	envNamespace = "_PLYFS_NAMESPACE"
	// stageWait: the ids are not mapped yet; then run this command line as stageCommand.
	stageWait = "wait"
	// stageSession: the ids are not mapped yet; then run the command of plyfs unshare.
	stageSession = "session"
	// stageCommand: in the namespaces, for this command alone.
	stageCommand = "command"
)

// namespace is where a command on the store runs.
type namespace int

const (
	// nsHere: in the namespaces in which it was called.
	nsHere namespace = iota
	// nsPrivate: in namespaces that end with it.
	nsPrivate
	// nsDone: the command ran in another process and succeeded.
	nsDone
)

// namespaceOf finds out where the command has to run. For an unprivileged user it runs the whole command line again in a
// user namespace, and returns what came of it.
func namespaceOf(c *cli.Context) (namespace, error) {
	if stage, ok := os.LookupEnv(envNamespace); ok && stage == stageCommand {
		// Not for the programs that this one starts.
		if err := os.Unsetenv(envNamespace); err != nil {
			return nsHere, err
		}
		return nsPrivate, stayTraceable()
	}
	if os.Geteuid() == 0 {
		return nsHere, nil
	}
	if err := runInNamespace(stageWait, os.Args[1:]); err != nil {
		return nsHere, err
	}
	return nsDone, nil
}

// stayTraceable undoes what gaining capabilities did: the process dies with the one that waits for it, and its own files in
// /proc are its own.
func stayTraceable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_DUMPABLE: %w", err)
	}
	return sys.EndWithParent()
}

const unshareUsage = "plyfs unshare [COMMAND [ARGUMENT]...]"

// unshareCommand is plyfs unshare.
func unshareCommand() *cli.Command {
	return &cli.Command{
		Name: "unshare", Usage: "run a command, or a shell, where an unprivileged user is root of the store",
		UsageText: unshareUsage,
		Description: "The command runs in a user namespace with the subordinate ids of /etc/subuid and /etc/subgid, and in a mount\n" +
			"namespace: what plyfs container mount mounts there is seen there, until the command ends.",
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			args := c.Args().Slice()
			if len(args) > 0 && args[0] == "--" {
				args = args[1:]
			}
			switch {
			case len(args) == 1 && (args[0] == "-h" || args[0] == "--help"):
				return cli.ShowSubcommandHelp(c)
			case len(args) > 0 && strings.HasPrefix(args[0], "-"):
				return faultf(storeUsage, "unknown flag %s; usage: %s", args[0], unshareUsage)
			case len(args) == 0:
				args = []string{userShell()}
			}
			if _, err := exec.LookPath(args[0]); err != nil {
				return faultf(storeNotFound, "%v", err)
			}
			return storeFault(runInNamespace(stageSession, args))
		},
	}
}

func userShell() string {
	if s := os.Getenv("SHELL"); s != "" {
		return s
	}
	return "/bin/sh"
}

// runInNamespace runs this program with args in new user and mount namespaces, and waits. A failure of what ran there is a
// fault with its exit code and without words: it has said them.
func runInNamespace(stage string, args []string) error {
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer tell.Close()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), envNamespace+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{ready}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	err = cmd.Start()
	ready.Close()
	if err != nil {
		return faultf(storeUnsupported, "new user namespace: %v; the kernel must allow them to users "+
			"(sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces)", err)
	}
	if err := mapIDs(cmd.Process.Pid, os.Stderr); err != nil {
		// Without a word from here it ends.
		tell.Close()
		return errors.Join(err, ignoreExit(cmd.Wait()))
	}
	if _, err := tell.Write([]byte{1}); err != nil {
		return errors.Join(err, cmd.Wait())
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			// One that has ended needs no signal.
			_ = cmd.Process.Signal(s)
		case err := <-done:
			return exitFault(cmd.ProcessState, err)
		}
	}
}

// ignoreExit is err unless it says only that the program failed.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// exitFault passes an exit code on, in the way of shells for one that a signal ended.
func exitFault(state *os.ProcessState, err error) error {
	if err == nil {
		return nil
	}
	if ignoreExit(err) != nil {
		return err
	}
	if code := state.ExitCode(); code >= 0 {
		return &fault{Code: code}
	}
	ws, ok := state.Sys().(syscall.WaitStatus)
	if !ok {
		return err
	}
	return &fault{Code: 128 + int(ws.Signal())}
}

// continueInNamespace is what the process in the new namespaces does first: it waits for its ids, and executes what it is
// for. It returns nil where this process is no such.
func continueInNamespace(args []string) error {
	stage := os.Getenv(envNamespace)
	if stage != stageWait && stage != stageSession {
		return nil
	}
	const readyFD = 3
	ready := os.NewFile(readyFD, "ready")
	if n, err := ready.Read(make([]byte, 1)); n != 1 {
		if errors.Is(err, io.EOF) {
			return &fault{Code: storeUnsupported} // the other process says why
		}
		return faultf(storeFailed, "wait for the user namespace: %v", err)
	}
	ready.Close()
	if err := os.Unsetenv(envNamespace); err != nil {
		return err
	}
	if stage == stageSession {
		path, err := exec.LookPath(args[1])
		if err != nil {
			return faultf(storeNotFound, "%v", err)
		}
		return faultf(storeFailed, "run %s: %v", path, syscall.Exec(path, args[1:], os.Environ()))
	}
	env := append(os.Environ(), envNamespace+"="+stageCommand)
	return faultf(storeFailed, "run plyfs in the user namespace: %v", syscall.Exec("/proc/self/exe", args, env))
}
