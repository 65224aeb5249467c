package daemon

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"github.com/urfave/cli/v2"
)

// parseConfig returns the keys of a file in their order. A table is an entry without a key.
func parseConfig(path string, text []byte) ([]entry, error) {
	var values map[string]any
	if err := toml.Unmarshal(text, &values); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, column := at.Position()
			return nil, usagef("%s:%d:%d: %s", path, line, column, strings.TrimPrefix(at.Error(), "toml: "))
		}
		return nil, usagef("%s: %v", path, err)
	}
	positions, err := positionsOf(text)
	if err != nil {
		return nil, usagef("%s: %v", path, err)
	}
	var out []entry
	for _, p := range positions {
		value, table := lookUp(values, p.path), p.path[0]
		inner, isTable := value.(map[string]any)
		switch {
		case isTable && len(p.path) == 1:
			out = append(out, entry{line: p.line, table: table})
			if p.inline {
				for key, v := range inner {
					out = append(out, entry{line: p.line, table: table, key: key, value: v})
				}
			}
		case len(p.path) == 1 && p.header:
			out = append(out, entry{line: p.line, table: "[" + table + "]"})
		case len(p.path) == 1:
			out = append(out, entry{line: p.line, key: table, value: value})
		default:
			out = append(out, entry{line: p.line, table: table, key: strings.Join(p.path[1:], "."), value: value})
		}
	}
	return out, nil
}

// position is where a key stands.
type position struct {
	path []string
	line int
	// header is set for [table] and [[table]], inline for a value that is a table.
	header, inline bool
}

// positionsOf returns the keys of a document that is well-formed.
func positionsOf(text []byte) ([]position, error) {
	var p unstable.Parser
	p.Reset(text)
	var out []position
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.ArrayTable && e.Kind != unstable.KeyValue {
			continue
		}
		at := position{header: e.Kind != unstable.KeyValue}
		if at.header {
			table = nil
		} else {
			at.inline = e.Value().Kind == unstable.InlineTable
		}
		at.path = append(at.path, table...)
		for key := e.Key(); key.Next(); {
			at.path = append(at.path, string(key.Node().Data))
			at.line = p.Shape(key.Node().Raw).Start.Line
		}
		if at.header {
			table = at.path
		}
		out = append(out, at)
	}
	return out, p.Error()
}

// lookUp returns the value at path, or nil.
func lookUp(values map[string]any, path []string) any {
	var v any = values
	for _, key := range path {
		inner, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = inner[key]
	}
	return v
}

// valueOf returns a value of the file as the words that the flag is set to, one after the other.
func valueOf(flag cli.Flag, value any) ([]string, error) {
	switch flag.(type) {
	case *cli.BoolFlag:
		if b, ok := value.(bool); ok {
			return []string{strconv.FormatBool(b)}, nil
		}
		return nil, wanted("true or false", value)
	case *cli.IntFlag, *cli.Int64Flag, *cli.UintFlag, *cli.Uint64Flag:
		if n, ok := value.(int64); ok {
			return []string{strconv.FormatInt(n, 10)}, nil
		}
		return nil, wanted("a whole number", value)
	case *cli.Float64Flag:
		switch n := value.(type) {
		case int64:
			return []string{strconv.FormatInt(n, 10)}, nil
		case float64:
			return []string{strconv.FormatFloat(n, 'g', -1, 64)}, nil
		}
		return nil, wanted("a number", value)
	case *cli.DurationFlag:
		text, ok := value.(string)
		if !ok {
			return nil, wanted(`a duration in quotes, such as "10s"`, value)
		}
		if _, err := time.ParseDuration(text); err != nil {
			return nil, fmt.Errorf("%q is no duration, such as \"10s\"", text)
		}
		return []string{text}, nil
	case *cli.StringSliceFlag:
		list, err := stringsOf(value)
		if err != nil {
			return nil, err
		}
		// In this form an element may have commas.
		return []string{cli.NewStringSlice(list...).Serialize()}, nil //nolint:misspell // the name is cli's
	case *cli.GenericFlag:
		if s, ok := value.(string); ok {
			return []string{s}, nil
		}
		return stringsOf(value)
	default:
		if s, ok := value.(string); ok {
			return []string{s}, nil
		}
		return nil, wanted("a string in quotes", value)
	}
}

// stringsOf returns an array of strings.
func stringsOf(value any) ([]string, error) {
	list, ok := value.([]any)
	if !ok {
		return nil, wanted(`an array of strings, such as ["a", "b"]`, value)
	}
	out := make([]string, 0, len(list))
	for _, v := range list {
		s, ok := v.(string)
		if !ok {
			return nil, wanted("strings in the array", v)
		}
		out = append(out, s)
	}
	return out, nil
}

// wanted says what a value should have been.
func wanted(what string, got any) error {
	kind := "a date or time"
	switch got.(type) {
	case bool:
		kind = "a boolean"
	case string:
		kind = "a string"
	case int64, float64:
		kind = "a number"
	case []any:
		kind = "an array"
	case map[string]any:
		kind = "a table"
	}
	return fmt.Errorf("want %s, not %s", what, kind)
}
