package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"plyfs/drivers/all"
	"plyfs/fs/server"
	"plyfs/internal/cmdtable"
	"plyfs/internal/sibling"
	"plyfs/layerdb"
)

//go:embed completion
var completionScripts embed.FS

const (
	completionUsage = "plyfs completion bash|zsh|fish"
	// completeName and tableName are commands for programs: the scripts, and the generator of manual pages.
	completeName = "__complete"
	tableName    = "__commands"
	// lookupTimeout bounds a look for names: somebody waits for the answer with a finger on the key.
	lookupTimeout = 2 * time.Second
)

// completionCommand is plyfs completion.
func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a script that completes command lines in a shell", UsageText: completionUsage,
		Description: "For this session: source <(plyfs completion bash), or zsh; plyfs completion fish | source.",
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return faultf(storeUsage, "%v; usage: %s", err, completionUsage)
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return faultf(storeUsage, "name one shell; usage: %s", completionUsage)
			}
			text, err := completionScripts.ReadFile("completion/plyfs." + c.Args().First())
			if err != nil {
				return faultf(storeUsage, "there is no completion for %s; usage: %s", c.Args().First(), completionUsage)
			}
			_, err = c.App.Writer.Write(text)
			return err
		},
	}
}

// hiddenCommands are for programs.
func hiddenCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: completeName, Usage: "say what the last word can be", Hidden: true, SkipFlagParsing: true, HideHelp: true,
			Action: func(c *cli.Context) error { return printCompletion(c.App.Writer, c.Args().Slice()) },
		},
		{
			Name: tableName, Usage: "print the table of commands as JSON", Hidden: true, SkipFlagParsing: true, HideHelp: true,
			Action: func(c *cli.Context) error {
				table, err := wholeTable(c.Context)
				if err != nil {
					return err
				}
				return json.NewEncoder(c.App.Writer).Encode(table)
			},
		},
	}
}

// wholeTable describes all commands, those of plyfsd with their flags.
func wholeTable(ctx context.Context) ([]cmdtable.Command, error) {
	table := cmdtable.Of(server.NamePlyfs, commands())
	path, err := sibling.Find(daemonProgram)
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, path, tableName).Output()
	if err != nil {
		return nil, faultf(exitSystem, "ask %s for its commands: %v", path, err)
	}
	var daemons []cmdtable.Command
	if err := json.Unmarshal(out, &daemons); err != nil {
		return nil, faultf(exitSystem, "commands of %s: %v", path, err)
	}
	for _, d := range daemons {
		if known := cmdtable.Find(table, d.Name); known != nil {
			*known = d
		}
	}
	return table, nil
}

// printCompletion prints the kind of the last word, and candidates, one a line with its meaning behind a tab.
func printCompletion(w io.Writer, words []string) error {
	table := cmdtable.Of(server.NamePlyfs, commands())
	if slices.ContainsFunc(daemonCommands(), func(d *cli.Command) bool { return len(words) > 1 && d.Name == words[0] }) {
		// Without plyfsd there are no flags to offer.
		if whole, err := wholeTable(context.Background()); err == nil {
			table = whole
		}
	}
	kind, candidates := cmdtable.Complete(table, words)
	if names, isName := namesOf(kind, words); isName {
		kind, candidates = cmdtable.KindWord, nil
		for _, n := range names {
			if strings.HasPrefix(n, words[len(words)-1]) {
				candidates = append(candidates, cmdtable.Candidate{Word: n})
			}
		}
	}
	if _, err := fmt.Fprintf(w, ":%s\n", kind); err != nil {
		return err
	}
	for _, c := range candidates {
		if _, err := fmt.Fprintf(w, "%s\t%s\n", c.Word, c.Usage); err != nil {
			return err
		}
	}
	return nil
}

// namesOf looks up what has names of that kind. isName is false for kinds that the shell completes.
func namesOf(kind cmdtable.Kind, words []string) (names []string, isName bool) {
	switch kind {
	case cmdtable.KindDriver:
		for _, f := range all.Registry().Factories() {
			if f.Open != nil {
				names = append(names, f.Name)
			}
		}
	case cmdtable.KindImage:
		for _, i := range lookUp[imageLine](words, "image") {
			for _, n := range i.Names {
				names = append(names, imageName(n))
			}
		}
	case cmdtable.KindContainer:
		for _, c := range lookUp[containerLine](words, "container") {
			names = append(names, c.Name)
		}
	case cmdtable.KindLayer:
		for _, l := range lookUp[layerLine](words, "layer") {
			names = append(names, l.ID)
		}
	case cmdtable.KindIndex:
		for _, i := range lookUp[indexLine](words, "index") {
			names = append(names, i.Name)
		}
	default:
		return nil, false
	}
	return names, true
}

// lookUp returns what `plyfs GROUP ls` lists, in the store that the command line names. It waits for nobody, and what can't be read
// has no names: a completion has no place for errors.
func lookUp[line any](words []string, group string) []line {
	args := []string{group, "ls", "--json"}
	if group != "index" {
		root := flagValue(words, "root")
		if root == "" {
			root = os.Getenv("PLYFS_ROOT")
		}
		if root == "" {
			root = layerdb.DefaultRoot()
		}
		// A store that is not there would be made.
		if _, err := os.Stat(filepath.Join(root, "db")); err != nil {
			return nil
		}
		args = append(args, "--root", root, "--wait", "0")
	} else if dir := flagValue(words, "dir"); dir != "" {
		args = append(args, "--dir", dir)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, server.SelfPath(), args...).Output()
	if err != nil {
		return nil
	}
	var lines []line
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&lines); err != nil {
		return nil
	}
	return lines
}

// flagValue returns the value that the words give a flag, or nothing.
func flagValue(words []string, name string) string {
	for i, w := range words {
		if value, ok := strings.CutPrefix(w, "--"+name+"="); ok {
			return value
		}
		if w == "--"+name && i+1 < len(words) {
			return words[i+1]
		}
	}
	return ""
}
