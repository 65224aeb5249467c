#!/bin/sh
# Before the files go: the daemons end. Servers of mounts go on, from the deleted file, until what they serve is unmounted.
set -eu

# An upgrade keeps them: Debian calls with "upgrade", RPM with the number of instances that stay.
case "${1:-}" in
upgrade | 1 | 2) exit 0 ;;
esac

# What plyfs install changed would name programs that are gone. What was changed since stays, and is said.
if [ -e /var/lib/plyfs/install.json ]; then
	plyfs uninstall || echo "plyfs: engines may still name its programs; see /var/lib/plyfs/install.json" >&2
fi

if [ -d /run/systemd/system ]; then
	systemctl --no-reload disable --now plyfs-snapshotter.service plyfs-graphplugin.service plyfs-graphplugin.socket \
		plyfs-metrics.service || true
fi
