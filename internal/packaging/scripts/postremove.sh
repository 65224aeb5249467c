#!/bin/sh
# After the files are gone: systemd forgets the units. On a purge what can be made anew goes too; stores hold images and containers, and stay.
set -eu

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
if [ "${1:-}" = purge ]; then
	rm -rf /var/cache/plyfs
fi
