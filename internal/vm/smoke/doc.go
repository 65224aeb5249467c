// Package smoke proves that the virtual machine of make test-vm has what the tests in it need: device mapper, zfs, btrfs,
// xfs with quotas, overlayfs, and FUSE for plyfs itself. All of it is in test files with the tag vm.
package smoke
