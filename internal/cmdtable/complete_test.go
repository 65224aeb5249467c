package cmdtable_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"plyfs/internal/cmdtable"
)

// table is that of a small program.
func table() []cmdtable.Command {
	return cmdtable.Of("p", []*cli.Command{
		{
			Name: "image", Usage: "images",
			Subcommands: []*cli.Command{
				{Name: "ls", UsageText: "p image ls [--json]", Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}}},
				{
					Name: "rm", UsageText: "p image rm [--root DIR] IMAGE...",
					Flags: []cli.Flag{
						&cli.StringFlag{Name: "root", Usage: "`DIR` of the store", EnvVars: []string{"P_ROOT"}},
						&cli.BoolFlag{Name: "force", Aliases: []string{"f"}},
					},
				},
				{Name: "import", UsageText: "p image import FILE|DIR|-"},
			},
		},
		{Name: "container", Subcommands: []*cli.Command{{Name: "rm", UsageText: "p container rm NAME..."}}},
		{Name: "completion", UsageText: "p completion bash|zsh|fish"},
		{
			Name: "serve",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "log-level", Value: "info"}, &cli.StringFlag{Name: "driver"}, &cli.IntFlag{Name: "n", Value: 3},
			},
		},
		{Name: "secret", Hidden: true},
	})
}

func TestComplete(t *testing.T) {
	for _, c := range []struct {
		line string // the words, the last one being completed
		kind cmdtable.Kind
		want string
	}{
		{"", "word", "image container completion serve"},
		{"co", "word", "container completion"},
		{"sec", "word", ""},
		{"image ", "word", "ls rm import"},
		{"image r", "word", "rm"},
		{"image ls -", "word", "--json --help"},
		{"image rm ", "image", ""},
		{"image rm x ", "image", ""},
		{"image rm --root ", "dir", ""},
		{"image rm --root /x ", "image", ""},
		{"image rm --root=/x ", "image", ""},
		{"image rm --root=/", "dir", ""},
		{"image rm --f", "word", "--force"},
		{"image rm -f ", "image", ""},
		{"image rm -- -", "image", ""},
		{"image import ", "file", ""},
		{"container rm a", "container", ""},
		{"completion ", "word", "bash zsh fish"},
		{"completion z", "word", "zsh"},
		{"serve --log-level ", "word", "debug info warn error"},
		{"serve --log-level=w", "word", "--log-level=warn"},
		{"serve --driver ", "driver", ""},
		{"nonsense ", "", ""},
		{"image nonsense -", "", ""},
		{"--flag im", "word", "image"},
	} {
		kind, list := cmdtable.Complete(table(), strings.Split(c.line, " "))
		var got []string
		for _, l := range list {
			got = append(got, l.Word)
		}
		if kind != c.kind || strings.Join(got, " ") != c.want {
			t.Errorf("%q: %q %v, want %q %q", c.line, kind, got, c.kind, c.want)
		}
	}
	if kind, list := cmdtable.Complete(table(), nil); kind != cmdtable.KindWord || len(list) != 4 {
		t.Errorf("without words: %q %v", kind, list)
	}
}

func TestOf(t *testing.T) {
	serve := cmdtable.Find(table(), "serve")
	if serve == nil || serve.Synopsis != "p serve [FLAG]..." || cmdtable.Find(table(), "x") != nil {
		t.Fatalf("serve is %+v", serve)
	}
	rm := cmdtable.Find(cmdtable.Find(table(), "image").Commands, "rm")
	want := cmdtable.Flag{
		Names: []string{"root"}, Usage: "DIR of the store", Value: "DIR", Kind: "string", Env: []string{"P_ROOT"},
	}
	if !reflect.DeepEqual(rm.Flags[0], want) {
		t.Errorf("got %+v, want %+v", rm.Flags[0], want)
	}
	if force := rm.Flags[1]; force.Value != "" || force.Kind != "boolean" || !slices.Equal(force.Names, []string{"force", "f"}) {
		t.Errorf("got %+v", force)
	}
	if n := serve.Flags[2]; n.Value != "value" || n.Default != "3" || n.Kind != "number" {
		t.Errorf("got %+v", n)
	}
	text, err := json.Marshal(table())
	if err != nil {
		t.Fatal(err)
	}
	var back []cmdtable.Command
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, table()) {
		t.Errorf("through JSON: %v\n%+v", err, back)
	}
}
