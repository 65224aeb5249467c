#!/bin/sh
# After the files are there: systemd learns of the units, and the administrator of the next steps. Nothing is enabled or started: which
# engine is to use plyfs is not for a package to decide.
set -eu

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi

# An upgrade needs no instructions. Debian calls with "configure OLD-VERSION", RPM with the number of instances.
case "${1:-}:${2:-}" in
configure:?*) exit 0 ;;
2:* | 3:*) exit 0 ;;
esac

cat <<'TEXT'
plyfs is installed; nothing uses it yet.
  What works here:            plyfs doctor
  For podman and buildah:     plyfs install --as fuse-overlayfs
  For containerd:             systemctl enable --now plyfs-snapshotter
  For Docker 20.10 to 26:     systemctl enable --now plyfs-graphplugin.socket
  The rest is in plyfs(1).
TEXT
