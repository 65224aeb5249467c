package main

import (
	"errors"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
)

// TestNestedPrivileges: set-id bits and file capabilities survive what an overlay of the kernel on a mount copies up, and go where they
// have to.
func TestNestedPrivileges(t *testing.T) {
	dir := unionTree(t)
	mkdirs(t, dir, "low", "top", "upper/k", "upper/k/u", "upper/k/w")
	// VFS_CAP_REVISION_2, effective, with cap_net_raw permitted.
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	for _, name := range []string{"moved", "touched", "chowned", "own"} {
		write(t, "content", dir, "low", name)
		if name == "touched" {
			shell(t, dir, "chown 7:7 low/touched")
		}
		shell(t, dir, "chmod 6755 low/"+name)
		setXattr(t, capability, "security.capability", dir, "low", name)
	}
	capable := func(name ...string) bool {
		n, err := unix.Getxattr(filepath.Join(append([]string{dir}, name...)...), "security.capability", nil)
		return err == nil && n == len(capability)
	}
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "merged")
	for _, metacopy := range []string{"off", "on"} {
		options := "lowerdir=" + dir + "/low,upperdir=" + dir + "/merged/k/u,workdir=" + dir + "/merged/k/w,index=off,metacopy=" + metacopy
		if err := unix.Mount("overlay", dir+"/top", "overlay", 0, options); err != nil {
			t.Fatal(err)
		}
		got := shell(t, dir, "mv top/moved top/away; touch top/touched; chown 9 top/chowned; cd top; stat -c '%n %a %u' away touched chowned")
		if want := "away 6755 0\ntouched 6755 7\nchowned 755 9\n"; got != want {
			t.Errorf("metacopy=%s: %q, want %q", metacopy, got, want)
		}
		if !capable("top", "away") || !capable("top", "touched") || capable("top", "chowned") {
			t.Errorf("metacopy=%s: moved %v, touched %v, chowned %v have capabilities", metacopy, capable("top", "away"), capable("top", "touched"),
				capable("top", "chowned"))
		}
		testenv.Unmount(t, dir+"/top")
		shell(t, dir, "rm -rf merged/k/u/* merged/k/w/*")
	}
	// What is done to a file of the mount itself takes both.
	for _, change := range []string{"chown 9", "truncate -s 3"} {
		shell(t, dir, "cp low/own merged/own; chmod 6755 merged/own")
		setXattr(t, capability, "security.capability", dir, "merged/own")
		shell(t, dir, change+" merged/own")
		if capable("merged/own") {
			t.Errorf("%s leaves the capabilities", change)
		}
	}
	mustMount(t, dir, "plyfs", "umount", "merged")
}

// TestListTrusted: attributes that only root can read are listed to root alone.
func TestListTrusted(t *testing.T) {
	dir := unionTree(t)
	setXattr(t, "1", "trusted.t", dir, "lower/file")
	setXattr(t, "1", "user.u", dir, "lower/file")
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers, "merged")
	runtime.LockOSThread() // whose user is changed
	defer runtime.UnlockOSThread()
	for uid, want := range map[int][]string{0: {"trusted.t", "user.u"}, 65534: {"user.u"}} {
		unix.SetfsuidRetUid(uid)
		b := make([]byte, 1<<10)
		size, err := unix.Listxattr(dir+"/merged/file", nil)
		n, lerr := unix.Listxattr(dir+"/merged/file", b)
		unix.SetfsuidRetUid(0)
		if err := errors.Join(err, lerr); err != nil || size != n {
			t.Fatalf("list of %d bytes, then of %d: %v", size, n, err)
		}
		got := strings.Split(strings.Trim(string(b[:n]), "\x00"), "\x00")
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("user %d: %q, want %q", uid, got, want)
		}
	}
	mustMount(t, dir, "plyfs", "umount", "merged")
}

// TestOverrideACL: where modes are attributes there are no ACLs, which a chmod could not restrict.
func TestOverrideACL(t *testing.T) {
	dir := unionTree(t)
	mustMount(t, dir, "plyfs", "mount", "-o", allLayers+",xattr_permissions=2", "merged")
	write(t, "a", dir, "merged/g")
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x06\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x06\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	if err := unix.Setxattr(dir+"/merged/g", "system.posix_acl_access", []byte(acl), 0); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("an ACL was set: %v", err)
	}
	mustMount(t, dir, "plyfs", "umount", "merged")
}
