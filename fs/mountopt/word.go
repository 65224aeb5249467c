package mountopt

import "strings"

// token is one element of an option string. Its value keeps the escapes, for lists that split it further.
type token struct {
	key      string // escapes removed
	value    string // escapes kept, surrounding quotes removed
	hasValue bool
}

// split cuts s at its unescaped, unquoted commas and drops empty elements.
func split(s string) []token {
	var out []token
	for len(s) > 0 {
		var t token
		t, s = next(s)
		if t.key != "" || t.hasValue {
			out = append(out, t)
		}
	}
	return out
}

// next takes the first element off s.
func next(s string) (t token, rest string) {
	end := scan(s, ",=")
	t.key = unescape(s[:end])
	if end == len(s) {
		return t, ""
	}
	if s[end] == ',' {
		return t, s[end+1:]
	}
	t.hasValue = true
	s = s[end+1:]
	if inner, after, ok := quoted(s); ok {
		t.value = inner
		return t, strings.TrimPrefix(after, ",")
	}
	end = scan(s, ",")
	t.value = s[:end]
	if end < len(s) {
		end++
	}
	return t, s[end:]
}

// quoted recognises a value in double quotes. A quote that is not closed right before a comma or the end is an ordinary
// character of a path.
func quoted(s string) (inner, after string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		return "", s, false
	}
	end := 1 + scan(s[1:], `"`)
	if end >= len(s) {
		return "", s, false
	}
	after = s[end+1:]
	if after != "" && after[0] != ',' {
		return "", s, false
	}
	return s[1:end], after, true
}

// scan returns the index of the first unescaped byte of s that is one of stops, len(s) if there is none.
func scan(s, stops string) int {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case strings.IndexByte(stops, s[i]) >= 0:
			return i
		}
	}
	return len(s)
}

// unescape removes one level of backslashes, \ooo (three octal digits) included, as libfuse's fuse_opt_parse does.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if c, ok := octal(s[i+1:]); ok {
			b.WriteByte(c)
			i += 3
			continue
		}
		i++
		b.WriteByte(s[i])
	}
	return b.String()
}

// octal reads the three octal digits at the beginning of s as a byte.
func octal(s string) (byte, bool) {
	if len(s) < 3 || s[0] < '0' || s[0] > '3' || s[1] < '0' || s[1] > '7' || s[2] < '0' || s[2] > '7' {
		return 0, false
	}
	return (s[0]-'0')<<6 | (s[1]-'0')<<3 | (s[2] - '0'), true
}

// unescapePath is unescape for layer paths. Callers that were written for fuse-overlayfs escape a colon twice (libfuse
// takes one backslash, fuse-overlayfs the other), callers that know the kernel once; both mean the colon.
func unescapePath(s string) string {
	return unescape(strings.ReplaceAll(s, `\\:`, `\:`))
}

// splitPaths cuts a lowerdir value at its unescaped colons.
func splitPaths(s string) []string {
	var out []string
	for start, i := 0, 0; ; i++ {
		switch {
		case i >= len(s):
			return append(out, unescapePath(s[start:]))
		case strings.HasPrefix(s[i:], `\\:`):
			i += 2
		case s[i] == '\\':
			i++
		case s[i] == ':':
			out = append(out, unescapePath(s[start:i]))
			start = i + 1
		}
	}
}

// escape is the inverse of unescape for a word's key (also == "=") or value, and of splitPaths for one path (also == ":").
// A backslash is written in octal: it then can't combine with what follows.
func escape(s, also string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			b.WriteString(`\134`)
		case c == ',' || strings.IndexByte(also, c) >= 0 || (c == '"' && i == 0):
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// word removes the escapes of t.
func (t token) word() Word {
	return Word{Key: t.key, Value: unescape(t.value), HasValue: t.hasValue}
}

// String returns w as an option string that parses to w again.
func (w Word) String() string {
	if !w.HasValue {
		return escape(w.Key, "=")
	}
	return escape(w.Key, "=") + "=" + escape(w.Value, "")
}
