package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"plyfs/drivers"
)

// change is one instruction of --change, parsed.
type change struct {
	keyword string
	text    string
	apply   func(config map[string]json.RawMessage) error
}

// parseChanges reads instructions in the words of a Dockerfile. The error wraps drivers.ErrInvalid and names the instruction.
func parseChanges(all []string) ([]change, error) {
	out := make([]change, 0, len(all))
	for _, line := range all {
		c, err := parseChange(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("change %q: %w: %w", line, err, drivers.ErrInvalid)
		}
		out = append(out, c)
	}
	return out, nil
}

func parseChange(line string) (c change, err error) {
	word, rest, _ := strings.Cut(line, " ")
	if k, v, ok := strings.Cut(word, "="); ok && rest == "" {
		// podman also takes KEYWORD=VALUE.
		word, rest = k, v
	}
	c.keyword, c.text = strings.ToUpper(word), strings.TrimSpace(rest)
	if c.text == "" {
		return c, errors.New("nothing behind the instruction")
	}
	switch c.keyword {
	case "CMD":
		c.apply, err = setCommand("Cmd", c.text)
	case "ENTRYPOINT":
		c.apply, err = setCommand("Entrypoint", c.text)
	case "ENV":
		c.apply, err = setPairs("Env", c.text, mergeEnv)
	case "LABEL":
		c.apply, err = setPairs("Labels", c.text, mergeLabels)
	case "EXPOSE":
		c.apply, err = setKeys("ExposedPorts", c.text, parsePort)
	case "VOLUME":
		c.apply, err = setKeys("Volumes", c.text, nil)
	case "USER":
		c.apply = setText("User", c.text)
	case "STOPSIGNAL":
		c.apply = setText("StopSignal", c.text)
	case "WORKDIR":
		c.apply = setWorkingDir(c.text)
	case "ONBUILD":
		c.apply = addText("OnBuild", c.text)
	default:
		err = errors.New("not an instruction that a commit can apply; there are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, " +
			"STOPSIGNAL, USER, VOLUME and WORKDIR")
	}
	return c, err
}

// edit changes one field of the config in its own type.
func edit[T any](config map[string]json.RawMessage, key string, fn func(*T)) error {
	var v T
	if raw := config[key]; raw != nil {
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("config, %s: %w: %w", key, err, ErrMalformed)
		}
	}
	fn(&v)
	raw, err := json.Marshal(v)
	config[key] = raw
	return err
}

func setText(key, text string) func(map[string]json.RawMessage) error {
	return func(config map[string]json.RawMessage) error { return edit(config, key, func(v *string) { *v = text }) }
}

func addText(key, text string) func(map[string]json.RawMessage) error {
	return func(config map[string]json.RawMessage) error {
		return edit(config, key, func(v *[]string) { *v = append(*v, text) })
	}
}

// setWorkingDir takes a relative directory as beneath the one that was set before.
func setWorkingDir(text string) func(map[string]json.RawMessage) error {
	return func(config map[string]json.RawMessage) error {
		return edit(config, "WorkingDir", func(v *string) {
			if !path.IsAbs(text) {
				text = path.Join("/", *v, text)
			}
			*v = path.Clean(text)
		})
	}
}

// setCommand reads a JSON array, or words for a shell.
func setCommand(key, text string) (func(map[string]json.RawMessage) error, error) {
	argv := []string{"/bin/sh", "-c", text}
	if strings.HasPrefix(text, "[") {
		if err := json.Unmarshal([]byte(text), &argv); err != nil {
			return nil, fmt.Errorf("not a JSON array of strings: %w", err)
		}
	}
	return func(config map[string]json.RawMessage) error {
		return edit(config, key, func(v *[]string) { *v = argv })
	}, nil
}

// setKeys adds words, or the strings of a JSON array, to a set.
func setKeys(key, text string, normal func(string) (string, error)) (func(map[string]json.RawMessage) error, error) {
	words := strings.Fields(text)
	if strings.HasPrefix(text, "[") {
		words = nil
		if err := json.Unmarshal([]byte(text), &words); err != nil {
			return nil, fmt.Errorf("not a JSON array of strings: %w", err)
		}
	}
	for i, w := range words {
		if normal == nil {
			break
		}
		var err error
		if words[i], err = normal(w); err != nil {
			return nil, err
		}
	}
	return func(config map[string]json.RawMessage) error {
		return edit(config, key, func(v *map[string]struct{}) {
			if *v == nil {
				*v = make(map[string]struct{})
			}
			for _, w := range words {
				(*v)[w] = struct{}{}
			}
		})
	}, nil
}

// parsePort reads PORT[-PORT][/PROTOCOL]; the protocol is tcp if there is none.
func parsePort(s string) (string, error) {
	if !regexp.MustCompile(`^[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp|sctp))?$`).MatchString(s) {
		return "", fmt.Errorf("port %q is not PORT[/PROTOCOL]", s)
	}
	if !strings.Contains(s, "/") {
		s += "/tcp"
	}
	return s, nil
}

type pair struct{ key, value string }

// setPairs reads KEY=VALUE words, or one KEY VALUE.
func setPairs(key, text string, merge func(config map[string]json.RawMessage, key string, pairs []pair) error,
) (func(map[string]json.RawMessage) error, error) {
	words, err := splitWords(text)
	if err != nil {
		return nil, err
	}
	var pairs []pair
	if !strings.Contains(words[0], "=") {
		name, value, ok := strings.Cut(text, " ")
		if !ok {
			return nil, fmt.Errorf("%q is not KEY=VALUE", text)
		}
		words, pairs = nil, []pair{{name, strings.TrimSpace(value)}}
	}
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not KEY=VALUE", w)
		}
		pairs = append(pairs, pair{name, value})
	}
	return func(config map[string]json.RawMessage) error { return merge(config, key, pairs) }, nil
}

func mergeEnv(config map[string]json.RawMessage, key string, pairs []pair) error {
	return edit(config, key, func(v *[]string) {
		for _, p := range pairs {
			*v = slices.DeleteFunc(*v, func(s string) bool { return strings.HasPrefix(s, p.key+"=") })
			*v = append(*v, p.key+"="+p.value)
		}
	})
}

func mergeLabels(config map[string]json.RawMessage, key string, pairs []pair) error {
	return edit(config, key, func(v *map[string]string) {
		if *v == nil {
			*v = make(map[string]string)
		}
		for _, p := range pairs {
			(*v)[p.key] = p.value
		}
	})
}

// splitWords splits at blanks outside of quotes and behind no backslash, as a Dockerfile does.
func splitWords(text string) (words []string, err error) {
	var b strings.Builder
	var quote rune
	inWord, escaped := false, false
	for _, r := range text {
		switch {
		case escaped:
			b.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				b.WriteRune(r)
			}
		case r == '"' || r == '\'':
			quote, inWord = r, true
		case r == ' ' || r == '\t':
			if inWord {
				words = append(words, b.String())
				b.Reset()
			}
			inWord = false
		default:
			b.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote does not end")
	}
	if inWord {
		words = append(words, b.String())
	}
	return words, nil
}
