package main

import (
	"fmt"
	"regexp"
	"strings"
)

// section returns what stands below the heading in a Markdown text, to the next heading that is not below it.
func section(text, heading string) (string, error) {
	var out []string
	depth := 0
	for _, l := range strings.Split(text, "\n") {
		level := headingLevel(l)
		switch {
		case depth > 0 && level > 0 && level <= depth:
			return strings.Join(out, "\n"), nil
		case depth > 0:
			out = append(out, l)
		case level > 0 && strings.TrimSpace(strings.TrimLeft(l, "#")) == heading:
			depth = level
		}
	}
	if depth == 0 {
		return "", fmt.Errorf("docs/cli.md has no section %q", heading)
	}
	return strings.Join(out, "\n"), nil
}

// headingLevel is the number of # that a heading begins with, 0 for other lines.
func headingLevel(l string) int {
	rest := strings.TrimLeft(l, "#")
	if rest == l || !strings.HasPrefix(rest, " ") {
		return 0
	}
	return len(l) - len(rest)
}

// before returns what stands in front of the first heading of a text that has none at its beginning.
func before(text string) string {
	i := regexp.MustCompile(`(?m)^#+ `).FindStringIndex(text)
	if i == nil {
		return text
	}
	return text[:i[0]]
}

// blocks turns Markdown into roff. It knows the forms that the project's documents use: paragraphs, headings, lists, tables and
// code. A heading becomes a subsection.
func blocks(text string) string {
	var b builder
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); {
		l := lines[i]
		switch {
		case strings.TrimSpace(l) == "":
			b.closeParagraph()
			i++
		case headingLevel(l) > 0:
			b.closeParagraph()
			b.printf(".SS %s\n", quoted(strings.ReplaceAll(strings.TrimSpace(strings.TrimLeft(l, "#")), "`", "")))
			i++
		case strings.HasPrefix(l, "```"):
			i = b.fenced(lines, i)
		case strings.HasPrefix(l, "    ") && b.paragraph == nil:
			i = b.indented(lines, i)
		case strings.HasPrefix(l, "|"):
			i = b.table(lines, i)
		case bullet(l) != "":
			i = b.item(lines, i)
		default:
			b.paragraph = append(b.paragraph, strings.TrimSpace(l))
			i++
		}
	}
	b.closeParagraph()
	// A heading, which the caller writes in front too, begins a paragraph by itself.
	all := strings.TrimPrefix(b.String(), ".PP\n")
	return regexp.MustCompile(`(?m)^(\.SS .*\n)\.PP\n`).ReplaceAllString(all, "$1")
}

// builder collects the roff of blocks.
type builder struct {
	strings.Builder
	paragraph []string
}

func (b *builder) printf(format string, args ...any) { fmt.Fprintf(&b.Builder, format, args...) }

// closeParagraph ends the lines of a paragraph.
func (b *builder) closeParagraph() {
	if len(b.paragraph) > 0 {
		b.printf(".PP\n%s\n", inline(strings.Join(b.paragraph, " ")))
		b.paragraph = nil
	}
}

// fenced takes a block of code between ``` and returns the line behind it.
func (b *builder) fenced(lines []string, i int) int {
	b.closeParagraph()
	var code []string
	for i++; i < len(lines) && !strings.HasPrefix(lines[i], "```"); i++ {
		code = append(code, lines[i])
	}
	b.code(code)
	return i + 1
}

// indented takes a block of code by its blanks.
func (b *builder) indented(lines []string, i int) int {
	var code []string
	for ; i < len(lines) && strings.HasPrefix(lines[i], "    "); i++ {
		code = append(code, lines[i][4:])
	}
	b.code(code)
	return i
}

func (b *builder) code(lines []string) {
	b.printf(".PP\n.RS 4\n.EX\n")
	for _, l := range lines {
		b.printf("%s\n", line(escape(l)))
	}
	b.printf(".EE\n.RE\n")
}

// bullet returns what an item of a list begins with, or nothing.
func bullet(l string) string { return regexp.MustCompile(`^(?:\* |- |[0-9]+\. )`).FindString(l) }

// item takes an item of a list with the lines that continue it.
func (b *builder) item(lines []string, i int) int {
	b.closeParagraph()
	mark := bullet(lines[i])
	text := []string{strings.TrimSpace(strings.TrimPrefix(lines[i], mark))}
	for i++; i < len(lines) && strings.HasPrefix(lines[i], "  "); i++ {
		text = append(text, strings.TrimSpace(lines[i]))
	}
	tag, width := `\(bu`, 2
	if mark[0] >= '0' && mark[0] <= '9' {
		tag, width = escape(strings.TrimSpace(mark)), 4
	}
	b.printf(".IP %s %d\n%s\n", tag, width, inline(strings.Join(text, " ")))
	return i
}

// table takes a table: each row becomes a tagged paragraph, what is right of the second column is named by its heading.
func (b *builder) table(lines []string, i int) int {
	b.closeParagraph()
	var heads []string
	for row := 0; i < len(lines) && strings.HasPrefix(lines[i], "|"); i, row = i+1, row+1 {
		cells := cellsOf(lines[i])
		switch row {
		case 0:
			heads = cells
			continue
		case 1:
			continue // the line of dashes
		}
		b.printf(".TP\n%s\n", inline(cells[0]))
		var parts []string
		for n, c := range cells[1:] {
			switch {
			case c == "":
			case n == 0:
				parts = append(parts, c)
			case n+1 < len(heads):
				parts = append(parts, "("+heads[n+1]+": "+c+")")
			}
		}
		if text := inline(strings.Join(parts, " ")); text != "" {
			b.printf("%s\n", text)
		} else {
			b.printf("\\&\n")
		}
	}
	return i
}

// cellsOf splits a row at the bars that no backslash protects.
func cellsOf(row string) []string {
	const bar = "\x00"
	row = strings.ReplaceAll(strings.Trim(strings.TrimSpace(row), "|"), `\|`, bar)
	var out []string
	for _, c := range strings.Split(row, "|") {
		out = append(out, strings.TrimSpace(strings.ReplaceAll(c, bar, "|")))
	}
	return out
}
