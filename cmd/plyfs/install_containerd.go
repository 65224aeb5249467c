package main

import (
	"fmt"
	"path/filepath"

	"plyfs/fs/server"
)

// containerdTOML is the configuration of containerd.
func (in *installer) containerdTOML() string {
	if in.user {
		return filepath.Join(in.xdg("XDG_CONFIG_HOME", ".config"), "containerd", "config.toml")
	}
	return in.path("/etc/containerd/config.toml")
}

// snapshotterAddress is where plyfs snapshotter listens if it is not told otherwise.
func (in *installer) snapshotterAddress() (string, error) {
	if !in.user {
		return "/run/plyfs/snapshotter.sock", nil
	}
	dir, err := in.runtimeDir()
	return filepath.Join(dir, server.NamePlyfs, "snapshotter.sock"), err
}

// planContainerd tells containerd of the snapshotter, in its configuration or in words.
func (in *installer) planContainerd(p *installPlan, r installRecord, write bool) error {
	address, err := in.snapshotterAddress()
	if err != nil {
		return err
	}
	restart := "systemctl "
	if in.user {
		restart += "--user "
	}
	p.next = append(p.next, restart+"enable --now plyfs-snapshotter", restart+"restart containerd")
	if !write {
		t := &tomlText{name: in.containerdTOML()}
		p.show, err = t.withSnapshotter(address)
		return err
	}
	return in.planFile(p, r, engineContainerd, in.containerdTOML(), func(name string, old []byte) ([]byte, error) {
		t := &tomlText{name: name, text: old}
		if len(old) == 0 {
			// Without it containerd 1 takes the file for one of version 1.
			t.text = []byte("version = 2\n")
		}
		text, err := t.withSnapshotter(address)
		return []byte(text), err
	})
}

// withSnapshotter adds the snapshotter to proxy_plugins.
func (t *tomlText) withSnapshotter(address string) (string, error) {
	for _, kv := range []struct{ key, value string }{{"type", "snapshot"}, {"address", address}} {
		path := []string{"proxy_plugins", server.NamePlyfs, kv.key}
		is, set, err := t.get(path...)
		switch {
		case err != nil:
			return "", err
		case set && is == kv.value:
			continue
		case set:
			return "", fmt.Errorf("%s: proxy_plugins.%s has %s = %q and was %w: remove it, and install again",
				t.name, server.NamePlyfs, kv.key, is, errInstallConflict)
		}
		if err := t.set(kv.value, path...); err != nil {
			return "", err
		}
	}
	return string(t.text), nil
}
