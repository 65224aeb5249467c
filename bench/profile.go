package bench

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// profileCommand turns the command line of plyfs into one that runs the same command under serveCommand.
func profileCommand(program []string, file string) (wrap, rest []string) {
	return []string{program[0], "bench", "serve", "--cpuprofile", file, "--", Plyfs}, program[1:]
}

// serveCommand runs another command of this binary in this process, with the CPU profiled until SIGUSR2. The profile
// is complete when its file has its final name. It is ended by a signal, before the unmount, since a server may end
// without returning to its caller.
func serveCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Hidden: true, SkipFlagParsing: false, Usage: "run a command with its CPU profiled until SIGUSR2",
		Flags: []cli.Flag{&cli.StringFlag{Name: "cpuprofile", Required: true}},
		Action: func(c *cli.Context) error {
			final := c.String("cpuprofile")
			f, err := os.Create(final + ".part")
			if err != nil {
				return err
			}
			if err := pprof.StartCPUProfile(f); err != nil {
				return errors.Join(err, f.Close())
			}
			stop := make(chan os.Signal, 1)
			signal.Notify(stop, unix.SIGUSR2)
			go func() {
				<-stop
				pprof.StopCPUProfile()
				if err := errors.Join(f.Close(), os.Rename(f.Name(), final)); err != nil {
					fmt.Fprintln(os.Stderr, "cpu profile:", err)
				}
			}()
			return c.App.RunContext(c.Context, c.Args().Slice())
		},
	}
}

// endProfile tells the server to write its profile, and waits for it.
func (v *server) endProfile(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := unix.Kill(v.pid(), unix.SIGUSR2); err != nil {
		return fmt.Errorf("end profile: %w", err)
	}
	for range 2000 {
		if _, err := os.Stat(file); err == nil {
			return nil
		}
		time.Sleep(pollInterval)
	}
	return fmt.Errorf("no CPU profile in %s", file)
}
