package cmdtable

import (
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Command is a command, or a group of commands.
type Command struct {
	Name        string `json:"name"`
	Usage       string `json:"usage"`
	Description string `json:"description,omitempty"`
	// Synopsis is the form of its command line, with the words before the command's name.
	Synopsis string    `json:"synopsis"`
	Hidden   bool      `json:"hidden,omitempty"`
	Flags    []Flag    `json:"flags,omitempty"`
	Commands []Command `json:"commands,omitempty"`
}

// Flag is a flag of a command.
type Flag struct {
	// Names are its names without dashes, the main one first.
	Names []string `json:"names"`
	Usage string   `json:"usage"`
	// Value is what stands for its value in texts, "value" if the flag does not say, and empty if it has none.
	Value string `json:"value,omitempty"`
	// Kind is that of the value in a configuration file: boolean, number, string, duration or array.
	Kind    string   `json:"kind"`
	Default string   `json:"default,omitempty"`
	Env     []string `json:"env,omitempty"`
}

// Of describes commands of the program of that name, in their order.
func Of(program string, commands []*cli.Command) []Command {
	var out []Command
	for _, c := range commands {
		d := Command{
			Name: c.Name, Usage: c.Usage, Description: c.Description, Synopsis: synopsis(program, c), Hidden: c.Hidden,
			Commands: Of(program+" "+c.Name, c.Subcommands),
		}
		for _, f := range c.Flags {
			if !slices.Contains(f.Names(), "help") {
				d.Flags = append(d.Flags, describe(f))
			}
		}
		out = append(out, d)
	}
	return out
}

// Find returns the command of that name, or nil.
func Find(commands []Command, name string) *Command {
	if i := slices.IndexFunc(commands, func(c Command) bool { return c.Name == name }); i >= 0 {
		return &commands[i]
	}
	return nil
}

// synopsis returns the command's own, or one that is made of what it has.
func synopsis(program string, c *cli.Command) string {
	if c.UsageText != "" {
		return strings.TrimSpace(c.UsageText)
	}
	line := program + " " + c.Name
	switch {
	case len(c.Subcommands) > 0:
		return line + " COMMAND"
	case len(c.Flags) > 0:
		line += " [FLAG]..."
	}
	return strings.TrimSpace(line + " " + c.ArgsUsage)
}

// describe returns a flag as data.
func describe(f cli.Flag) Flag {
	d := Flag{Names: f.Names(), Kind: kindOf(f)}
	g, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return d
	}
	d.Usage, d.Env, d.Default = g.GetUsage(), g.GetEnvVars(), strings.Trim(g.GetDefaultText(), `"`)
	if !g.TakesValue() {
		return d
	}
	d.Value = "value"
	if m := regexp.MustCompile("`([^`]+)`").FindStringSubmatch(d.Usage); m != nil {
		d.Value = m[1]
	}
	d.Usage = strings.ReplaceAll(d.Usage, "`", "")
	return d
}

func kindOf(f cli.Flag) string {
	switch f.(type) {
	case *cli.BoolFlag:
		return "boolean"
	case *cli.IntFlag, *cli.Int64Flag, *cli.UintFlag, *cli.Uint64Flag, *cli.Float64Flag:
		return "number"
	case *cli.DurationFlag:
		return "duration"
	case *cli.StringSliceFlag, *cli.GenericFlag:
		return "array"
	default:
		return "string"
	}
}
