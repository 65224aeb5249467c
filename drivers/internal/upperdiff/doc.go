// Package upperdiff tells what a layer in the overlay form changes in the layers below it, from its upper directory
// alone: the work grows with the changes, not with the image, and nothing is mounted.
//
// What counts is what a mount shows, so the package has no rules of its own about whiteouts, opaque directories,
// redirects, metadata-only copies, hard links or kept owners. It assembles two read-only unions (fs/union), of the
// layers with and without the upper, and compares them, but only where they can differ: at the names that the upper
// holds or deletes. A directory of the upper that shows other lower directories than those at its own path, because it
// is opaque or was renamed, is compared as a whole.
//
// What counts as a mark depends on who mounts (Layers.Forms). A mark that the mount does not know is something that a container wrote,
// and would delete files of the image in the difference alone.
//
// Hard links need more: with an index, a change of a file shows under all its names, also those in directories that the
// upper has not. They are looked for in the layers if the index says that there are such names; this alone takes time
// that grows with the lowers, and reads nothing but directories.
//
// Two trees differ at a path as tarlayer.Compare has it, with one addition: a file whose data lies in the upper is
// compared by content, if nothing else tells it from the one below. So a change is found even if size and time were
// restored.
//
// A layer may be mounted and in use: its upper is complete at every moment. The package writes nothing and has no
// locks; a View is for one goroutine at a time.
package upperdiff
