// Command plyfs mounts, serves and looks after union file systems.
//
// The binary has several personalities, chosen by the name it is called under. As plyfs it has subcommands. As
// fuse-overlayfs it takes the arguments of that program and behaves as its callers (podman, buildah, dockerd, containerd)
// need. As mount.plyfs, mount.fuse.plyfs and mount.fuse3.plyfs it is a helper of mount(8). They differ in how a command
// line is read and in how strict it is (server.Personality); what is mounted is the same.
//
// What mounts is package fs/server, which plyfs-mount shares: the same under all names but plyfs itself, and quicker to start.
//
// The commands of the layer store (image, layer, container, driver) open the store, do one thing and end; they run themselves
// again in a user namespace for an unprivileged user (unshare.go).
//
// Exit codes of what mounts are those of mount(8), see package exit; the store's commands have a table of their own (store.go),
// as have fsck and index.
package main
