#!/bin/sh
# test.sh KERNEL DISK GO-TEST-ARGUMENT... runs tests in virtual machines, one for each package, with two empty disks of the
# given size each.
set -eu

kernel=$1 disk=$2
shift 2
machine=$(internal/vm/prepare.sh "$kernel")
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
trap 'exit 130' INT TERM
export CGO_ENABLED=0
go build -o "$bin/" ./internal/vm ./cmd/plyfs
go build -o "$bin/" ./internal/ci
PLYFS_TEST_BINARY=$bin/plyfs "$bin/ci" -timeout 130m -- -tags vm,invariants -count=1 -timeout 119m \
	-exec "$bin/vm -machine '$machine' -disk $disk -disk $disk -timeout 120m" "$@"
