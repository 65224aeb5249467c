// Package metadata is the stack index: what the merged view of a stack of read-only lowers shows, one record per merged
// directory, computed once and kept in a database that all mounts of that stack share.
//
// A Stack names what is indexed. Record and Dir are the two sides of the codec: a Record is what a builder hands over, a Dir
// what a reader looks names up in without decoding the rest. Where they are kept is the business of package indexdb; this one
// does no I/O, and needs no database, which every program that mounts would have to start with.
//
// The index is derived: what it says can be found in the layers again. So a record that is damaged is answered with
// ErrDamaged, and its user asks the layers. The package knows nothing of layers beyond their names: whether a record still
// describes them is for its user to find out.
package metadata
