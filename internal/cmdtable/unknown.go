package cmdtable

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"plyfs/internal/typo"
)

// Guess has the commands, and those beneath them, say of a flag that they don't know which one was probably meant. It changes them
// and returns them.
func Guess(commands []*cli.Command) []*cli.Command {
	for _, c := range commands {
		Guess(c.Subcommands)
		if refuse := c.OnUsageError; refuse != nil {
			c.OnUsageError = func(ctx *cli.Context, err error, sub bool) error {
				return refuse(ctx, guess(err, c), sub)
			}
		}
	}
	return commands
}

// guess is GuessFlag for a command, whose subcommands may have the flag.
func guess(err error, c *cli.Command) error {
	better := GuessFlag(err, c.Flags)
	name, ok := strings.CutPrefix(err.Error(), undefined)
	if !ok {
		return better
	}
	has := slices.IndexFunc(c.Subcommands, func(sub *cli.Command) bool {
		return slices.ContainsFunc(sub.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	})
	if has < 0 {
		return better
	}
	return fmt.Errorf("flag %s belongs behind the command, as in `%s %s %s`", dashed(name), c.Name, c.Subcommands[has].Name, dashed(name))
}

// What package flag says, and how it begins.
const (
	undefined = "flag provided but not defined: -"
	noValue   = "invalid value "
)

// GuessFlag replaces the errors of package flag over a flag that is none of flags, and over a value that is not of its flag's kind;
// others it returns as they are.
func GuessFlag(err error, flags []cli.Flag) error {
	if name, ok := strings.CutPrefix(err.Error(), undefined); ok {
		return UnknownFlag(name, flags)
	}
	rest, ok := strings.CutPrefix(err.Error(), noValue)
	if !ok {
		return err
	}
	for _, f := range flags {
		var kind string
		switch f.(type) {
		case *cli.DurationFlag:
			kind = "a duration, such as 500ms, 10s or 2m30s"
		case *cli.IntFlag, *cli.Int64Flag, *cli.UintFlag, *cli.Uint64Flag, *cli.Float64Flag:
			kind = "a number"
		default:
			continue
		}
		for _, name := range f.Names() {
			if value, ok := strings.CutSuffix(rest, " for flag -"+name+": parse error"); ok {
				return fmt.Errorf("flag %s: %s is not %s", dashed(name), value, kind)
			}
		}
	}
	return err
}

// UnknownFlag is the error over a flag, with or without dashes, that is none of flags.
func UnknownFlag(name string, flags []cli.Flag) error {
	name, _, _ = strings.Cut(strings.TrimLeft(name, "-"), "=")
	var known []string
	for _, f := range flags {
		known = append(known, f.Names()...)
	}
	text := "unknown flag " + dashed(name)
	if meant := typo.Nearest(name, known); meant != "" {
		text += " (did you mean " + dashed(meant) + "?)"
	}
	return errors.New(text)
}

// dashed is a flag as it is written.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// UnknownCommand says of a command, given with the words before it, that its last word is none of commands.
func UnknownCommand(line string, commands []*cli.Command) string {
	var known []string
	for _, c := range commands {
		if !c.Hidden {
			known = append(known, c.Name)
		}
	}
	text := "unknown command " + line
	if meant := typo.Nearest(line[strings.LastIndexByte(line, ' ')+1:], known); meant != "" {
		text += " (did you mean " + meant + "?)"
	}
	return text
}
