// Package fuzz holds the fuzz targets of the packages that read foreign input.
package fuzz

import (
	"reflect"
	"testing"

	"plyfs/fs/mountopt"
)

// FuzzParse holds that what an option string says survives being written and read again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"",
		",,",
		"lowerdir=/a:/b,upperdir=/u,workdir=/w,,volatile,",
		`lowerdir=/a\:b:/c\,d\\:e:\134:f`,
		`lowerdir="/a,b":/c,context="x,y",upperdir="z`,
		"lowerdir+=a:b,lowerdir+=c",
		"uidmapping=:0:1000:1:1:100000:65536,gidmapping=0:0:0",
		"squash_to_root,squash_to_uid=5,squash_to_gid=6",
		"timeout=0.000001,timeout=86399.9999999",
		"timeout=1e9,fsync=0,sync,sync=1,noxattrs=1,writeback,xattr_permissions=2",
		"redirect_dir=on,metacopy=off,index=on,xino=auto,userxattr,data=noopen,transport=fast,whiteout=kernel",
		`log=/a b,loglevel=warn,max_open_files=7,ro,nosuid,nodev,noexec,relatime,nodiratime,lazytime,dirsync`,
		"quota_bytes=10g,quota_inodes=5k,quota_bytes=-1,quota_inodes=9t",
		`bogus,=x,a\=b=c,"=",x="a,b",x-y=z,\x-y,\noatime=1`,
	} {
		f.Add(s, "")
	}
	f.Add(`x="a`, `y"`)
	f.Fuzz(func(t *testing.T, first, second string) {
		o, err := mountopt.Parse(first, second)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error says nothing")
			}
			return
		}
		text := o.String()
		again, err := mountopt.Parse(text)
		if err != nil {
			t.Fatalf("%q, written %q: %v", []string{first, second}, text, err)
		}
		if !reflect.DeepEqual(again, o) {
			t.Fatalf("%q, written %q:\n%+v\n%+v", []string{first, second}, text, o, again)
		}
		if again.String() != text {
			t.Fatalf("%q is written %q the second time", text, again.String())
		}
		for _, w := range o.Unknown {
			mountopt.Hint(w)
		}
	})
}
