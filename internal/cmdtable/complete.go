package cmdtable

import (
	"slices"
	"strings"
)

// Kind says what can stand at the place of a word.
type Kind string

// The kinds of words.
const (
	// KindNone is a word that nobody knows beforehand, or none at all.
	KindNone Kind = ""
	// KindWord is one of the candidates that come with it: commands, flags, values.
	KindWord Kind = "word"
	// KindFile and KindDir are paths, which shells know how to complete.
	KindFile Kind = "file"
	KindDir  Kind = "dir"
	// KindImage, KindLayer, KindContainer and KindDriver are names of what a store has.
	KindImage     Kind = "image"
	KindLayer     Kind = "layer"
	KindContainer Kind = "container"
	KindDriver    Kind = "driver"
	// KindIndex is the name of a stack index.
	KindIndex Kind = "index"
)

// Candidate is a word that could stand at a place, and what it means.
type Candidate struct {
	Word, Usage string
}

// Complete says what the last of words can be. words are those behind the program's name; the last may be empty, or the beginning of
// a word. It returns the candidates of KindWord that begin with it, or another kind and no candidates.
func Complete(commands []Command, words []string) (Kind, []Candidate) {
	if len(words) == 0 {
		words = []string{""}
	}
	current := words[len(words)-1]
	at := walk(commands, words[:len(words)-1])
	switch {
	case at.value != nil:
		return valueKind(*at.value, current)
	case at.command == nil && !at.unknown:
		return matching(subcommands(commands), current)
	case at.unknown:
		return KindNone, nil
	case strings.HasPrefix(current, "-") && !at.noFlags:
		name, value, given := strings.Cut(current, "=")
		if f := flagOf(*at.command, name); given && f != nil {
			kind, list := valueKind(*f, value)
			for i := range list {
				list[i].Word = name + "=" + list[i].Word
			}
			return kind, list
		}
		return matching(flags(*at.command), current)
	case len(at.command.Commands) > 0:
		return matching(subcommands(at.command.Commands), current)
	}
	return argumentKind(*at.command, current)
}

// place is where a command line has got to.
type place struct {
	command *Command
	// value is the flag whose value comes next, or nil.
	value *Flag
	// unknown is set behind a word that is no command.
	unknown bool
	// noFlags is set behind "--".
	noFlags bool
}

// walk goes along words.
func walk(commands []Command, words []string) place {
	var at place
	below := commands
	for _, w := range words {
		switch {
		case at.value != nil:
			at.value = nil
		case w == "--":
			at.noFlags = true
		case strings.HasPrefix(w, "-") && len(w) > 1 && !at.noFlags:
			if at.command == nil || strings.Contains(w, "=") {
				continue
			}
			if f := flagOf(*at.command, w); f != nil && f.Value != "" {
				at.value = f
			}
		case len(below) > 0:
			if at.command = Find(below, w); at.command == nil {
				return place{unknown: true}
			}
			below = at.command.Commands
		}
	}
	return at
}

// flagOf returns the flag that word names, with its dashes, or nil.
func flagOf(c Command, word string) *Flag {
	name := strings.TrimLeft(word, "-")
	i := slices.IndexFunc(c.Flags, func(f Flag) bool { return slices.Contains(f.Names, name) })
	if i < 0 {
		return nil
	}
	return &c.Flags[i]
}

func subcommands(commands []Command) []Candidate {
	var out []Candidate
	for _, c := range commands {
		if !c.Hidden {
			out = append(out, Candidate{Word: c.Name, Usage: c.Usage})
		}
	}
	return out
}

// Dashed returns a flag's name as it is written.
func Dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

func flags(c Command) []Candidate {
	var out []Candidate
	for _, f := range c.Flags {
		for _, n := range f.Names {
			out = append(out, Candidate{Word: Dashed(n), Usage: f.Usage})
		}
	}
	return append(out, Candidate{Word: "--help", Usage: "print help"})
}

// matching returns the candidates that begin with prefix.
func matching(all []Candidate, prefix string) (Kind, []Candidate) {
	var out []Candidate
	for _, c := range all {
		if strings.HasPrefix(c.Word, prefix) {
			out = append(out, c)
		}
	}
	return KindWord, out
}

// valueKind says what the value of a flag can be, by what stands for it in the flag's text.
func valueKind(f Flag, current string) (Kind, []Candidate) {
	switch f.Names[0] {
	case "driver", "to":
		return KindDriver, nil
	case "log-level":
		return matching(words("debug", "info", "warn", "error"), current)
	case "log-format":
		return matching(words("text", "json"), current)
	case "format":
		return matching(words("oci-archive", "docker-archive", "oci"), current)
	case "compression":
		return matching(words("none", "gzip", "zstd"), current)
	case "as":
		return matching(words("fuse-overlayfs"), current)
	case "engine":
		return matching(words("podman", "docker", "containerd"), current)
	case "sync":
		return matching(words("record", "content"), current)
	case "output", "config":
		return KindFile, nil
	}
	switch {
	case strings.Contains(f.Value, "FILE"), strings.Contains(f.Value, "SOCKET"), f.Value == "ADDRESS":
		return KindFile, nil
	case strings.Contains(f.Value, "DIR"):
		return KindDir, nil
	}
	return KindNone, nil
}

func words(all ...string) []Candidate {
	var out []Candidate
	for _, w := range all {
		out = append(out, Candidate{Word: w})
	}
	return out
}

// argumentKind says what the arguments of a command can be, by the last word of its synopsis.
func argumentKind(c Command, current string) (Kind, []Candidate) {
	fields := strings.Fields(strings.NewReplacer("[", " ", "]", " ", "...", " ").Replace(c.Synopsis))
	if len(fields) == 0 {
		return KindNone, nil
	}
	last := fields[len(fields)-1]
	group := ""
	if len(fields) > 1 {
		group = fields[1]
	}
	switch {
	case strings.Contains(last, "|") && !strings.ContainsFunc(last, func(r rune) bool { return r >= 'A' && r <= 'Z' }):
		return matching(words(strings.Split(last, "|")...), current)
	case group == "container" && c.Name != "create":
		return KindContainer, nil
	case slices.Contains(fields, "IMAGE"):
		return KindImage, nil
	case last == "LAYER":
		return KindLayer, nil
	case last == "DRIVER":
		return KindDriver, nil
	case group == "index" && slices.Contains(fields, "NAME"):
		return KindIndex, nil
	case strings.Contains(last, "FILE"), strings.Contains(last, "COMMAND"):
		return KindFile, nil
	case strings.Contains(last, "DIR"), strings.Contains(last, "MOUNTPOINT"), last == "LOWER", last == "TARGET":
		return KindDir, nil
	}
	return KindNone, nil
}
