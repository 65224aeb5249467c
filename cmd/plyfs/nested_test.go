package main

import (
	"path/filepath"
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
