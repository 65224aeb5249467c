package doctor

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
)

// TestParseResults: results come through whatever their length, and what was cut off is an error, with those before it.
func TestParseResults(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	var out bytes.Buffer
	s := &steps{out: json.NewEncoder(&out)}
	s.note("first", "", nil)
	s.note("long", long, nil)
	s.note("last", "", io.EOF)
	all, err := parseResults(out.Bytes())
	if err != nil || len(all) != 3 || all[1].Value != long || all[2].Error == "" {
		t.Errorf("%d results, %v", len(all), err)
	}
	all, err = parseResults(out.Bytes()[:out.Len()-3])
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(all) != 2 {
		t.Errorf("cut off: %d results, %v", len(all), err)
	}
}
