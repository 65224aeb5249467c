// Package uniontest is the behaviour suite of the union: one list of cases, many implementations.
//
// A Factory makes Trees of one implementation: the engine by direct calls, plyfs over FUSE in each of its modes, and the
// kernel's overlayfs, which is the oracle. Run builds the layers that a case asks for, opens a Tree over them, lets the
// case work, and afterwards does what every case owes: the tree is closed and opened again and must look the same, the
// work directory must hold nothing staged, and the same layers opened by the other implementations must show the same
// tree.
//
// Where plyfs departs from the kernel's overlayfs on purpose, a case asks C.Differs with the identifier of a
// Difference; Differences is the whole list, which docs/semantics.md explains.
//
// # Files
//
// tree.go has the interface that implementations offer, fixture.go the appliers that layers are made of, run.go the
// runner, check.go what cases check with, cases_*.go the cases by subject.
package uniontest
