package main

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// tomlText is a TOML file of people's: what is not to be changed in it stays as it is, to the byte.
type tomlText struct {
	// name stands in messages.
	name string
	text []byte
}

// tomlEntry is a line KEY = VALUE.
type tomlEntry struct {
	// path is the key with those of the tables around it, of which table are those of the header above.
	path, table []string
	// from, to and end are offsets: of the value, and of the end of the line.
	valueFrom, valueTo, lineEnd int
	kind                        unstable.Kind
}

// tomlHeader is a line [TABLE].
type tomlHeader struct {
	path    []string
	lineEnd int
}

// parse lists the entries and the headers of tables. Entries of arrays of tables are left out: no key names them.
func (t *tomlText) parse() (entries []tomlEntry, headers []tomlHeader, err error) {
	if err := toml.Unmarshal(t.text, new(map[string]any)); err != nil {
		return nil, nil, fmt.Errorf("%s: %w: correct it first", t.position(err), err)
	}
	var p unstable.Parser
	p.Reset(t.text)
	var table []string
	var arrays [][]string
	inArray := false
	for p.NextExpression() {
		n := p.Expression()
		switch n.Kind {
		case unstable.Table, unstable.ArrayTable:
			var end int
			table, end = keyOf(n)
			if n.Kind == unstable.ArrayTable {
				arrays = append(arrays, table)
			} else {
				headers = append(headers, tomlHeader{table, t.lineEnd(end)})
			}
			inArray = slices.ContainsFunc(arrays, func(a []string) bool {
				return len(a) <= len(table) && slices.Equal(a, table[:len(a)])
			})
		case unstable.KeyValue:
			if inArray {
				continue
			}
			key, _ := keyOf(n)
			from, to := t.valueRange(n)
			entries = append(entries, tomlEntry{
				path: slices.Concat(table, key), table: table, valueFrom: from, valueTo: to,
				lineEnd: t.lineEnd(to), kind: n.Value().Kind,
			})
		}
	}
	return entries, headers, p.Error()
}

// position is the file's name, with the line of a decoder's error.
func (t *tomlText) position(err error) string {
	var d *toml.DecodeError
	if !errors.As(err, &d) {
		return t.name
	}
	line, _ := d.Position()
	return fmt.Sprintf("%s:%d", t.name, line)
}

// keyOf returns the words of a key or header, and where the last one ends.
func keyOf(n *unstable.Node) (words []string, end int) {
	for it := n.Key(); it.Next(); {
		words = append(words, string(it.Node().Data))
		end = int(it.Node().Raw.Offset + it.Node().Raw.Length)
	}
	return words, end
}

// valueRange is where the value of an entry is written.
func (t *tomlText) valueRange(n *unstable.Node) (from, to int) {
	_, keyEnd := keyOf(n)
	to = int(n.Raw.Offset + n.Raw.Length)
	from = keyEnd + bytes.IndexByte(t.text[keyEnd:to], '=') + 1
	for from < to && (t.text[from] == ' ' || t.text[from] == '\t') {
		from++
	}
	return from, from + len(bytes.TrimRight(t.text[from:to], " \t\r\n"))
}

