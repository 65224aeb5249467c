package server

import (
	"strings"
	"testing"

	"plyfs/cow/layer"
)

// TestPathsEnv: no list of paths keeps a builder from its start, or is given wrongly.
func TestPathsEnv(t *testing.T) {
	many := make([]*layer.Layer, 500)
	for i := range many {
		many[i] = &layer.Layer{Path: "/" + strings.Repeat("long/", 60)}
	}
	for name, c := range map[string]struct {
		layers []*layer.Layer
		want   string
	}{
		"usual":  {[]*layer.Layer{{Path: "/a"}, {Path: "/b c"}}, `PLYFS_LAYER_PATHS=["/a","/b c"]`},
		"long":   {many, ""},
		"binary": {[]*layer.Layer{{Path: "/a\xff"}}, ""},
	} {
		if got, err := pathsEnv(c.layers); err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %.100q, %v", name, got, err)
		}
	}
}
