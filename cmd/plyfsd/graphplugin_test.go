package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"plyfs/drivers/graphplugin"
)

// configured is what the flags of plyfs graphplugin come to.
func configured(t *testing.T, flags ...string) (conf graphplugin.Config, err error) {
	t.Helper()
	app := &cli.App{
		Flags:          graphpluginCommand().Flags,
		Writer:         &bytes.Buffer{},
		ErrWriter:      &bytes.Buffer{},
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			conf, err = graphpluginConfig(c)
			return err
		},
	}
	err = app.Run(append([]string{"graphplugin"}, flags...))
	return conf, err
}

func TestGraphpluginConfig(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", "/home/x/data")
	for _, c := range []struct {
		flags []string
		state string
	}{
		{nil, "graphplugin/plyfs"},
		{[]string{"--address", "unix:///run/docker/plugins/layers.sock"}, "graphplugin/layers"},
		{[]string{"--state-dir", "/mnt/state"}, "/mnt/state"},
	} {
		conf, err := configured(t, c.flags...)
		if err != nil || !filepath.IsAbs(conf.State) || !strings.HasSuffix(conf.State, c.state) {
			t.Errorf("%q: the state is in %q, %v; want %s", c.flags, conf.State, err, c.state)
		}
	}
	conf, err := configured(t, "--driver", "vfs", "--driver-opt", "a=b=c", "--driver-opt", "flag")
	if err != nil || conf.Driver != "vfs" || conf.Options["a"] != "b=c" || len(conf.Options) != 2 {
		t.Errorf("options are %q of driver %q, %v", conf.Options, conf.Driver, err)
	}
	for _, flags := range [][]string{
		{"--address", "tcp://127.0.0.1:1234"}, {"--driver-opt", "=x"}, {"--driver", "nope"}, {"--driver", "aufs"},
	} {
		if _, err := configured(t, flags...); err == nil {
			t.Errorf("%q are accepted", flags)
		}
	}
}
