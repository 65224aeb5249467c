// Package fsck checks an upper layer and its work directory, and repairs what can be repaired without losing anything.
//
// Run walks the upper once, next to the merged lowers that it was used over, and looks at every mark of the overlay
// format: whiteouts, opaque directories, redirects, metadata-only copies, origins, link counts, and plyfs's own. It
// looks at what the work directory holds: staged leftovers, the hard-link index, the record of unsynced copy-ups, the
// mark of a volatile mount. Only if the index has entries is the merged tree walked too, to count the names of each.
// What is out of order becomes a Finding of a Class, which is a stable word.
//
// A repair never removes content that an application wrote, and never changes a lower. What can't be repaired so is
// reported with the way out.
//
// Everything is reached by *at calls beneath the layers' descriptors, and no symlink is followed. Trees of any depth
// are walked without recursion. Memory grows with the depth of the tree, the subdirectories of one directory, the
// redirects and the entries of the hard-link index, not with the number of files. The package takes no locks and
// keeps no state.
package fsck
