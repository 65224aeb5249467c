package main

import (
	"regexp"
	"strings"
)

// escape returns text that roff prints as it is, anywhere in a line.
func escape(text string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(text)
}

// quoted returns text as one argument of a macro.
func quoted(text string) string { return `"` + strings.ReplaceAll(escape(text), `"`, `\(dq`) + `"` }

// line protects a line of text from being taken for a request.
func line(text string) string {
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, `'`) {
		return `\&` + text
	}
	return text
}

// inline turns the marks within a paragraph into fonts: code and strong text bold, emphasis italic. A link becomes its text.
func inline(text string) string {
	link := regexp.MustCompile(`\[([^\]]*)\]\(([^)]*)\)`)
	var out strings.Builder
	for rest := text; rest != ""; {
		i := strings.IndexAny(rest, "`*[")
		if i < 0 {
			out.WriteString(escape(rest))
			break
		}
		out.WriteString(escape(rest[:i]))
		rest = rest[i:]
		if at := link.FindStringSubmatchIndex(rest); at != nil && at[0] == 0 {
			out.WriteString(inline(rest[at[2]:at[3]]))
			if target := rest[at[4]:at[5]]; strings.Contains(target, "://") {
				out.WriteString(" <" + escape(target) + ">")
			}
			rest = rest[at[1]:]
			continue
		}
		inner, after, font, ok := marked(rest)
		if !ok {
			out.WriteString(escape(rest[:1]))
			rest = rest[1:]
			continue
		}
		if font == "code" {
			out.WriteString(`\fB` + escape(inner) + `\fR`)
		} else {
			out.WriteString(`\f` + font + strings.NewReplacer(`\fB`, "", `\fI`, "", `\fR`, "").Replace(inline(inner)) + `\fR`)
		}
		rest = after
	}
	return line(strings.TrimSpace(out.String()))
}

// marked splits text that begins with a mark: what is between it and its end, and what comes behind.
func marked(text string) (inner, after, font string, ok bool) {
	for _, m := range []struct{ mark, font string }{{"``", "code"}, {"`", "code"}, {"**", "B"}, {"*", "I"}} {
		if !strings.HasPrefix(text, m.mark) {
			continue
		}
		inner, after, ok = strings.Cut(text[len(m.mark):], m.mark)
		if !ok || inner == "" || m.font != "code" && strings.HasPrefix(inner, " ") {
			return "", "", "", false
		}
		return inner, after, m.font, true
	}
	return "", "", "", false
}
