package server

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/fs/fusefs"
	"plyfs/fs/mountopt"
	"plyfs/fs/union"
	"plyfs/internal/exit"
)

func options(t *testing.T, s string) mountopt.Options {
	t.Helper()
	o, err := mountopt.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func id(n uint32) *uint32 { return &n }

func TestUnionOptions(t *testing.T) {
	tests := []struct {
		opts string
		env  environment
		want union.Options
	}{
		{"", environment{}, union.Options{}},
		{"ro,upperdir=u", environment{}, union.Options{ReadOnly: true}},
		{
			"uidmapping=0:1000:1:1:100000:65536,gidmapping=0:5:1",
			environment{},
			union.Options{UIDMap: []union.IDRange{{Disk: 0, Mount: 1000, Len: 1}, {Disk: 1, Mount: 100000, Len: 65536}}, GIDMap: []union.IDRange{{Disk: 0, Mount: 5, Len: 1}}},
		},
		{"squash_to_root", environment{}, union.Options{SquashUID: id(0), SquashGID: id(0)}},
		{"squash_to_root,squash_to_uid=7", environment{}, union.Options{SquashUID: id(7), SquashGID: id(0)}},
		{"squash_to_gid=8", environment{}, union.Options{SquashGID: id(8)}},
		{"whiteout=aufs", environment{}, union.Options{Whiteout: union.WhiteoutAUFS}},
		{"", environment{aufsWhiteouts: true}, union.Options{Whiteout: union.WhiteoutAUFS}},
		{"whiteout=kernel", environment{aufsWhiteouts: true}, union.Options{Whiteout: union.WhiteoutKernel}},
		{"xattr_permissions=1", environment{}, union.Options{XattrPermissions: union.XattrPermissionsPrivileged}},
		{"xattr_permissions=2", environment{}, union.Options{XattrPermissions: union.XattrPermissionsUser}},
		{"redirect_dir=on", environment{}, union.Options{RedirectDir: union.RedirectOn}},
		{"redirect_dir=follow", environment{}, union.Options{RedirectDir: union.RedirectFollow}},
		{"redirect_dir=off", environment{}, union.Options{RedirectDir: union.RedirectFollow}},
		{"redirect_dir=nofollow", environment{}, union.Options{RedirectDir: union.RedirectOff}},
		{"metacopy=on,index=on,fsync=1", environment{}, union.Options{}},
		{"timeout=0", environment{}, union.Options{Live: true}},
		{"metacopy=off,hardlink_index=off,fsync=0", environment{}, union.Options{NoMetacopy: true, NoIndex: true, NoFsync: true}},
		{"quota_bytes=1m,quota_inodes=5", environment{}, union.Options{Quota: union.Quota{Bytes: 1 << 20, Inodes: 5}}},
		{
			"noacl,noxattrs=1,static_nlink,userxattr,volatile,max_open_files=9",
			environment{},
			union.Options{NoACL: true, NoXattrs: true, StaticNlink: true, UserXattr: true, Volatile: true, MaxOpenFiles: 9},
		},
	}
	for _, tt := range tests {
		if got := unionOptions(options(t, tt.opts), tt.env); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q %+v:\ngot  %+v\nwant %+v", tt.opts, tt.env, got, tt.want)
		}
	}
}