// lineEnd is the offset behind the line break after at.
func (t *tomlText) lineEnd(at int) int {
	if i := bytes.IndexByte(t.text[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(t.text)
}

// get returns the string that path names; ok is false if there is none. A value that is no string is a conflict.
func (t *tomlText) get(path ...string) (value string, ok bool, err error) {
	tree := make(map[string]any)
	if err := toml.Unmarshal(t.text, &tree); err != nil {
		return "", false, fmt.Errorf("%s: %w: correct it first", t.position(err), err)
	}
	var at any = tree
	for _, word := range path {
		m, isTable := at.(map[string]any)
		if !isTable {
			return "", false, t.conflict(path, "is in no table")
		}
		if at, ok = m[word]; !ok {
			return "", false, nil
		}
	}
	if value, ok = at.(string); !ok {
		return "", false, t.conflict(path, "is no string")
	}
	return value, true, nil
}

func (t *tomlText) conflict(path []string, how string) error {
	return fmt.Errorf("%s: %s %s and was %w: set it by hand", t.name, strings.Join(path, "."), how, errInstallConflict)
}

// set makes path the string value, with the least change of the text: the value is replaced where it stands, or a line is
// added behind those of its table, or the table is added at the end.
func (t *tomlText) set(value string, path ...string) error {
	quoted, err := tomlString(value)
	if err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	before := make(map[string]any)
	if err := toml.Unmarshal(t.text, &before); err != nil {
		return fmt.Errorf("%s: %w: correct it first", t.position(err), err)
	}
	entries, headers, err := t.parse()
	if err != nil {
		return err
	}
	changed, err := t.place(entries, headers, quoted, path)
	if err != nil {
		return err
	}
	// The text is another's: what came out has to be what went in, and the one value.
	after := make(map[string]any)
	if err := toml.Unmarshal(changed, &after); err != nil {
		return t.conflict(path, "cannot be added here")
	}
	if !assign(before, value, path) || !reflect.DeepEqual(before, after) {
		return t.conflict(path, "cannot be added here")
	}
	t.text = changed
	return nil
}

// place returns the text with path set to the quoted value.
func (t *tomlText) place(entries []tomlEntry, headers []tomlHeader, quoted string, path []string) ([]byte, error) {
	table, key := path[:len(path)-1], path[len(path)-1]
	behind, line := -1, key+" = "+quoted
	for _, e := range entries {
		switch {
		case slices.Equal(e.path, path):
			if e.kind != unstable.String {
				return nil, t.conflict(path, "is no string")
			}
			return t.splice(e.valueFrom, e.valueTo, quoted), nil
		case len(e.path) <= len(table) && slices.Equal(e.path, table[:len(e.path)]):
			return nil, t.conflict(path, "is inside an inline table")
		case len(e.path) == len(path) && slices.Equal(e.path[:len(table)], table):
			behind = e.lineEnd
			line = strings.Join(append(slices.Clone(path[len(e.table):len(table)]), key), ".") + " = " + quoted
		}
	}
	for _, h := range headers {
		if slices.Equal(h.path, table) && behind < 0 {
			behind = t.afterExample(h.lineEnd, key)
		}
	}
	eol := t.lineBreak()
	if behind >= 0 {
		return t.splice(behind, behind, t.startLine(behind)+t.indentOf(behind)+line+eol), nil
	}
	at := len(t.text)
	gap := t.startLine(at)
	if at > 0 {
		gap += eol
	}
	text := gap + "[" + strings.Join(table, ".") + "]" + eol + line + eol
	return t.splice(at, at, text), nil
}

// afterExample returns the offset behind a comment in the table that begins at from which shows how key is set, or from.
func (t *tomlText) afterExample(from int, key string) int {
	for at := from; at < len(t.text); {
		end := t.lineEnd(at)
		line := strings.TrimSpace(string(t.text[at:end]))
		if strings.HasPrefix(line, "[") {
			break
		}
		if word, isComment := strings.CutPrefix(line, "#"); isComment {
			if name, _, isEntry := strings.Cut(word, "="); isEntry && strings.TrimSpace(name) == key {
				return end
			}
		}
		at = end
	}
	return from
}

func (t *tomlText) splice(from, to int, text string) []byte {
	return slices.Concat(t.text[:from], []byte(text), t.text[to:])
}

// lineBreak is the one that the text has.
func (t *tomlText) lineBreak() string {
	if i := bytes.IndexByte(t.text, '\n'); i > 0 && t.text[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

// startLine is what has to stand at an offset before a new line can: a line break, if the last line has none.
func (t *tomlText) startLine(at int) string {
	if at > 0 && t.text[at-1] != '\n' {
		return t.lineBreak()
	}
	return ""
}

// indentOf is the indentation of the line before the offset at.
func (t *tomlText) indentOf(at int) string {
	end := at
	if end > 0 && t.text[end-1] == '\n' {
		end--
	}
	line := t.text[bytes.LastIndexByte(t.text[:end], '\n')+1 : at]
	return string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
}

// assign sets path in a tree; false if something on the way is no table.
func assign(tree map[string]any, value string, path []string) bool {
	for _, word := range path[:len(path)-1] {
		next, ok := tree[word]
		if !ok {
			next = make(map[string]any)
			tree[word] = next
		}
		if tree, ok = next.(map[string]any); !ok {
			return false
		}
	}
	tree[path[len(path)-1]] = value
	return true
}

// tomlString quotes a string.
func tomlString(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("%q is not UTF-8, as TOML has to be", s)
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String(), nil
}
