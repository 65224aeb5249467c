package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// setJSON adds a string to the object that text is, without touching anything else in it: other keys keep their order and
// form. Empty text is an empty object. A key that is there already is a conflict.
func setJSON(name string, text []byte, key, value string) ([]byte, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("{}\n")
	}
	keys, err := objectKeys(name, text)
	if err != nil {
		return nil, err
	}
	if _, ok := keys[key]; ok {
		return nil, fmt.Errorf("%s: %s is set and was %w", name, key, errInstallConflict)
	}
	quotedKey, err := json.Marshal(key)
	if err != nil {
		return nil, err
	}
	quoted, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	// objectKeys has seen that the first thing is the brace.
	at := bytes.IndexByte(text, '{') + 1
	rest := text[at:]
	blank := rest[:len(rest)-len(bytes.TrimLeft(rest, " \t\r\n"))]
	entry := string(quotedKey) + ": " + string(quoted)
	switch {
	case len(keys) == 0:
		tail := strings.TrimLeft(string(rest), " \t\r\n")
		return []byte(string(text[:at]) + "\n  " + entry + "\n" + tail), nil
	case bytes.ContainsRune(blank, '\n'):
		return []byte(string(text[:at]) + string(blank) + entry + "," + string(rest)), nil
	}
	return []byte(string(text[:at]) + string(blank) + entry + ", " + string(rest[len(blank):])), nil
}

// objectKeys returns the keys of the object that text is.
func objectKeys(name string, text []byte) (map[string]json.RawMessage, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	keys := make(map[string]json.RawMessage)
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&keys); err != nil {
		return nil, fmt.Errorf("%s: not a JSON object: %w: correct it first", name, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: something follows the JSON object: correct it first", name)
	}
	if keys == nil {
		return nil, fmt.Errorf("%s: null in place of a JSON object: correct it first", name)
	}
	return keys, nil
}

// stringIn returns the string that a key of an object is, "" if it is missing.
func stringIn(name string, keys map[string]json.RawMessage, key string) (string, error) {
	raw, ok := keys[key]
	if !ok {
		return "", nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("%s: %s: %w: correct it first", name, key, err)
	}
	return s, nil
}