func TestServeConfig(t *testing.T) {
	tests := []struct {
		opts string
		want fusefs.Config
	}{
		{"upperdir=u", fusefs.Config{Timeout: fusefs.Unlimited}},
		{"", fusefs.Config{Timeout: fusefs.Unlimited, ReadOnly: true}},
		{"upperdir=u,ro,timeout=0", fusefs.Config{ReadOnly: true}},
		{"upperdir=u,timeout=1.5,noacl", fusefs.Config{Timeout: 1500 * time.Millisecond}},
		{"upperdir=u,noxattrs=1", fusefs.Config{Timeout: fusefs.Unlimited, NoXattrs: true}},
		{"upperdir=u,data=passthrough,transport=gofuse", fusefs.Config{
			Timeout: fusefs.Unlimited,
			Data:    fusefs.DataPassthrough, Transport: fusefs.TransportGoFUSE,
		}},
		{"upperdir=u,data=passthrough,quota_inodes=1", fusefs.Config{Timeout: fusefs.Unlimited, Data: fusefs.DataNoOpen}},
		{"upperdir=u,ro,data=passthrough,quota_bytes=1", fusefs.Config{
			Timeout: fusefs.Unlimited, ReadOnly: true, Data: fusefs.DataPassthrough,
		}},
		{"upperdir=u,data=noopen,transport=fast,debug", fusefs.Config{Timeout: fusefs.Unlimited, Data: fusefs.DataNoOpen, Debug: true}},
	}
	for _, tt := range tests {
		if got := serveConfig(options(t, tt.opts)); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q:\ngot  %+v\nwant %+v", tt.opts, got, tt.want)
		}
	}
}

func TestMountConfig(t *testing.T) {
	asRoot, asUser := environment{root: true}, environment{}
	fo, _ := PersonalityOf("/usr/bin/fuse-overlayfs")
	helper, _ := PersonalityOf("mount.fuse.plyfs")
	tests := []struct {
		p            Personality
		source, opts string
		env          environment
		want         fusefs.MountConfig
		err          string
	}{
		{
			p: fo, source: "overlay", opts: "upperdir=u", env: asRoot,
			want: fusefs.MountConfig{FSName: "fuse-overlayfs", Subtype: "fuse-overlayfs", Flags: unix.MS_NOATIME, AllowOther: true},
		},
		{
			p: helper, source: "image", opts: "upperdir=u,relatime,max_read=4096", env: asRoot,
			want: fusefs.MountConfig{FSName: "image", Subtype: "plyfs", Flags: unix.MS_RELATIME, AllowOther: true, MaxRead: 4096},
		},
		{
			p: MountPersonality(), opts: "nosuid,nodev,noexec,atime,nodiratime,nosymfollow,sync,dirsync,lazytime", env: asRoot,
			want: fusefs.MountConfig{
				FSName: "plyfs", Subtype: "plyfs", AllowOther: true,
				Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NODIRATIME |
					unix.MS_NOSYMFOLLOW | unix.MS_SYNCHRONOUS | unix.MS_DIRSYNC | unix.MS_LAZYTIME,
			},
		},
		{
			p: MountPersonality(), opts: "upperdir=u,suid,dev,strictatime,fsname=a,subtype=b", env: asUser,
			want: fusefs.MountConfig{FSName: "a", Subtype: "b", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_STRICTATIME},
		},
		{
			p: MountPersonality(), opts: "upperdir=u,allow_other", env: environment{userAllowOther: true},
			want: fusefs.MountConfig{FSName: "plyfs", Subtype: "plyfs", AllowOther: true, Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOATIME},
		},
		{
			p: fo, opts: "upperdir=u,allow_other", env: asUser,
			err: "option allow_other: only root may give it; add a line user_allow_other to /etc/fuse.conf, or leave the option out",
		},
		{
			p: fo, opts: `upperdir=u,context="a:b:s0:c1,c2",rootcontext=r`, env: environment{root: true, selinux: true},
			want: fusefs.MountConfig{
				FSName: "fuse-overlayfs", Subtype: "fuse-overlayfs", Flags: unix.MS_NOATIME, AllowOther: true,
				Options: []string{`context="a:b:s0:c1,c2"`, `rootcontext="r"`},
			},
		},
		{
			p: fo, opts: `upperdir=u,context="a:b:s0:c1,c2"`, env: asRoot,
			want: fusefs.MountConfig{FSName: "fuse-overlayfs", Subtype: "fuse-overlayfs", Flags: unix.MS_NOATIME, AllowOther: true},
		},
		{
			p: fo, opts: "upperdir=u,nosymfollow", env: asUser,
			err: "option nosymfollow: fusermount3, through which plain users mount, does not know it; leave it out, or mount in a user " +
				"namespace (unshare -Urm)",
		},
		{
			p: fo, opts: "upperdir=u,nosymfollow", env: asRoot,
			want: fusefs.MountConfig{
				FSName: "fuse-overlayfs", Subtype: "fuse-overlayfs", Flags: unix.MS_NOATIME | unix.MS_NOSYMFOLLOW, AllowOther: true,
			},
		},
		{p: fo, opts: `upperdir=u,context=a\"b`, env: asRoot, err: `option context="a\"b": is no SELinux label`},
	}
	for _, tt := range tests {
		r := request{Personality: tt.p, source: tt.source, target: "/m", opts: options(t, tt.opts)}
		got, err := mountConfig(r, tt.env)
		if tt.err != "" {
			var f *exit.Fault
			if !errors.As(err, &f) || f.Text != tt.err || f.Code != exit.Usage {
				t.Errorf("%q: got %v, want %s", tt.opts, err, tt.err)
			}
			continue
		}
		tt.want.Target, tt.want.DefaultPermissions = "/m", true
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s %q:\ngot  %+v, %v\nwant %+v", tt.p.name, tt.opts, got, err, tt.want)
		}
	}
}

