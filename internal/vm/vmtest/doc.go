// Package vmtest gives tests what a virtual machine has and the host has not: empty disks. Command vm starts the machine.
//
// Tests that need a machine are built with the tag vm, and run by make test-vm. The package is imported by tests only.
package vmtest
