package main

import (
	"fmt"
	"slices"
	"strings"

	"plyfs/internal/cmdtable"
)

// daemonFlag is the flag by which a command of the table is known to read the configuration file.
const daemonFlag = "config"

// allPages makes all pages. text is docs/cli.md.
func allPages(e edition, table []cmdtable.Command, text string) ([]page, error) {
	table = slices.DeleteFunc(slices.Clone(table), func(c cmdtable.Command) bool { return c.Hidden })
	main, err := mainPage(e, table, text)
	if err != nil {
		return nil, err
	}
	mount, err := mountPage(e, text)
	if err != nil {
		return nil, err
	}
	config, err := configPage(e, table, text)
	if err != nil {
		return nil, err
	}
	pages := []page{main, mount, config}
	for _, alias := range []string{"mount.fuse.plyfs", "mount.fuse3.plyfs"} {
		pages = append(pages, page{name: alias, section: "8", text: ".so man8/mount.plyfs.8\n"})
	}
	for _, program := range []string{"plyfsd", "plyfs-mount"} {
		pages = append(pages, page{name: program, section: "1", text: ".so man1/plyfs.1\n"})
	}
	for _, c := range table {
		pages = append(pages, commandPage(e, c, text))
	}
	return pages, nil
}

// part is a section of docs/cli.md under another heading.
type part struct{ title, heading string }

// parts renders sections of docs/cli.md.
func parts(text string, list []part) (string, error) {
	var b strings.Builder
	for _, p := range list {
		body, err := section(text, p.heading)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, ".SH %s\n%s", quoted(p.title), blocks(body))
	}
	return b.String(), nil
}

// mainPage is plyfs(1).
func mainPage(e edition, table []cmdtable.Command, text string) (page, error) {
	var b strings.Builder
	b.WriteString(e.head("plyfs", "1", "union file systems in userspace"))
	b.WriteString(".SH SYNOPSIS\n.B plyfs\n.I COMMAND\n[\\fIARGUMENT\\fR]...\n")
	_, rest, _ := strings.Cut(text, "\n")
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s", blocks(before(rest)))
	b.WriteString(".SH COMMANDS\nEach has a page of its own, and \\fB\\-\\-help\\fR.\n")
	for _, c := range table {
		fmt.Fprintf(&b, ".TP\n.BR plyfs\\-%s (1)\n%s\n", escape(c.Name), inline(c.Usage))
	}
	more, err := parts(text, []part{
		{"FLAGS OF MOUNTING", "Flags of mounting"},
		{"ENVIRONMENT", "Environment"},
		{"EXIT STATUS", "Exit codes"},
		{"SIGNALS", "Signals"},
	})
	if err != nil {
		return page{}, err
	}
	b.WriteString(more)
	b.WriteString(seeAlso("mount.plyfs(8)", "plyfs.toml(5)", "fuse(4)", "mount(8)"))
	return page{name: "plyfs", section: "1", text: b.String()}, nil
}

// mountPage is mount.plyfs(8): what may stand behind -o.
func mountPage(e edition, text string) (page, error) {
	var b strings.Builder
	b.WriteString(e.head("mount.plyfs", "8", "mount a union of directories"))
	b.WriteString(".SH SYNOPSIS\n.B mount \\-t plyfs\n[\\fB\\-o\\fR \\fIOPTION\\fR[,\\fIOPTION\\fR]...] \\fISOURCE\\fR \\fIMOUNTPOINT\\fR\n" +
		".PP\n.B mount \\-t fuse.plyfs\n.I ...\n.PP\n.B mount \\-t fuse3.plyfs\n.I ...\n.PP\n" +
		".B plyfs mount\n[\\fB\\-f\\fR] [\\fB\\-d\\fR] [\\fB\\-o\\fR \\fIOPTION\\fR[,\\fIOPTION\\fR]...]... [\\fISOURCE\\fR] \\fIMOUNTPOINT\\fR\n")
	more, err := parts(text, []part{
		{"FLAGS", "Flags of mounting"}, {"OPTIONS", "Options"}, {"EXIT STATUS", "Exit codes"}, {"SIGNALS", "Signals"},
	})
	if err != nil {
		return page{}, err
	}
	b.WriteString(more)
	b.WriteString(seeAlso("plyfs(1)", "plyfs-fsck(1)", "fuse(4)", "fstab(5)", "mount(8)"))
	return page{name: "mount.plyfs", section: "8", text: b.String()}, nil
}

