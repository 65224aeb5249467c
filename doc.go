// Package plyfs is the root of a union file system in userspace. It holds no code but the tests that guard the
// repository's shape: arch_test.go which package may import which, rules_test.go what no package may do, docs_test.go
// that the documents agree with the code.
//
// Where things are, from the top down; imports only go down:
//
//	cmd/plyfs       the program: command line, personalities, starting the server, exit codes
//	fs/fusefs       FUSE: node ids, caching, transports, data modes, errno
//	fs/mountopt     the grammar of -o
//	fs/union        the merged view: names, nodes, when to copy up
//	cow             how to copy up: staging, publishing, whiteouts, the work directory
//	cow/layer       one layer behind a directory descriptor
//	cow/ovl         the on-disk formats
//	internal/sys    raw system calls
//
// Beside them lie bench (workloads that measure file systems), fuzz (fuzz targets), fs/union/uniontest (the behaviour
// suite that runs on plyfs and on the kernel's overlayfs), and internal/{ci,demo,e2e,fingerprint,testenv}, which
// serve tests and the demo. docs/architecture.md is the introduction.
package plyfs
