package mountopt

import "strings"

// Error is a known option with a value that it can't have.
type Error struct {
	// Option is the option's name.
	Option string
	// Value is what was given, and HasValue whether anything was.
	Value    string
	HasValue bool
	// Problem says what is wrong, Remedy what to write instead.
	Problem, Remedy string
}

// Error names option, value, problem and remedy in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("option ")
	b.WriteString(e.Option)
	if e.HasValue {
		b.WriteByte('=')
		b.WriteString(printable(e.Value))
	}
	b.WriteString(": ")
	b.WriteString(e.Problem)
	if e.Remedy != "" {
		b.WriteString("; ")
		b.WriteString(e.Remedy)
	}
	return b.String()
}

// printable shortens long values and keeps the message in one line.
func printable(s string) string {
	const limit = 120
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return s
}

// bad is an *Error about t.
func (t token) bad(problem, remedy string) error {
	return &Error{
		Option: t.key, Value: unescape(t.value), HasValue: t.hasValue,
		Problem: problem, Remedy: remedy,
	}
}
