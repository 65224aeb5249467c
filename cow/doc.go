// Package cow is how a union changes its upper layer so that a crash at any system call leaves the old state or the new
// one: objects are staged in the work directory, complete, and published by one rename or link.
//
// It owns the work directory (Work), the copying of data and attributes, and the writing of whiteouts and opaque
// directories in the form that the upper's file system allows. When to copy up, and under which locks, is fs/union's
// business; the formats are cow/ovl's. Work is safe for concurrent use; its lock is a leaf, held while it makes the staging
// directory and the index, finds out what the file system can do, and mounts the private overlay of a volatile mount, each at the first need.
package cow
