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

// TestMappersInOrder: a report is the same each time; of two programs that are missing the first is named.
func TestMappersInOrder(t *testing.T) {
	healthy, without := healthyUser(), healthyUser()
	delete(without.programs, "newuidmap")
	delete(without.programs, "newgidmap")
	for f, want := range map[*fake]string{healthy: "(/usr/bin/newuidmap, /usr/bin/newgidmap)", without: "there is no newuidmap"} {
		for range 50 {
			if all := checkMappers(newMachine(t.Context(), f, optionsOf(f))); len(all) != 1 || !strings.Contains(all[0].Detail, want) {
				t.Fatalf("%+v, want %q", all, want)
			}
		}
	}
}
