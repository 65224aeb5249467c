package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"plyfs/internal/cmdtable"
)

// optionList collects the values of a flag that may be repeated, commas and all: they belong to the options' own
// grammar.
type optionList []string

// Set adds one value.
func (l *optionList) Set(s string) error {
	*l = append(*l, s)
	return nil
}

// String returns all values.
func (l *optionList) String() string { return strings.Join(*l, ",") }

// take returns the collected values and forgets them.
func (l *optionList) take() []string {
	values := []string(*l)
	*l = nil
	return values
}

// optionsFlag takes mount options.
func optionsFlag(value *optionList) cli.Flag {
	return &cli.GenericFlag{Name: "o", Value: value, Usage: "`OPTION[,OPTION]...` of the mount; may be repeated"}
}

// listFlag is a flag that may be repeated and whose values may have commas.
func listFlag(name, usage string) cli.Flag {
	return &cli.GenericFlag{Name: name, Value: &optionList{}, Usage: usage}
}

// listOf returns the values of a listFlag.
func listOf(c *cli.Context, name string) []string {
	if l, ok := c.Generic(name).(*optionList); ok {
		return slices.Clone(*l)
	}
	return nil
}

// lateFlags sets the flags that stand behind arguments, and returns the arguments.
func lateFlags(c *cli.Context) (args []string, err error) {
	rest := c.Args().Slice()
	for len(rest) > 0 {
		a := rest[0]
		rest = rest[1:]
		if a == "--" {
			return append(args, rest...), nil
		}
		if len(a) < 2 || a[0] != '-' {
			args = append(args, a)
			continue
		}
		name, value, given := strings.Cut(strings.TrimLeft(a, "-"), "=")
		i := slices.IndexFunc(c.Command.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
		if i < 0 {
			return nil, cmdtable.UnknownFlag(name, c.Command.Flags)
		}
		_, isBool := c.Command.Flags[i].(*cli.BoolFlag)
		switch {
		case given:
		case isBool:
			value = "true"
		case len(rest) == 0:
			return nil, fmt.Errorf("flag needs an argument: %s", a)
		default:
			value, rest = rest[0], rest[1:]
		}
		// What is given by an alias is read by the name.
		if err := c.Set(c.Command.Flags[i].Names()[0], value); err != nil {
			return nil, fmt.Errorf("invalid value %q for flag %s: %w", value, a, err)
		}
	}
	return args, nil
}