// TestChangedFlags: a remount changes what its options name.
func TestChangedFlags(t *testing.T) {
	for _, tt := range []struct {
		shown, opts string
		want        uintptr
	}{
		{"rw,nosuid,nodev,noexec,noatime,rw,user_id=0", "ro", unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME},
		{"ro,nosuid,relatime", "rw,suid,nodev", unix.MS_NODEV | unix.MS_RELATIME},
		{"ro,nosymfollow,lazytime,sync,dirsync", "nodiratime", unix.MS_RDONLY | unix.MS_NOSYMFOLLOW | unix.MS_LAZYTIME | unix.MS_SYNCHRONOUS |
			unix.MS_DIRSYNC | unix.MS_NODIRATIME | unix.MS_STRICTATIME},
		{"rw,noatime,sync,lazytime", "async,nolazytime,relatime", unix.MS_RELATIME},
		{"rw,noatime", "strictatime", unix.MS_STRICTATIME},
		{"rw,relatime", "noatime,sync,dirsync", unix.MS_NOATIME | unix.MS_SYNCHRONOUS | unix.MS_DIRSYNC},
	} {
		if got := changedFlags(strings.Split(tt.shown, ","), options(t, tt.opts)); got != tt.want {
			t.Errorf("%s remounted with %s: %#x, want %#x", tt.shown, tt.opts, got, tt.want)
		}
	}
}

func TestLogLevel(t *testing.T) {
	for opts, want := range map[string]slog.Level{
		"": slog.LevelInfo, "loglevel=info": slog.LevelInfo, "loglevel=debug": slog.LevelDebug, "debug,loglevel=error": slog.LevelDebug,
		"loglevel=warn": slog.LevelWarn, "loglevel=error": slog.LevelError,
	} {
		if got := logLevel(options(t, opts)); got != want {
			t.Errorf("%q: got %v, want %v", opts, got, want)
		}
	}
}

func TestConfAllowsOther(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fuse.conf")
	for content, want := range map[string]bool{
		"":                             false,
		"#user_allow_other\n":          false,
		"# x\n user_allow_other \n":    true,
		"user_allow_other # yes\n":     true,
		"mount_max = 1000\nuser_allow": false,
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := confAllowsOther(file); got != want {
			t.Errorf("%q: got %v", content, got)
		}
	}
	if confAllowsOther(file + ".none") {
		t.Error("a file that is not there allows")
	}
}

func TestSnake(t *testing.T) {
	for in, want := range map[string]string{"Nodes": "nodes", "CopyUpBytes": "copy_up_bytes", "": ""} {
		if got := snake(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
	got := structAttrs(struct {
		CopyUps uint64
		Name    string
	}{CopyUps: 3})
	if len(got) != 1 || !got[0].(slog.Attr).Equal(slog.Uint64("copy_ups", 3)) {
		t.Errorf("%v", got)
	}
}
