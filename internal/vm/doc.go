// Command vm runs a program of this machine under another kernel, in a virtual machine that is thrown away.
//
//	vm -machine DIR [-disk SIZE]... [-memory MIB] [-timeout D] COMMAND [ARGUMENT]...
//	vm -machine DIR [-disk SIZE]... [-memory MIB] -shell
//	vm symvers KERNEL
//
// DIR is a machine that prepare.sh made: user-mode Linux, which is a process, or a kernel for qemu. The program sees the
// host's tree, read-only below a tmpfs, so that tools and test binaries are there and whatever it writes is gone
// afterwards; it runs as root, in the directory that vm was started in, with vm's environment and
//
//	PLYFS_VM=1            says that it runs in a virtual machine
//	PLYFS_VM_DISKS        the devices of the empty disks that -disk asked for, separated by spaces
//	DM_DISABLE_UDEV=1     there is no udev: libdm makes its nodes itself
//	TMPDIR                a tmpfs
//
// Its output, both streams in one, is vm's output, and its exit status vm's. That is what `go test -exec` wants. If the
// machine overruns its time limit it is killed and the status is 124; if it ends without saying how the program did, it is
// 125; both show the end of the kernel's console. Nothing is left behind, even if vm is killed: disks and the initial file
// system are files without names, and the machine's processes are in a PID namespace that dies with vm.
//
// With -shell the program is a shell on vm's terminal, and there is no time limit.
//
// symvers prints the Module.symvers of an ELF kernel; zfs.sh builds modules against it.
//
// vm must run as root.
package main
