// Package e2e holds the end-to-end tests of plyfs as its callers use it: as a mount program of containers/storage, under
// podman, buildah and dockerd, and nested in and over other union file systems. It has no code of its own.
//
// The tests run on the binary that testenv builds, or on the one that PLYFS_TEST_BINARY names, for example another
// program with the command line of fuse-overlayfs to compare with. Without a build tag only tests run that need no
// container engine; with the tag engines those that need podman, buildah and a static busybox run too, and with the tags
// engines and docker those that need dockerd. All of them work in mount and process namespaces of their own, with
// their own user database bound over that of the machine.
//
// conformance.sh runs checkouts of public file-system test suites on a mount.
package e2e
