// Package powercut takes the power away from plyfs while a program writes, and checks what is left. All of it is in test
// files.
//
// A program, the load, works in a mount of plyfs whose upper is on the disk under test, in steps that each begin with lower
// files, and prints a promise when fsync has returned. A cut is the disk as it was at one moment. It is looked at in two ways,
// each as the first thing after the cut: a mount of plyfs recovers it, or plyfs fsck --repair does. Then every step must be in a
// state that its kind allows, old or new and never a third one; what was promised must be there; plyfs fsck must find no
// error; and the kernel's overlayfs must show the same.
//
// Cuts are made in two ways. In make test, the disk is a file on XFS, of which a clone is atomic against writes (TestClones).
// In make test-vm, dm-log-writes records every write, and the log is replayed to each point that a flush made durable
// (TestLogWrites).
//
// Layer stores and indexes are put through the same by TestStore and TestIndex.
package powercut
