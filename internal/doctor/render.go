package doctor

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Style says how a report is printed for people.
type Style struct {
	// All prints what is well in full, too.
	All bool
	// Colour is for a terminal.
	Colour bool
	// Width is that of lines, in characters; 0 does not break them.
	Width int
}

// WriteJSON prints the report for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// WriteText prints the report for people: group by group what is not well, and what to do about it.
func (r *Report) WriteText(w io.Writer, s Style) error {
	p := &printer{Style: s}
	p.subject(r.Subject)
	for _, group := range groups() {
		p.group(group, r.Findings)
	}
	p.line("")
	p.line(p.paint(verdict(r), summary(r)))
	_, err := io.WriteString(w, p.text.String())
	return err
}

// verdict is the worst status of a report that is more than a note.
func verdict(r *Report) Status {
	switch {
	case r.Count[Problem] > 0:
		return Problem
	case r.Count[Warning] > 0:
		return Warning
	}
	return OK
}

func summary(r *Report) string {
	return fmt.Sprintf("%s, %s, %s, %d ok", count(r.Count[Problem], "problem"), count(r.Count[Warning], "warning"),
		count(r.Count[Note], "note"), r.Count[OK])
}

// printer builds the text.
type printer struct {
	Style
	text strings.Builder
}

func (p *printer) line(s string) { p.text.WriteString(strings.TrimRight(s, " ") + "\n") }

// paint colours words by what they say, on a terminal.
func (p *printer) paint(status Status, words string) string {
	colours := map[Status]string{OK: "32", Note: "36", Warning: "33", Problem: "31"}
	if !p.Colour {
		return words
	}
	return "\x1b[" + colours[status] + "m" + words + "\x1b[0m"
}

func (p *printer) subject(s Subject) {
	who := fmt.Sprintf("uid %d", s.UID)
	if s.User != "" {
		who = fmt.Sprintf("%s (uid %d)", s.User, s.UID)
	}
	if s.UserNamespace {
		who += " of a user namespace"
	}
	where := cmp.Or(s.System, "an unknown system")
	if s.Container != "" {
		where = "a container of " + s.Container + ", " + where
	}
	for _, line := range wrap(fmt.Sprintf("%s, in %s, Linux %s", who, where, cmp.Or(s.Kernel, "of unknown version")),
		p.Width) {
		p.line(line)
	}
}

// group prints the findings of a group; those that are well in one line.
func (p *printer) group(group string, all []Finding) {
	var fine []string
	any := false
	for _, f := range all {
		if f.Group != group {
			continue
		}
		if !any {
			any = true
			p.line("")
			p.line(group)
		}
		if f.Status == OK && !p.All {
			if len(fine) == 0 || fine[len(fine)-1] != f.Title {
				fine = append(fine, f.Title)
			}
			continue
		}
		p.finding(f)
	}
	if len(fine) > 0 {
		p.block(OK, strings.Join(fine, ", "))
	}
}

// indent is the width of the column with the status.
const indent = 10

// finding prints one finding. Steps of notes are printed only with All: there is nothing that has to be done.
func (p *printer) finding(f Finding) {
	p.block(f.Status, f.Title+": "+f.Detail)
	if f.Status == Note && !p.All {
		return
	}
	for _, s := range f.WayOut {
		p.step(s)
	}
}

// block prints a status and words beside it, broken into lines.
func (p *printer) block(status Status, words string) {
	head := p.paint(status, string(status)) + strings.Repeat(" ", indent-2-len(status))
	for _, line := range wrap(words, p.Width-indent) {
		p.line("  " + head + line)
		head = strings.Repeat(" ", indent-2)
	}
}

// step prints one step of a way out. A command is never broken, so that it can be copied.
func (p *printer) step(s Step) {
	pad := strings.Repeat(" ", indent)
	mark := "-> "
	if s.Do != "" {
		for _, line := range wrap(s.Do, p.Width-indent-len(mark)) {
			p.line(pad + mark + line)
			mark = "   "
		}
	}
	if s.Command != "" {
		who := "$ "
		if s.Root {
			who = "# "
		}
		p.line(pad + mark + who + s.Command)
	}
}

// wrap breaks words into lines of at most width characters, if that is more than a few; longer words stay whole.
func wrap(words string, width int) []string {
	const few = 20
	if width < few {
		return []string{words}
	}
	var lines []string
	var line strings.Builder
	length := 0
	for word := range strings.FieldsSeq(words) {
		n := len([]rune(word))
		if length > 0 && length+1+n > width {
			lines = append(lines, line.String())
			line.Reset()
			length = 0
		}
		if length > 0 {
			line.WriteByte(' ')
			length++
		}
		line.WriteString(word)
		length += n
	}
	return append(lines, line.String())
}
