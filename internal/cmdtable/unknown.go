package cmdtable

import (
	"errors"
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
				return refuse(ctx, GuessFlag(err, c.Flags), sub)
			}
		}
	}
	return commands
}

// GuessFlag replaces the error of package flag over a flag that is none of flags; others it returns as they are.
func GuessFlag(err error, flags []cli.Flag) error {
	if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
		return UnknownFlag(name, flags)
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
