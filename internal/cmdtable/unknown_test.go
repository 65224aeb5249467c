package cmdtable_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/urfave/cli/v2"

	"plyfs/internal/cmdtable"
)

// TestUsageErrors: what is said of a flag that can't be taken names the way out.
func TestUsageErrors(t *testing.T) {
	refuse := func(_ *cli.Context, err error, _ bool) error { return err }
	run := func(args ...string) error {
		app := &cli.App{
			Writer: io.Discard, ErrWriter: io.Discard, ExitErrHandler: func(*cli.Context, error) {},
			Commands: cmdtable.Guess([]*cli.Command{{
				Name: "layer", OnUsageError: refuse,
				Subcommands: []*cli.Command{{
					Name: "ls", OnUsageError: refuse, Action: func(*cli.Context) error { return nil },
					Flags: []cli.Flag{&cli.StringFlag{Name: "root"}, &cli.DurationFlag{Name: "wait", Aliases: []string{"w"}}, &cli.IntFlag{Name: "limit"}},
				}},
			}}),
		}
		return app.RunContext(context.Background(), append([]string{"plyfs"}, args...))
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"layer", "--root", "x", "ls"}, "flag --root belongs behind the command, as in `layer ls --root`"},
		{[]string{"layer", "--other", "ls"}, "unknown flag --other"},
		{[]string{"layer", "ls", "--rot", "x"}, "unknown flag --rot (did you mean --root?)"},
		{[]string{"layer", "ls", "--wait", "3"}, `flag --wait: "3" is not a duration, such as 500ms, 10s or 2m30s`},
		{[]string{"layer", "ls", "-w", "x"}, `flag -w: "x" is not a duration, such as 500ms, 10s or 2m30s`},
		{[]string{"layer", "ls", "--limit", "1.5"}, `flag --limit: "1.5" is not a number`},
	} {
		if err := run(c.args...); err == nil || err.Error() != c.want {
			t.Errorf("%q: %v; want %s", c.args, err, c.want)
		}
	}
	other := errors.New("another")
	if err := cmdtable.GuessFlag(other, nil); !errors.Is(err, other) {
		t.Error(err)
	}
}
