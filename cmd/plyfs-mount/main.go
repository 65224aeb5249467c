// The limit of the container's processors is not watched, as in plyfs.
//
//go:debug containermaxprocs=0

// Command plyfs-mount mounts unions of directories: it is what mount(8), podman, buildah and dockerd run, as mount.plyfs and
// fuse-overlayfs and under the names of the other mount helpers. It does what plyfs does under these names, and starts in
// half the time: every container waits for that, and the packages that the other commands of plyfs need take longer to initialise
// than a mount takes. A mount whose layers have an index is handed over to plyfs, which has the database.
package main

import (
	"io"
	"os"

	"plyfs/fs/server"
	"plyfs/internal/exit"
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is the program; it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	name := server.NameMount
	if len(args) > 0 {
		name = args[0]
	}
	p, ok := server.PersonalityOf(name)
	if !ok { // under a name of the user's own
		p = server.MountPersonality()
	}
	return exit.Report(p.Name(), server.Main(p, args[min(1, len(args)):], stdout, indexes{}), stderr)
}
