package main

import (
	"fmt"
	"path/filepath"
	"runtime"

	"github.com/pelletier/go-toml/v2"

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
	if err := in.warnUnpack(p); err != nil {
		return err
	}
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

// warnUnpack says that containerd 2 unpacks images for those snapshotters only that another table names.
func (in *installer) warnUnpack(p *installPlan) error {
	text, err := readConfig(in.containerdTOML())
	if err != nil {
		return err
	}
	var conf struct {
		Version int `toml:"version"`
		Plugins map[string]struct {
			Unpack []struct {
				Snapshotter string `toml:"snapshotter"`
			} `toml:"unpack_config"`
		} `toml:"plugins"`
	}
	if toml.Unmarshal(text, &conf) != nil || conf.Version < 3 {
		return nil //nolint:nilerr // what is wrong with it is said where it is changed
	}
	for _, c := range conf.Plugins["io.containerd.transfer.v1.local"].Unpack {
		if c.Snapshotter == server.NamePlyfs {
			return nil
		}
	}
	p.warn("containerd 2 unpacks images for plyfs only if %s says so: [[plugins.'io.containerd.transfer.v1.local'.unpack_config]] with "+
		"platform = \"linux/%s\", snapshotter = \"plyfs\" and differ = \"walking\"; see containerd.md", in.containerdTOML(), runtime.GOARCH)
	return nil
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
