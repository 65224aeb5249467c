// Package bench measures file systems that unite layers: plyfs, with and without its index of the layers, the kernel's
// overlayfs and fuse-overlayfs.
//
// It owns three things.
//
// Workloads (workload.go and one file per verb) are plain functions over a directory. Each prepares itself, calls
// [Env.Measure] exactly once around the part that counts, and then verifies that it did what it says, so that a number
// can't come from work that was not done. They know nothing of the file system below them.
//
// The runner (run.go, sample.go, child.go) gives every sample a fresh upper, a fresh work directory and a fresh mount,
// over layers that are built once. The systems alternate within one run, in reversed order every second round, so
// that slow changes of the machine meet all of them alike. A workload always runs in a process of its own, never in
// the one that serves the mount, and starts with empty descriptor and path caches of its own.
//
// Reports (report.go, table.go, plot.go, accept.go) are medians and ratios as a table, as JSON, as a plot, and as a
// verdict on each row of the list of what plyfs has to reach.
//
// # Words of the state of the caches
//
//   - cold: the mount is fresh, and the kernel's caches were dropped before it was made. The medium loop
//     is made for it: a new ext4 in a file, of which nothing stays in memory, neither as a file nor as a device.
//   - first: the mount is fresh, and the backing directories and data are in the kernel's caches.
//   - warm, hot: the same access was made before in the same mount.
//
// # The index
//
// The system plyfs-index is plyfs with data=noopen and the index of the fixture's layers (index.go), which is built
// beside them before the first sample, on the same medium, and cached and dropped as they are. That a server has it open
// is verified. All other variants of plyfs run with index=off. What a large index costs is in indexing.go.
//
// There are no locks: one sample runs at a time. The package has no state of its own; all of it is in [Runner] and [Env].
package bench
