package control_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/control"
	"plyfs/internal/testenv"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestOwners(t *testing.T) {
	dir := testenv.Scratch(t)
	podman, docker, store := dir+"/containers", dir+"/docker", dir+"/store"
	put(t, podman+"/overlay-layers/layers.json", "[]")
	put(t, podman+"/overlay-images/images.json", `[{"id":"aaaa","names":["localhost/app:1"]},{"id":"bbbbbbbbbbbbbbbb"}]`)
	put(t, podman+"/overlay-containers/containers.json", `[
		{"id":"c1","names":["web"],"image":"aaaa","layer":"l1","metadata":"{\"image-name\":\"localhost/app:1\"}"},
		{"id":"c2","names":["app-working-container"],"image":"bbbbbbbbbbbbbbbb","layer":"l2"}]`)
	put(t, podman+"/overlay-containers/volatile-containers.json", `[{"id":"c3c3c3c3c3c3c3c3","image":"none","layer":"l3","metadata":"{\"image-name\":\"x\"}"}]`)

	cid := strings.Repeat("d", 64)
	mounts := "/image/fuse-overlayfs/layerdb/mounts/"
	put(t, docker+mounts+cid+"/mount-id", "m1\n")
	put(t, docker+"/containers/"+cid+"/config.v2.json", `{"Name":"/db","Config":{"Image":"postgres"}}`)
	put(t, docker+mounts+strings.Repeat("e", 64)+"/mount-id", "m2")

	put(t, store+"/records/1", `{"container":{"name":"mine","id":"k1","labels":{"plyfs.image":"sha256:ffffffffffffffff"}},"drivers":["plyfs"]}`)
	put(t, store+"/records/2", `{"holder":{"kind":"name","key":"docker.io/library/busybox:latest","data":"c2hhMjU2OmZmZmZmZmZmZmZmZmZmZmY="}}`)
	put(t, store+"/records/3", `{"container":{"name":"plain","id":"k2"},"drivers":["plyfs"]}`)
	put(t, store+"/records/4", "damaged")
	for id, name := range map[string]string{"s1": "default/83/job", "s2": "moby/5/" + cid, "s3": "by-hand"} {
		put(t, store+"/records/snapshot-"+id, `{"snapshot":{"name":"`+name+`","kind":"active","id":"`+id+`"},"drivers":["plyfs"]}`)
	}

	plugin := docker + "/plyfs"
	put(t, docker+"/image/plyfs/layerdb/mounts/"+cid+"/mount-id", "p1")

	task := "/run/containerd/io.containerd.runtime.v2.task/default/job/rootfs"
	for _, tt := range []struct {
		name, target, upper string
		want                control.Owner
	}{
		{"by hand", "/mnt", "/home/u/upper", control.Owner{}},
		{"read-only by hand", "/mnt", "", control.Owner{}},
		{"podman", podman + "/overlay/l1/merged", podman + "/overlay/l1/diff", control.Owner{Engine: "podman", Container: "web", Image: "localhost/app:1"}},
		{"podman without names", podman + "/overlay/l3/merged", podman + "/overlay/l3/diff", control.Owner{Engine: "podman", Container: "c3c3c3c3c3c3"}},
		{"podman view of a layer", podman + "/overlay/lx/merged", "", control.Owner{Engine: "podman"}},
		{"buildah", podman + "/overlay/l2/merged", podman + "/overlay/l2/diff", control.Owner{Engine: "buildah", Container: "app-working-container", Image: "bbbbbbbbbbbb"}},
		{"docker", docker + "/fuse-overlayfs/m1/merged", docker + "/fuse-overlayfs/m1/diff", control.Owner{Engine: "docker", Container: "db", Image: "postgres"}},
		{"docker init layer", docker + "/fuse-overlayfs/m1-init/merged", docker + "/fuse-overlayfs/m1-init/diff", control.Owner{Engine: "docker", Container: "db", Image: "postgres"}},
		{"docker without config", docker + "/fuse-overlayfs/m2/merged", docker + "/fuse-overlayfs/m2/diff", control.Owner{Engine: "docker", Container: "eeeeeeeeeeee"}},
		{"docker plugin", plugin + "/layers/p1/merged", plugin + "/layers/p1/diff", control.Owner{Engine: "docker", Container: "db", Image: "postgres"}},
		{"docker plugin, read-only", plugin + "/layers/p1/merged", "", control.Owner{Engine: "docker", Container: "db", Image: "postgres"}},
		{"docker 29", docker + "/rootfs/plyfs/" + cid, "/x/1/fs", control.Owner{Engine: "docker", Container: "dddddddddddd"}},
		{"containerd", task, "/var/lib/x/snapshots/3/fs", control.Owner{Engine: "containerd", Container: "default/job"}},
		{"containerd on our store", task, store + "/layers/plyfs/k1/diff", control.Owner{Engine: "containerd", Container: "default/job", Image: "docker.io/library/busybox:latest"}},
		{"containerd unpacks", "/var/lib/containerd/tmpmounts/containerd-mount12", "/x/3/fs", control.Owner{Engine: "containerd"}},
		{"snapshot", store + "/layers/plyfs/s1/merged", store + "/layers/plyfs/s1/diff", control.Owner{Engine: "containerd", Container: "default/job"}},
		{"snapshot of docker", store + "/layers/plyfs/s2/merged", store + "/layers/plyfs/s2/diff", control.Owner{Engine: "docker", Container: "dddddddddddd"}},
		{"snapshot by hand", store + "/layers/plyfs/s3/merged", store + "/layers/plyfs/s3/diff", control.Owner{Engine: "containerd", Container: "by-hand"}},
		{"store", store + "/run/m", store + "/layers/plyfs/k1/diff", control.Owner{Engine: "plyfs", Container: "mine", Image: "docker.io/library/busybox:latest"}},
		{"store without image", store + "/run/m", store + "/layers/plyfs/k2/diff", control.Owner{Engine: "plyfs", Container: "plain"}},
		{"store, gone", store + "/run/m", store + "/layers/plyfs/k3/diff", control.Owner{Engine: "plyfs"}},
	} {
		if got := control.NewOwners().Find(tt.target, tt.upper, 0); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// TestOwnersTrustNobody: files of third users, links and pipes are not read.
func TestOwnersTrustNobody(t *testing.T) {
	dir := testenv.Scratch(t)
	put(t, dir+"/overlay-layers/layers.json", "[]")
	list := dir + "/overlay-containers/containers.json"
	put(t, list, `[{"id":"c1","names":["web"],"layer":"l1"}]`)
	find := func() string {
		return control.NewOwners().Find(dir+"/overlay/l1/merged", dir+"/overlay/l1/diff", 1000).Container
	}
	if got := find(); got != "web" {
		t.Errorf("root's file: %q", got)
	}
	if err := os.Chown(list, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if got := find(); got != "web" {
		t.Errorf("the user's file: %q", got)
	}
	if err := os.Chown(list, 1001, 1001); err != nil {
		t.Fatal(err)
	}
	if got := find(); got != "" {
		t.Errorf("a third user's file: %q", got)
	}
	for what, replace := range map[string]func() error{
		"link": func() error { return os.Symlink(dir+"/elsewhere", list) },
		"pipe": func() error { return unix.Mkfifo(list, 0o644) },
	} {
		put(t, dir+"/elsewhere", `[{"id":"c1","names":["web"],"layer":"l1"}]`)
		if err := os.Remove(list); err != nil {
			t.Fatal(err)
		}
		if err := replace(); err != nil {
			t.Fatal(err)
		}
		if got := find(); got != "" {
			t.Errorf("%s: %q", what, got)
		}
	}
}
