//go:build vm

package upper

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

// export makes the machine its own NFS server, of a directory on ext4, for the test's duration, and returns where that is mounted.
func export(t *testing.T) string {
	t.Helper()
	vmtest.Run(t, "modprobe", "-a", "nfsd", "nfsv4")
	vmtest.Run(t, "ip", "link", "set", "lo", "up")
	served := vmtest.Mounted(t, []string{"mkfs.ext4", "-q", "-F"}, "-o", "noatime")
	for _, dir := range []string{"/var/lib/nfs/v4recovery", "/var/lib/nfs/rpc_pipefs"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"/etc/exports": served + " *(rw,no_root_squash,fsid=0,no_subtree_check,insecure,async)\n",
		"/etc/netconfig": "tcp tpi_cots_ord v inet tcp - -\n" +
			"local tpi_cots_ord - loopback - - -\n",
		"/var/lib/nfs/etab":  "",
		"/var/lib/nfs/rmtab": "",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	vmtest.Run(t, "mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
	vmtest.Deferred(t, "umount", "/proc/fs/nfsd")
	vmtest.Run(t, "exportfs", "-ra")
	mountd := exec.Command("rpc.mountd", "--foreground", "--no-nfs-version", "3", "--no-udp")
	if err := mountd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = mountd.Process.Kill()
		_ = mountd.Wait()
	})
	vmtest.Run(t, "rpc.nfsd", "--no-nfs-version", "3", "--grace-time", "10", "--lease-time", "10", "4")
	// A server that has delegated a file to its only client asks for it back when that links, renames or removes the file, and the
	// client waits 0.1 seconds and more before it tries again.
	vmtest.Run(t, "sysctl", "-q", "fs.leases-enable=0")
	// Nobody has anything to reclaim.
	if err := os.WriteFile("/proc/fs/nfsd/v4_end_grace", []byte("Y"), 0); err != nil {
		t.Fatal(err)
	}
	mnt := filepath.Join(testenv.Scratch(t), "nfs")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	vmtest.Run(t, "mount", "-t", "nfs4", "-o", "vers=4.2", "127.0.0.1:/", mnt)
	t.Cleanup(func() {
		testenv.Unmount(t, mnt)
		vmtest.Run(t, "rpc.nfsd", "0")
		vmtest.Run(t, "exportfs", "-au")
	})
	return mnt
}

// otherOnNFS are the cases that expect what NFS does otherwise.
var otherOnNFS = map[string]string{
	"basic/btime":                  "Linux 6.1's client tells no times of birth",
	"data/fallocate":               "NFS 4.2 allocates and punches holes only",
	"data/zero-range":              "the same",
	"link/tmpfile":                 "there is no O_TMPFILE",
	"permission/set-gid-directory": "the same",
	"nesting/guest-xattrs":         "there are no attributes trusted.*",
	"xattr/namespaces":             "the same",
	"xattr/special":                "the same",
	"copy-up/capability":           "nor security.capability",
	"metacopy/capability":          "the same",
	"copy-up/acl":                  "nor POSIX ACLs",
	"xattr/symlink":                "the same",
	"xattr/many":                   "each file has an attribute system.nfs4_acl",
	"xattr/private-hidden":         "the same",
	"xattr/merged-directory":       "the same",
	"xattr/remove-lower":           "the same",

	// What the client remembers lags behind; see docs/compat.md.
	"link/upper":                   "a link count",
	"peer/link-count-after-unlink": "the same",
	"deletion/both":                "a directory's content",
	"open-file/removed-directory":  "a handle of a directory that is gone",

	"link/2000": "takes minutes, with a request for each",
	// The engine alone, with no kernel that keeps the directory, lists it anew for each name, and NFS tells no types.
	"readdir/seek":                 "a thousand listings of a thousand names",
	"readdir/concurrent-change":    "the same",
	"readdir/delete-while-reading": "the same",
}

// onNFS says which cases run. ACLs are NFS's own.
func onNFS(c uniontest.Case) bool {
	for _, group := range []string{"acl/", "quota/", "readdir/1"} {
		if strings.HasPrefix(c.Name, group) {
			return false
		}
	}
	return otherOnNFS[c.Name] == ""
}

func TestEngineOnNFS(t *testing.T) {
	dir := export(t)
	s := setup(dir, direct.Engine{PlainRenames: !takesFlags(t, dir), NoTrusted: true})
	s.Only = onNFS
	uniontest.Run(t, s)
}
