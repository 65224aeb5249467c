package tarlayer_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/internal/fingerprint"
	"plyfs/internal/testenv"
)

// envChild makes the test binary unpack its standard input into the directory that it names, with the form of ownership
// that envOwner says.
const (
	envChild = "PLYFS_TARLAYER_TEST_CHILD"
	envOwner = "PLYFS_TARLAYER_TEST_OWNER"
)

func unpackChild(dir string) int {
	owner, err := strconv.Atoi(os.Getenv(envOwner))
	if err != nil {
		fmt.Println(err)
		return 2
	}
	l, err := layer.Open(dir)
	if err != nil {
		fmt.Println(err)
		return 2
	}
	defer l.Close()
	res, err := tarlayer.Apply(context.Background(), l, os.Stdin, tarlayer.ApplyOptions{
		Owner: tarlayer.OwnerForm(owner), Devices: tarlayer.DeviceSkip, Whiteouts: tarlayer.WhiteoutKernel, Names: ovl.User(),
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Print(res.Skipped)
	return 0
}

// asSingleID runs unpackChild as root of a user namespace in which no other id exists.
func asSingleID(t *testing.T, dir string, owner tarlayer.OwnerForm, stream []byte) (string, error) {
	t.Helper()
	const nobody = 65534
	must(t, os.Chown(dir, nobody, nobody))
	self, err := os.Executable()
	must(t, err)
	binary, err := os.ReadFile(self)
	must(t, err)
	exe := filepath.Join(testenv.Scratch(t), "test") // others may not search where go test builds
	must(t, os.WriteFile(exe, binary, 0o755))
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), envChild+"="+dir, envOwner+"="+strconv.Itoa(int(owner)))
	cmd.Stdin = bytes.NewReader(stream)
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: one, GidMappings: one,
		Credential: &syscall.Credential{NoSetGroups: true},
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestSingleID(t *testing.T) {
	members := stream(t, directory("d").owner(1, 2).mode(0o555), file("d/f", "x").owner(1000, 0).mode(0o4755),
		file("root-suid", "x").mode(0o4755),
		file(".wh.gone", ""), device("null", 1, 3), directory("o"), file("o/.wh..wh..opq", ""))

	dir := testenv.Scratch(t)
	out, err := asSingleID(t, dir, tarlayer.OwnerInode, members)
	if err == nil || !strings.Contains(out, `"d/"`) || !strings.Contains(out, tarlayer.ErrUnmapped.Error()) {
		t.Errorf("owners kept on inodes: %v: %s", err, out)
	}

	dir = testenv.Scratch(t)
	out, err = asSingleID(t, dir, tarlayer.OwnerIgnore, members)
	if err != nil {
		t.Fatalf("owners ignored: %v: %s", err, out)
	}
	want(t, "skipped", out, "1")
	want(t, "mode of the directory", lstat(t, filepath.Join(dir, "d")).Mode&0o7777, 0o555)
	want(t, "mode of a file of another user", lstat(t, filepath.Join(dir, "d/f")).Mode&0o7777, 0o755)
	want(t, "mode of root's file", lstat(t, filepath.Join(dir, "root-suid")).Mode&0o7777, 0o4755)
	want(t, "whiteout", lstat(t, filepath.Join(dir, "gone")).Mode&unix.S_IFMT, unix.S_IFCHR)
	want(t, "opaque", xattr(filepath.Join(dir, "o"), "user.overlay.opaque"), "y")

	dir = testenv.Scratch(t)
	out, err = asSingleID(t, dir, tarlayer.OwnerXattr, members)
	if err != nil {
		t.Fatalf("owners in an attribute: %v: %s", err, out)
	}
	want(t, "skipped", out, "0")
	want(t, "owner", xattr(filepath.Join(dir, "d/f"), "user.containers.override_stat"), "1000:0:4755:file")
	want(t, "device", xattr(filepath.Join(dir, "null"), "user.containers.override_stat"), "0:0:644:char-1-3")
}

// The root of a user namespace with many ids unpacks everything but devices and what is trusted.
func TestUserNamespace(t *testing.T) {
	if !testenv.InUserNamespace() {
		testenv.RunInUserNamespace(t, "^TestUserNamespace$")
		return
	}
	dir := testenv.Scratch(t)
	lower, flat, upper, merged := subdir(t, dir, "lower"), subdir(t, dir, "flat"), subdir(t, dir, "upper"), subdir(t,
		dir, "merged")
	apply(t, lower, tarlayer.ApplyOptions{}, base()...)
	apply(t, flat, tarlayer.ApplyOptions{}, base()...)
	members := []member{
		file(".wh.f", ""), directory("d").owner(1000, 1000), file("d/.wh..wh..opq", ""), file("d/new",
			"n").owner(65533, 5).mode(0o6755),
		file("caps", "").xattr("security.capability", caps).xattr("user.x", "y"), file("acl",
			"").xattr("system.posix_acl_access", acl),
	}
	apply(t, flat, tarlayer.ApplyOptions{}, members...)
	apply(t, upper, tarlayer.ApplyOptions{Whiteouts: tarlayer.WhiteoutKernel, Names: ovl.User()}, members...)
	must(t, testenv.MountOverlay(testenv.Overlay{
		Lowers: []string{upper, lower}, ReadOnly: true,
		Options: []string{"userxattr"},
	}, merged))
	defer testenv.Unmount(t, merged)
	same(t, take(t, flat), take(t, merged),
		fingerprint.Default&^(fingerprint.Nlink|fingerprint.Groups|fingerprint.Mtime))
	src := tarlayer.NewDirSource(open(t, flat), tarlayer.DirOptions{})
	defer src.Close()
	x, err := src.Xattrs("caps")
	must(t, err)
	want(t, "capabilities", x["security.capability"], caps)
	_, err = tryApply(t, flat, tarlayer.ApplyOptions{}, stream(t, device("null", 1, 3)))
	wantError(t, "device", err, tarlayer.ErrDevice)
	_, err = tryApply(t, flat, tarlayer.ApplyOptions{}, stream(t, file("x", "").owner(70000, 0)))
	wantError(t, "id outside the namespace", err, tarlayer.ErrUnmapped)
	res := apply(t, flat, tarlayer.ApplyOptions{KeepTrusted: true}, file("x", "").xattr("trusted.x", "y"))
	want(t, "skipped", res.Skipped, 1)
}

// Capabilities that a user namespace's root set are the next root's in a layer.
func TestCapabilitiesOfANamespaceAreWrittenPlain(t *testing.T) {
	dir := testenv.Scratch(t)
	p := filepath.Join(dir, "f")
	v3 := "\x01\x00\x00\x03" + caps[4:] + "\xa0\x86\x01\x00" // rootid 100000
	must(t, os.WriteFile(p, nil, 0o755), unix.Setxattr(p, "security.capability", []byte(v3), 0), os.Chown(p, 100000,
		100000),
		unix.Setxattr(p, "security.capability", []byte(v3), 0))
	r := []tarlayer.IDRange{{Container: 0, Host: 100000, Size: 65536}}
	for name, c := range map[string]struct {
		ids  tarlayer.IDMaps
		want string
	}{"mapped": {tarlayer.IDMaps{UIDs: r, GIDs: r}, caps}, "of another": {tarlayer.IDMaps{}, v3}} {
		src := tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{IDs: c.ids})
		x, err := src.Xattrs("f")
		must(t, err, src.Close())
		want(t, name, x["security.capability"], c.want)
	}
}
