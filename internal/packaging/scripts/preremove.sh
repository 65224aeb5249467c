#!/bin/sh
# Before the files go: the daemons end. Servers of mounts go on, from the deleted file, until what they serve is unmounted.
set -eu

# An upgrade keeps them: Debian calls with "upgrade", RPM with the number of instances that stay.
case "${1:-}" in
upgrade | 1 | 2) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl --no-reload disable --now plyfs-snapshotter.service plyfs-graphplugin.service plyfs-graphplugin.socket \
		plyfs-metrics.service || true
fi