// configPage is plyfs.toml(5).
func configPage(e edition, table []cmdtable.Command, text string) (page, error) {
	var b strings.Builder
	b.WriteString(e.head("plyfs.toml", "5", "configuration of the daemons of plyfs"))
	more, err := parts(text, []part{{"DESCRIPTION", "The configuration file"}})
	if err != nil {
		return page{}, err
	}
	b.WriteString(more)
	for _, c := range table {
		if !slices.ContainsFunc(c.Flags, func(f cmdtable.Flag) bool { return f.Names[0] == daemonFlag }) {
			continue
		}
		fmt.Fprintf(&b, ".SH %s\n%s.\n", quoted("["+c.Name+"]"), inline(capital(c.Usage)))
		for _, f := range c.Flags {
			if f.Names[0] == daemonFlag {
				continue
			}
			fmt.Fprintf(&b, ".TP\n\\fB%s\\fR = \\fI%s\\fR\n%s\n", escape(f.Names[0]), f.Kind, flagText(f))
		}
	}
	b.WriteString(seeAlso("plyfs(1)", "plyfs-snapshotter(1)", "plyfs-graphplugin(1)", "plyfs-metrics(1)"))
	return page{name: "plyfs.toml", section: "5", text: b.String()}, nil
}

// commandPage is the page of a command. What docs/cli.md says under the command's name comes into it.
func commandPage(e edition, c cmdtable.Command, text string) page {
	var b strings.Builder
	name := "plyfs-" + c.Name
	b.WriteString(e.head(name, "1", c.Usage))
	b.WriteString(".SH SYNOPSIS\n" + synopsis(c))
	b.WriteString(".SH DESCRIPTION\n")
	body, err := section(text, "plyfs "+c.Name)
	switch {
	case err == nil:
		b.WriteString(blocks(body))
	case c.Description != "":
		b.WriteString(blocks(c.Description))
	default:
		b.WriteString(inline(capital(c.Usage)) + ".\n")
	}
	if len(c.Flags) > 0 {
		b.WriteString(".SH OPTIONS\n" + flagList(c.Flags))
	}
	visible := slices.DeleteFunc(slices.Clone(c.Commands), func(sub cmdtable.Command) bool { return sub.Hidden })
	if len(visible) > 0 {
		b.WriteString(".SH COMMANDS\n")
		for _, sub := range visible {
			fmt.Fprintf(&b, ".SS %s\n%s.\n.PP\n%s", quoted(c.Name+" "+sub.Name), inline(capital(sub.Usage)), synopsis(sub))
			if sub.Description != "" {
				b.WriteString(blocks(sub.Description))
			}
			b.WriteString(flagList(sub.Flags))
		}
	}
	if list, err := section(text, "Exit codes of the store"); err == nil && usesStore(c) {
		b.WriteString(".SH EXIT STATUS\n" + blocks(list))
	}
	b.WriteString(seeAlso("plyfs(1)", "mount.plyfs(8)", "plyfs.toml(5)"))
	return page{name: name, section: "1", text: b.String()}
}

// usesStore reports whether a command of the group opens the store.
func usesStore(c cmdtable.Command) bool {
	return slices.ContainsFunc(c.Commands, func(s cmdtable.Command) bool {
		return slices.ContainsFunc(s.Flags, func(f cmdtable.Flag) bool { return f.Names[0] == "driver-opt" })
	})
}

// synopsis is the line of a command; the words that are its name are bold.
func synopsis(c cmdtable.Command) string {
	var out []string
	for l := range strings.Lines(c.Synopsis) {
		before, after, found := strings.Cut(strings.TrimSpace(l), c.Name)
		if !found {
			out = append(out, line(escape(strings.TrimSpace(l))))
			continue
		}
		out = append(out, `\fB`+escape(before)+escape(c.Name)+`\fR`+escape(after))
	}
	return strings.Join(out, "\n.br\n") + "\n"
}

// flagList describes flags, one a paragraph.
func flagList(flags []cmdtable.Flag) string {
	var b strings.Builder
	for _, f := range flags {
		var names []string
		for _, n := range f.Names {
			names = append(names, `\fB`+escape(cmdtable.Dashed(n))+`\fR`)
		}
		tag := strings.Join(names, ", ")
		if f.Value != "" {
			tag += ` \fI` + escape(f.Value) + `\fR`
		}
		fmt.Fprintf(&b, ".TP\n%s\n%s\n", tag, flagText(f))
	}
	return b.String()
}

// flagText says what a flag is for, and what counts without it.
func flagText(f cmdtable.Flag) string {
	text := inline(capital(f.Usage))
	if text == "" {
		text = `\&`
	}
	if f.Default != "" && f.Default != "false" && f.Default != "0" && f.Default != "0s" {
		text += "\n(default: " + escape(f.Default) + ")"
	}
	if len(f.Env) > 0 {
		text += "\n(environment: " + escape(strings.Join(f.Env, ", ")) + ")"
	}
	return text
}

func capital(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

func seeAlso(pages ...string) string {
	var list []string
	for _, p := range pages {
		name, section, _ := strings.Cut(p, "(")
		list = append(list, ".BR "+escape(name)+" ("+section)
	}
	return ".SH SEE ALSO\n" + strings.Join(list, " ,\n") + "\n"
}
