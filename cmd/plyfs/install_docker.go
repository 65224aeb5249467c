package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"plyfs/fs/server"
)

// daemonJSON is the configuration of dockerd.
func (in *installer) daemonJSON() string {
	if in.user {
		return filepath.Join(in.xdg("XDG_CONFIG_HOME", ".config"), "docker", "daemon.json")
	}
	return in.path("/etc/docker/daemon.json")
}

// dockerRoot is where dockerd keeps images if its configuration does not say.
func (in *installer) dockerRoot() string {
	if in.user {
		return filepath.Join(in.xdg("XDG_DATA_HOME", ".local/share"), "docker")
	}
	return in.path("/var/lib/docker")
}

// storageDriver is the key of daemon.json that names the graph driver.
const storageDriver = "storage-driver"

// planDocker makes dockerd use its driver fuse-overlayfs, which runs the program of that name on PATH.
func (in *installer) planDocker(p *installPlan, r installRecord) error {
	data := in.dockerRoot()
	err := in.planFile(p, r, engineDocker, in.daemonJSON(), func(name string, old []byte) ([]byte, error) {
		keys, err := objectKeys(name, old)
		if err != nil {
			return nil, err
		}
		if dir, err := stringIn(name, keys, "data-root"); err != nil {
			return nil, err
		} else if dir != "" {
			data = dir
		}
		driver, err := stringIn(name, keys, storageDriver)
		if err != nil {
			return nil, err
		}
		if driver == server.NameFuseOverlayfs {
			return old, nil
		}
		if err := dockerConflict(name, driver, keys); err != nil {
			return nil, err
		}
		return setJSON(name, old, storageDriver, server.NameFuseOverlayfs)
	})
	if err != nil {
		return err
	}
	for _, other := range []string{"overlay2", "vfs", "btrfs", "zfs", "devicemapper"} {
		if nonEmpty(filepath.Join(data, other)) {
			p.warn("%s has images and containers of the driver %s, which are not seen with another; they are there again after "+
				"plyfs uninstall", data, other)
		}
	}
	service := "systemctl restart docker"
	if in.user {
		service = "systemctl --user restart docker"
	}
	p.next = append(p.next, service, "docker info --format '{{.Driver}}'")
	return nil
}

// dockerConflict says which keys of daemon.json contradict the driver fuse-overlayfs.
func dockerConflict(name, driver string, keys map[string]json.RawMessage) error {
	if driver != "" {
		return fmt.Errorf("%s: %s is %s and was %w: its images and containers are not seen with another driver; "+
			"to change over, save them, remove the key, and install again", name, storageDriver, driver, errInstallConflict)
	}
	var errs []error
	var options []string
	if raw, ok := keys["storage-opts"]; ok {
		if err := json.Unmarshal(raw, &options); err != nil || len(options) > 0 {
			errs = append(errs, fmt.Errorf("%s: storage-opts are another driver's and were %w: remove them", name, errInstallConflict))
		}
	}
	var features map[string]any
	if raw, ok := keys["features"]; ok {
		if err := json.Unmarshal(raw, &features); err != nil {
			errs = append(errs, fmt.Errorf("%s: features: %w: correct it first", name, err))
		}
	}
	if features["containerd-snapshotter"] == true {
		errs = append(errs, fmt.Errorf("%s: containerd-snapshotter is on, so that Docker's images are containerd's, and was %w: "+
			"use --engine containerd, or turn it off", name, errInstallConflict))
	}
	return errors.Join(errs...)
}
