#!/bin/sh
# run.sh KERNEL DISK [COMMAND] runs a shell command in a virtual machine with two empty disks, or a shell.
set -eu

kernel=$1 disk=$2 command=${3-}
machine=$(internal/vm/prepare.sh "$kernel")
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
trap 'exit 130' INT TERM
CGO_ENABLED=0 go build -o "$bin/" ./internal/vm ./cmd/plyfs
PATH=$bin:$PATH
if [ -z "$command" ]; then
	vm -machine "$machine" -disk "$disk" -disk "$disk" -shell
else
	vm -machine "$machine" -disk "$disk" -disk "$disk" sh -c "$command"
fi
