// Command plyfs mounts, serves and looks after union file systems.
//
// The binary has several personalities, chosen by the name it is called under. As plyfs it has subcommands. As
// fuse-overlayfs it takes the arguments of that program and behaves as its callers (podman, buildah, dockerd, containerd)
// need. As mount.plyfs, mount.fuse.plyfs and mount.fuse3.plyfs it is a helper of mount(8). They differ in how a command
// line is read and in how strict it is (personality); what is mounted is the same.
//
// A mount goes through these stages: the command line becomes a request (request.go), the request is carried to a daemon,
// which is this binary again, because a Go program can't fork (daemon.go); the daemon opens the layers and looks for all
// that would go wrong (layers.go, check.go, fuse.go), and only then mounts and serves (serve.go). The caller waits for the
// daemon's verdict, which is either that the mount serves or one line about why it can't.
//
// The commands of the layer store (image, layer, container, driver) open the store, do one thing and end; they run themselves
// again in a user namespace for an unprivileged user (unshare.go).
//
// Exit codes of what mounts are those of mount(8), see fault.go; the store's commands have a table of their own (store.go),
// as have fsck and index.
package main
