// Package upper runs the behaviour suite of the union with its layers on file systems that this machine's kernel does not have: zfs, whose
// versions before 2.2 know no flags of renameat2. It also tries what kernels do that are older than this machine's. All of it is in test
// files with the tag vm.
package upper
