package mountopt

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func ptr[T any](v T) *T { return &v }

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want Options
	}{
		{"nothing", nil, Options{}},
		{"empty", []string{""}, Options{}},
		{"only commas", []string{",,,"}, Options{}},
		{
			"podman, trailing comma",
			[]string{"lowerdir=/o/l/AAA:/o/l/BBB,upperdir=/o/1/diff,workdir=/o/1/work,"},
			Options{LowerDirs: []string{"/o/l/AAA", "/o/l/BBB"}, UpperDir: "/o/1/diff", WorkDir: "/o/1/work"},
		},
		{
			"podman, doubled comma",
			[]string{"lowerdir=a,upperdir=b,workdir=c,,volatile"},
			Options{LowerDirs: []string{"a"}, UpperDir: "b", WorkDir: "c", Volatile: true},
		},
		{"leading comma", []string{",ro"}, Options{ReadOnly: true}},
		{
			"several strings",
			[]string{"lowerdir=a:b", "ro", "upperdir=c"},
			Options{LowerDirs: []string{"a", "b"}, UpperDir: "c", ReadOnly: true},
		},
		{
			"uid maps with a leading colon",
			[]string{"uidmapping=:0:1000:1:1:100000:65536,gidmapping=:0:1:1004:1004:0:1:1005:1005:64532"},
			Options{
				UIDMap: []IDRange{{0, 1000, 1}, {1, 100000, 65536}},
				GIDMap: []IDRange{{0, 1, 1004}, {1004, 0, 1}, {1005, 1005, 64532}},
			},
		},
		{"empty fields in a map", []string{"uidmapping=0::5:::7:"}, Options{UIDMap: []IDRange{{0, 5, 7}}}},
		{"ranges of no length", []string{"uidmapping=0:5:7:9:9:0"}, Options{UIDMap: []IDRange{{0, 5, 7}}}},
		{"a map that maps nothing", []string{"uidmapping=0:1:0:7:8:0,gidmapping=:0:5:0"}, Options{UIDMap: []IDRange{{7, 8, 0}}, GIDMap: []IDRange{{0, 5, 0}}}},
		{"whole range", []string{"uidmapping=0:0:4294967295"}, Options{UIDMap: []IDRange{{0, 0, 4294967295}}}},
		{
			"quoted context",
			[]string{`lowerdir=a,context="system_u:object_r:container_file_t:s0:c1,c2",ro`},
			Options{LowerDirs: []string{"a"}, Context: "system_u:object_r:container_file_t:s0:c1,c2", ReadOnly: true},
		},
		{"quoted context at the end", []string{`context="a,b"`}, Options{Context: "a,b"}},
		{"unquoted context", []string{`context=a`}, Options{Context: "a"}},
		{"quoted path list", []string{`lowerdir="/a,b:/c"`}, Options{LowerDirs: []string{"/a,b", "/c"}}},
		{"lone quote in a path", []string{`upperdir="a,ro`}, Options{UpperDir: `"a`, ReadOnly: true}},
		{"quote inside a path", []string{`upperdir=a"b,ro`}, Options{UpperDir: `a"b`, ReadOnly: true}},
		{"escaped colon", []string{`lowerdir=/a\:b:/c`}, Options{LowerDirs: []string{"/a:b", "/c"}}},
		{
			"colon escaped twice, as for fuse-overlayfs",
			[]string{`lowerdir=lower\\:1,upperdir=upper\\:2,workdir=work\\:3`},
			Options{LowerDirs: []string{"lower:1"}, UpperDir: "upper:2", WorkDir: "work:3"},
		},
		{"escaped comma", []string{`lowerdir=/a\,b:/c,ro`}, Options{LowerDirs: []string{"/a,b", "/c"}, ReadOnly: true}},
		{"escaped backslash", []string{`lowerdir=/a\\b`}, Options{LowerDirs: []string{`/a\b`}}},
		{"octal escapes", []string{`lowerdir=/a\040b\054c\072d`}, Options{LowerDirs: []string{"/a b,c:d"}}},
		{"backslash at the end", []string{`upperdir=/a\`}, Options{UpperDir: `/a\`}},
		{"equals sign in a path", []string{"upperdir=/a=b"}, Options{UpperDir: "/a=b"}},
		{"colon in an upper", []string{"upperdir=/a:b"}, Options{UpperDir: "/a:b"}},
		{"colons at both ends", []string{"lowerdir=:a:b::"}, Options{LowerDirs: []string{"a", "b"}}},
		{"lowerdir empty", []string{"lowerdir="}, Options{}},
		{"lowerdir twice", []string{"lowerdir=a,lowerdir=b"}, Options{LowerDirs: []string{"b"}}},
		{"lowerdir+", []string{"lowerdir+=a:b,lowerdir+=c"}, Options{LowerDirs: []string{"a:b", "c"}}},
		{"relative paths", []string{"lowerdir=../x:./y"}, Options{LowerDirs: []string{"../x", "./y"}}},
		{"squashing", []string{"squash_to_root,squash_to_uid=5,squash_to_gid=0"}, Options{SquashToRoot: true, SquashToUID: ptr(uint32(5)), SquashToGID: ptr(uint32(0))}},
		{
			"kernel overlayfs",
			[]string{"redirect_dir=follow,metacopy=off,index=on,xino=auto,userxattr,nfs_export=off,verity=off,uuid=null"},
			Options{RedirectDir: RedirectFollow, Metacopy: Off, Index: IndexOn, Xino: XinoAuto, UserXattr: true},
		},
		{"redirect_dir=nofollow", []string{"redirect_dir=nofollow"}, Options{RedirectDir: RedirectNoFollow}},
		{"redirect_dir=off", []string{"redirect_dir=off"}, Options{RedirectDir: RedirectOff}},
		{"redirect_dir=on", []string{"redirect_dir=on"}, Options{RedirectDir: RedirectOn}},
		{"fsync=0", []string{"fsync=0"}, Options{Fsync: Off}},
		{"numbers other than 0", []string{"fsync=0,fsync=2,noxattrs=-1"}, Options{Fsync: On, NoXattrs: true}},
		{"fsync without a value", []string{"fsync"}, Options{Fsync: On}},
		{"sync=0", []string{"sync=0"}, Options{Fsync: Off}},
		{"sync of mount", []string{"sync"}, Options{Sync: On}},
		{"async", []string{"sync,async"}, Options{Sync: Off}},
		{"fsync=volatile", []string{"fsync=volatile"}, Options{Volatile: true}},
		{"fsync, the last one counts", []string{"fsync=volatile,fsync=auto"}, Options{Fsync: On}},
		{"fsync=strict", []string{"fsync=strict"}, Options{Fsync: On}},
		{
			"fuse-overlayfs",
			[]string{"threaded=1,fast_ino=0,writeback=0,noxattrs=1,xattr_permissions=2,static_nlink,noacl,ino32_t,plugins="},
			Options{Writeback: Off, NoXattrs: true, XattrPermissions: 2, StaticNlink: true, NoACL: true, Ino32: true},
		},
		{"noxattrs=0", []string{"noxattrs,noxattrs=0"}, Options{}},
		{"timeout 0", []string{"timeout=0"}, Options{Timeout: ptr(time.Duration(0))}},
		{"timeout fraction", []string{"timeout=0.25"}, Options{Timeout: ptr(250 * time.Millisecond)}},
		{"timeout of fuse-overlayfs", []string{"timeout=1000000000.0"}, Options{Timeout: ptr(1e9 * time.Second)}},
		{"timeout beyond measure", []string{"timeout=inf"}, Options{Timeout: ptr(9223372036 * time.Second)}},
		{
			"plyfs",
			[]string{"data=noopen,transport=gofuse,whiteout=aufs,log=/l,loglevel=debug,max_open_files=100"},
			Options{Data: DataNoOpen, Transport: TransportGoFUSE, Whiteout: WhiteoutAUFS, Log: "/l", LogLevel: LogDebug, MaxOpenFiles: 100},
		},
		{"quota", []string{"quota_bytes=16777216,quota_inodes=100"}, Options{QuotaBytes: 16 << 20, QuotaInodes: 100}},
		{"quota with units", []string{"quota_bytes=2t,quota_inodes=64K"}, Options{QuotaBytes: 2 << 40, QuotaInodes: 64 << 10}},
		{"no quota", []string{"quota_bytes=1g,quota_inodes=5,quota_bytes=0,quota_inodes=0k"}, Options{}},
		{"largest quota", []string{"quota_bytes=8388607t"}, Options{QuotaBytes: 8388607 << 40}},
		{"defaults by name", []string{"data=auto,transport=auto,whiteout=auto,loglevel=info"}, Options{}},
		{
			"mount flags",
			[]string{"nosuid,dev,noexec,noatime,nodiratime,lazytime,dirsync,nosymfollow"},
			Options{Suid: Off, Dev: On, Exec: Off, Atime: AtimeOff, DirAtime: Off, LazyTime: On, DirSync: true, Symfollow: Off},
		},
		{"last one counts", []string{"ro,nosuid,noatime", "rw,suid,relatime"}, Options{Writable: true, Suid: On, Atime: AtimeRelative}},
		{"remount", []string{"remount,ro"}, Options{Remount: true, ReadOnly: true}},
		{
			"remount by mount(8)",
			[]string{"rw,noatime,seclabel,user_id=0,group_id=0,default_permissions,allow_other,remount,ro"},
			Options{Remount: true, ReadOnly: true, Atime: AtimeOff, DefaultPermissions: true, AllowOther: true},
		},
		{"fuse", []string{"allow_other,allow_root,default_permissions,debug,fsname=a b,subtype=c,max_read=131072"}, Options{
			AllowOther: true, AllowRoot: true, DefaultPermissions: true, Debug: true, FSName: "a b", Subtype: "c", MaxRead: 131072,
		}},
		{"fstab", []string{"defaults,rw,user=joe,users,owner,group,auto,noauto,_netdev,nofail,x-systemd.automount,x-gvfs-hide,X-mount.mkdir=0755,comment=hi,helper=x"}, Options{Writable: true}},
		{"no effect", []string{"private,splice_read,splice_write,splice_move,kernel_cache,max_write=65536,max_write,clone_fd,auto_unmount"}, Options{}},
		{"unknown", []string{`bogus,volatile=1,x="a,b",=v,a\=b=c`}, Options{Unknown: []Word{
			{Key: "bogus"}, {"volatile", "1", true}, {"x", "a,b", true}, {"", "v", true}, {"a=b", "c", true},
		}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
			again, err := Parse(got.String())
			if err != nil || !reflect.DeepEqual(again, got) {
				t.Errorf("%q parses to %+v, %v", got.String(), again, err)
			}
		})
	}
}

func TestParseManyLowers(t *testing.T) {
	var dirs []string
	for i := range 500 {
		dirs = append(dirs, fmt.Sprintf("/var/lib/containers/storage/overlay/l/%026d", i))
	}
	o, err := Parse("lowerdir=" + strings.Join(dirs, ":"))
	if err != nil || !reflect.DeepEqual(o.LowerDirs, dirs) {
		t.Fatalf("%d layers, %v", len(o.LowerDirs), err)
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ arg, want string }{
		{"lowerdir", "option lowerdir: needs a value; give directories separated by colons, the topmost first"},
		{"lowerdir=a::b", `option lowerdir=a::b: data-only layers (behind ::) are not supported; separate layers by one colon; write \: for a colon in a path`},
		{"datadir+=a", "option datadir+=a: data-only layers are not supported; use lowerdir"},
		{"upperdir", "option upperdir: needs a value; give a path"},
		{"upperdir=", "option upperdir=: needs a value; give a path"},
		{`workdir=a\000b`, "option workdir=a?b: contains a NUL byte; give a path"},
		{`lowerdir=a\000b`, "option lowerdir=a?b: contains a NUL byte; give directories separated by colons, the topmost first"},
		{"uidmapping=0:1", "option uidmapping=0:1: 2 numbers are not a multiple of three; give disk:mount:length triples, such as 0:100000:65536"},
		{"uidmapping=0:1:x", `option uidmapping=0:1:x: "x" is not a number from 0 to 4294967295; give disk:mount:length triples, such as 0:100000:65536`},
		{"gidmapping=-1:1:1", `option gidmapping=-1:1:1: "-1" is not a number from 0 to 4294967295; give disk:mount:length triples, such as 0:100000:65536`},
		{"uidmapping=0:1:4294967295", "option uidmapping=0:1:4294967295: range 0:1:4294967295 goes beyond 4294967294; give disk:mount:length triples, such as 0:100000:65536"},
		{"gidmapping=4294967295:0:2", "option gidmapping=4294967295:0:2: range 4294967295:0:2 goes beyond 4294967294; give disk:mount:length triples, such as 0:100000:65536"},
		{"uidmapping=0:0:10:5:100:1", "option uidmapping=0:0:10:5:100:1: ranges 0:0:10 and 5:100:1 overlap on disk; give each identifier once"},
		{"uidmapping=0:0:10:50:9:1", "option uidmapping=0:0:10:50:9:1: ranges 0:0:10 and 50:9:1 overlap in the mount; give each identifier once"},
		{"squash_to_uid=x", "option squash_to_uid=x: is not a number; give a number from 0 to 4294967294"},
		{"squash_to_gid=4294967295", "option squash_to_gid=4294967295: is out of range; give a number from 0 to 4294967294"},
		{"redirect_dir=maybe", "option redirect_dir=maybe: is not known; give one of on, follow, off, nofollow"},
		{"metacopy", "option metacopy: needs a value; give one of on, off"},
		{"index=1", "option index=1: is not known; give one of on, off, verify, or a directory with a slash in it"},
		{"index=", "option index=: needs a value; give one of on, off, verify, or a directory"},
		{"hardlink_index=1", "option hardlink_index=1: is not known; give one of on, off"},
		{"xino=x", "option xino=x: is not known; give one of off, auto, on"},
		{"fsync=often", "option fsync=often: is not a number; give 0 or 1"},
		{"sync=often", "option sync=often: is not a number; give 0 or 1"},
		{"fsync=", "option fsync=: needs a value; give 0 or 1"},
		{"xattr_permissions=3", "option xattr_permissions=3: is out of range; give 1 (security.*, needs privilege), 2 (user.*) or 0 for none"},
		{"timeout=soon", "option timeout=soon: is not a number; give seconds, such as 0, 0.5 or 86400"},
		{"timeout=NaN", "option timeout=NaN: is not a number; give seconds, such as 0, 0.5 or 86400"},
		{"timeout=-1", "option timeout=-1: is negative; give seconds, such as 0, 0.5 or 86400"},
		{"data=fast", "option data=fast: is not known; give one of auto, passthrough, noopen"},
		{"transport=x", "option transport=x: is not known; give one of auto, fast, gofuse"},
		{"whiteout=x", "option whiteout=x: is not known; give one of auto, kernel, aufs"},
		{"loglevel=x", "option loglevel=x: is not known; give one of info, debug, warn, error"},
		{"max_open_files=-1", "option max_open_files=-1: is out of range; give how many descriptors to keep open, 0 for a share of the limit"},
		{"quota_bytes=", "option quota_bytes=: needs a value; give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"},
		{"quota_bytes=-1", "option quota_bytes=-1: is out of range; give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"},
		{"quota_bytes=8388608t", "option quota_bytes=8388608t: is out of range; give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"},
		{"quota_bytes=9223372036854775808", "option quota_bytes=9223372036854775808: is out of range; give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"},
		{"quota_bytes=k", "option quota_bytes=k: is not a number; give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"},
		{"quota_bytes=1.5g", "option quota_bytes=1.5g: is not a number; give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"},
		{"quota_bytes=1gb", "option quota_bytes=1gb: is not a number; give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"},
		{"quota_bytes=+1", "option quota_bytes=+1: is not a number; give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"},
		{"quota_inodes=many", "option quota_inodes=many: is not a number; give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"},
		{"quota_inodes=1p", "option quota_inodes=1p: is not a number; give a number, such as 1000, 64k, 500m, 10g or 2t, or 0 for no bound"},
		{"max_read=x", "option max_read=x: is not a number; give a number of bytes"},
		{"nfs_export=on", "option nfs_export=on: plyfs can't be exported by file handle; leave it out"},
		{"verity=require", "option verity=require: fs-verity digests are not checked; leave it out"},
		{"uuid=on", "option uuid=on: plyfs keeps no identifier in the upper layer; leave it out"},
		{"plugins=/x.so", "option plugins=/x.so: plugins for lower layers are not supported; give directories in lowerdir"},
		{"context=", "option context=: needs a value"},
		{"data=" + strings.Repeat("x", 200), "option data=" + strings.Repeat("x", 120) + "...: is not known; give one of auto, passthrough, noopen"},
	}
	for _, tt := range tests {
		_, err := Parse("ro," + tt.arg)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s: got  %v\nwant %s", tt.arg, err, tt.want)
			continue
		}
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %T is no *Error", tt.arg, err)
		}
	}
}

func TestHint(t *testing.T) {
	tests := []struct {
		word Word
		want string
	}{
		{Word{Key: "lowerdirs", Value: "x", HasValue: true}, "did you mean lowerdir?"},
		{Word{Key: "upper_dir", Value: "x", HasValue: true}, "did you mean upperdir?"},
		{Word{Key: "wrokdir", Value: "x", HasValue: true}, "did you mean workdir?"},
		{Word{Key: "VOLATILE"}, "did you mean volatile?"},
		{Word{Key: "uid_mapping"}, "did you mean uidmapping?"},
		{Word{Key: "volatile", Value: "1", HasValue: true}, "volatile takes no value"},
		{Word{Key: "bogus"}, ""},
		{Word{Key: "zzzzzzzzzzzzzzzzzz"}, ""},
		{Word{}, ""},
	}
	for _, tt := range tests {
		if got := Hint(tt.word); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.word, got, tt.want)
		}
	}
}

func TestKeysAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range table() {
		for _, k := range s.keys {
			if seen[k] {
				t.Errorf("%s stands twice", k)
			}
			seen[k] = true
		}
	}
}

func TestSwitchEnabled(t *testing.T) {
	if !Default.Enabled(true) || Default.Enabled(false) || !On.Enabled(false) || Off.Enabled(true) {
		t.Error("Enabled is wrong")
	}
}
