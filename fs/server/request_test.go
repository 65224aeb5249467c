package server

import (
	"reflect"
	"strings"
	"testing"

	"plyfs/fs/mountopt"
	"plyfs/internal/exit"
	"plyfs/internal/launch"
)

func TestPersonalityOf(t *testing.T) {
	for argv0, want := range map[string]string{
		"fuse-overlayfs": "fuse-overlayfs", "/usr/bin/fuse-overlayfs": "fuse-overlayfs", "/sbin/mount.plyfs": "mount.plyfs",
		"mount.fuse.plyfs": "mount.fuse.plyfs", "./mount.fuse3.plyfs": "mount.fuse3.plyfs",
	} {
		if p, ok := PersonalityOf(argv0); !ok || p.name != want {
			t.Errorf("%s: %q, %v", argv0, p.name, ok)
		}
	}
	for _, argv0 := range []string{"", "plyfs", "/usr/bin/plyfs", "fuse-overlayfs.bak"} {
		if p, ok := PersonalityOf(argv0); ok {
			t.Errorf("%s: %q", argv0, p.name)
		}
	}
}

func TestParseRequest(t *testing.T) {
	fo, _ := PersonalityOf("fuse-overlayfs")
	helper, _ := PersonalityOf("mount.plyfs")
	plyfs := MountPersonality()
	tests := []struct {
		p    Personality
		args string
		want request // without the Personality
		err  string
	}{
		{p: fo, args: "-o lowerdir=a m", want: request{target: "m", opts: mountopt.Options{LowerDirs: []string{"a"}}}},
		{p: fo, args: "overlay m -o lowerdir=a,dev,suid", want: request{source: "overlay", target: "m", opts: mountopt.Options{
			LowerDirs: []string{"a"}, Dev: mountopt.On, Suid: mountopt.On,
		}}},
		{p: fo, args: "x y m -o ro", want: request{source: "x", target: "m", opts: mountopt.Options{ReadOnly: true}}},
		{p: fo, args: "-z -o bogus,xyzzy=1 m", want: request{
			target:   "m",
			warnings: []string{"unknown argument ignored: -z", "unknown argument ignored: bogus", "unknown argument ignored: xyzzy=1"},
			opts:     mountopt.Options{Unknown: []mountopt.Word{{Key: "bogus"}, {Key: "xyzzy", Value: "1", HasValue: true}}},
		}},
		{p: fo, args: "-f m", want: request{target: "m", foreground: true}},
		{p: fo, args: "-d m", want: request{target: "m", foreground: true, opts: mountopt.Options{Debug: true}}},
		{p: fo, args: "-o debug m", want: request{target: "m", foreground: true, opts: mountopt.Options{Debug: true}}},
		{p: fo, args: "--version", want: request{version: true}},
		{p: fo, args: "-o bad=", err: "no mountpoint specified; usage: fuse-overlayfs [-f] [-d] [-o OPTION[,OPTION]...]... MOUNTPOINT"},
		{p: fo, args: "-o metacopy=x m", err: "option metacopy=x: is not known; give one of on, off"},
		{p: fo, args: "m -o", err: "-o needs an argument; usage: fuse-overlayfs [-f] [-d] [-o OPTION[,OPTION]...]... MOUNTPOINT"},
		{p: helper, args: "spec m -sfn -N 5 -o rw,bogus", want: request{
			source: "spec", target: "m", fake: true, namespace: "5",
			warnings: []string{"unknown argument ignored: bogus"}, opts: mountopt.Options{Writable: true, Unknown: []mountopt.Word{{Key: "bogus"}}},
		}},
		{p: helper, args: "spec m -o bogus", err: "unknown option bogus; see mount.plyfs --help"},
		{p: helper, args: "m", err: "no mountpoint specified behind m; usage: " + helper.usage},
		{p: plyfs, args: "--help", want: request{help: true}},
		{p: plyfs, args: "src m -f", want: request{source: "src", target: "m", foreground: true}},
		{p: plyfs, args: "-z m", err: "unknown flag -z; see plyfs mount --help"},
		{p: plyfs, args: "-o lowrdir=x m", err: "unknown option lowrdir=x; did you mean lowerdir?"},
		{p: plyfs, args: "-o volatile=1 m", err: "unknown option volatile=1; volatile takes no value"},
		{p: plyfs, args: "a b c", err: "more than a source and a mount point given (a word with blanks needs quotes); usage: " + plyfs.usage},
		{p: plyfs, args: "", err: "no mountpoint specified; usage: " + plyfs.usage},
	}
	for _, tt := range tests {
		got, err := parseRequest(tt.p, strings.Fields(tt.args))
		if tt.err != "" {
			if err == nil || err.Error() != tt.err || exit.AsFault(err).Code != exit.Usage {
				t.Errorf("%s %s:\ngot  %v\nwant %s", tt.p.name, tt.args, err, tt.err)
			}
			continue
		}
		got.Personality = Personality{}
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s %s:\ngot  %+v, %v\nwant %+v", tt.p.name, tt.args, got, err, tt.want)
		}
	}
}

func TestLaunchFault(t *testing.T) {
	if err := launchFault(nil); err != nil {
		t.Error(err)
	}
	if f := exit.AsFault(launchFault(&launch.Failure{Code: exit.Mount, Text: "two\nlines"})); f.Code != exit.Mount || f.Text != "two lines" {
		t.Errorf("%+v", f)
	}
	if f := exit.AsFault(launchFault(launch.ErrEnded)); f.Code != exit.Internal {
		t.Errorf("%+v", f)
	}
}
