package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"plyfs/internal/vm/guest"
)

// The exit codes that are not the program's own.
const (
	exitUsage   = 2
	exitTimeout = 124
	exitLost    = 125
)

// defaultTimeout bounds a machine whose caller gave no limit.
const defaultTimeout = 15 * time.Minute

func main() {
	// As a machine's first process this is the program that starts the other one.
	if os.Getpid() == 1 && guest.Inside() {
		guest.Main()
	}
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) == 2 && args[0] == "symvers" {
		if err := symvers(args[1], os.Stdout); err != nil {
			return fail(exitLost, err)
		}
		return 0
	}
	o, err := parse(args)
	if err != nil {
		return exitUsage // flag has said why
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()
	if !o.shell {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("%w of %v", errTimeout, o.timeout))
		defer cancel()
	}
	code, err := boot(ctx, o)
	switch {
	case errors.Is(err, errTimeout):
		return fail(exitTimeout, err)
	case err != nil:
		return fail(exitLost, err)
	}
	return code
}

func fail(code int, err error) int {
	fmt.Fprintln(os.Stderr, "vm:", err)
	return code
}

// options are the command line.
type options struct {
	machine string
	disks   []int64 // sizes in bytes
	memory  int     // MiB
	timeout time.Duration
	shell   bool
	command []string
}

func parse(args []string) (options, error) {
	o := options{memory: 1024, timeout: defaultTimeout}
	flags := flag.NewFlagSet("vm", flag.ContinueOnError)
	flags.StringVar(&o.machine, "machine", "", "directory of the machine, made by prepare.sh")
	flags.IntVar(&o.memory, "memory", o.memory, "memory in MiB")
	flags.DurationVar(&o.timeout, "timeout", o.timeout, "kill the machine after this long")
	flags.BoolVar(&o.shell, "shell", false, "run a shell on this terminal")
	flags.Func("disk", "add an empty disk of this `size`, as 4G or 512M; may be repeated", func(s string) error {
		n, err := parseSize(s)
		o.disks = append(o.disks, n)
		return err
	})
	err := flags.Parse(args)
	o.command = flags.Args()
	switch {
	case err != nil:
		return o, err
	case o.machine == "":
		err = errors.New("no -machine given; prepare.sh makes one and prints its directory")
	case o.shell && len(o.command) > 0:
		err = errors.New("-shell takes no command")
	case !o.shell && len(o.command) == 0:
		err = errors.New("no command given")
	case len(o.disks) > maxDisks:
		err = fmt.Errorf("%d disks given, the limit is %d", len(o.disks), maxDisks)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		flags.Usage()
	}
	return o, err
}

// parseSize reads a number of bytes, KiB (K), MiB (M) or GiB (G).
func parseSize(s string) (int64, error) {
	shift := 0
	for i, unit := range []string{"K", "M", "G"} {
		if rest, ok := strings.CutSuffix(s, unit); ok {
			s, shift = rest, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, err
	}
	if n <= 0 || n > 1<<62>>shift {
		return 0, strconv.ErrRange
	}
	return n << shift, nil
}
