package control

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The engines that an Owner names.
const (
	EnginePlyfs      = "plyfs"
	EnginePodman     = "podman"
	EngineBuildah    = "buildah"
	EngineDocker     = "docker"
	EngineContainerd = "containerd"
)

// Owner is whose mount it is, as far as files beside it tell. All fields may be "": a mount by hand has none.
type Owner struct {
	// Engine is one of the engines above.
	Engine string `json:"engine,omitempty"`
	// Container is the container's name, for containerd NAMESPACE/ID.
	Container string `json:"container,omitempty"`
	// Image is the name of the image that it was made of, or its id.
	Image string `json:"image,omitempty"`
}

// Owners finds out whose mounts are. It remembers the files of engines that it has read, so that it is good for one look at all
// mounts, by one goroutine.
type Owners struct {
	storages map[string]map[string]Owner
	stores   map[string]map[string]Owner
	dockers  map[string]map[string]Owner
}

// NewOwners returns an Owners that has read nothing.
func NewOwners() *Owners {
	return &Owners{
		storages: make(map[string]map[string]Owner), stores: make(map[string]map[string]Owner),
		dockers: make(map[string]map[string]Owner),
	}
}

// Find returns the owner of the mount on target with that upper, which a server of user uid serves. Files that neither that user nor
// root owns are not read.
func (o *Owners) Find(target, upper string, uid uint32) Owner {
	if id, root, ok := cutLayer(upper); ok && filepath.Base(filepath.Dir(root)) == "layers" {
		if owner := o.ofStore(filepath.Dir(filepath.Dir(root)), id, uid); owner != (Owner{}) {
			return mergeTarget(owner, target)
		}
		return mergeTarget(Owner{Engine: EnginePlyfs}, target)
	}
	if owner, ok := ofTask(target); ok {
		return owner
	}
	id, root, ok := cutLayer(upper)
	if !ok {
		if id, ok = strings.CutSuffix(target, "/merged"); !ok {
			return Owner{}
		}
		id, root = filepath.Base(id), filepath.Dir(id)
	}
	switch driver, home := filepath.Base(root), filepath.Dir(root); {
	case driver == "overlay" && isDir(filepath.Join(home, "overlay-layers")):
		if owner, known := o.ofStorage(home, uid)[id]; known {
			return owner
		}
		return Owner{Engine: EnginePodman}
	case isDir(filepath.Join(home, "image", driver, "layerdb")):
		return o.ofDocker(home, driver, id, uid)
	case driver == "layers" && isDir(filepath.Join(filepath.Dir(home), "image", filepath.Base(home), "layerdb")):
		// A graph-driver plugin keeps its layers in a directory where dockerd would have a driver's own.
		return o.ofDocker(filepath.Dir(home), filepath.Base(home), id, uid)
	}
	return Owner{}
}

// cutLayer takes ROOT/ID/diff, the form of uppers in all stores, apart.
func cutLayer(upper string) (id, root string, ok bool) {
	dir, ok := strings.CutSuffix(upper, "/diff")
	if !ok || !filepath.IsAbs(dir) {
		return "", "", false
	}
	return filepath.Base(dir), filepath.Dir(dir), true
}

// ofTask recognises the root of a container of containerd, and of dockerd with containerd's image store.
func ofTask(target string) (Owner, bool) {
	part := strings.Split(target, "/")
	n := len(part)
	switch {
	case n >= 4 && part[n-1] == "rootfs" && strings.HasPrefix(part[n-4], "io.containerd.runtime."):
		return Owner{Engine: EngineContainerd, Container: part[n-3] + "/" + part[n-2]}, true
	case n >= 4 && part[n-3] == "rootfs" && len(part[n-1]) == 64:
		return Owner{Engine: EngineDocker, Container: part[n-1][:12]}, true
	case n >= 2 && (part[n-2] == "tmpmounts" || strings.HasPrefix(part[n-1], "containerd-mount")):
		return Owner{Engine: EngineContainerd}, true
	}
	return Owner{}, false
}

// mergeTarget prefers what the target says of a container in plyfs's own store: an engine uses that store then.
func mergeTarget(owner Owner, target string) Owner {
	if task, ok := ofTask(target); ok && (task.Container != "" || owner.Container == "") {
		task.Image = owner.Image
		return task
	}
	return owner
}

// ofStorage reads a directory of containers/storage; the owners are by the id of their layer.
func (o *Owners) ofStorage(home string, uid uint32) map[string]Owner {
	if known, ok := o.storages[home]; ok {
		return known
	}
	owners := make(map[string]Owner)
	o.storages[home] = owners
	var images []struct {
		ID    string   `json:"id"`
		Names []string `json:"names"`
	}
	_ = readJSON(filepath.Join(home, "overlay-images", "images.json"), uid, &images)
	names := make(map[string]string)
	for _, i := range images {
		if names[i.ID] = short(i.ID); len(i.Names) > 0 {
			names[i.ID] = i.Names[0]
		}
	}
	for _, file := range []string{"containers.json", "volatile-containers.json"} {
		var containers []struct {
			ID       string   `json:"id"`
			Names    []string `json:"names"`
			Image    string   `json:"image"`
			Layer    string   `json:"layer"`
			Metadata string   `json:"metadata"`
		}
		_ = readJSON(filepath.Join(home, "overlay-containers", file), uid, &containers)
		for _, c := range containers {
			owner := Owner{Engine: EngineBuildah, Container: short(c.ID), Image: names[c.Image]}
			if len(c.Names) > 0 {
				owner.Container = c.Names[0]
			}
			// Podman notes there what its container is called; buildah keeps its own state elsewhere.
			if strings.Contains(c.Metadata, `"image-name"`) {
				owner.Engine = EnginePodman
			}
			owners[c.Layer] = owner
		}
	}
	return owners
}

// ofStore reads the copies of a plyfs store's records; the owners are by the id of their directory.
func (o *Owners) ofStore(root, id string, uid uint32) Owner {
	owners, ok := o.stores[root]
	if !ok {
		owners = readStore(filepath.Join(root, "records"), uid)
		o.stores[root] = owners
	}
	return owners[id]
}

// imageLabel is the label of a container with the id of its image (layerdb/image.LabelImage).
const imageLabel = "plyfs.image"

func readStore(dir string, uid uint32) map[string]Owner {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	owners, names := make(map[string]Owner), make(map[string]string)
	for _, e := range entries {
		var r struct {
			Container *struct {
				Name   string            `json:"name"`
				ID     string            `json:"id"`
				Labels map[string]string `json:"labels"`
			} `json:"container"`
			Snapshot *struct {
				Name string `json:"name"`
				ID   string `json:"id"`
			} `json:"snapshot"`
			Holder *struct {
				Kind string `json:"kind"`
				Key  string `json:"key"`
				Data []byte `json:"data"`
			} `json:"holder"`
		}
		if readJSON(filepath.Join(dir, e.Name()), uid, &r) != nil {
			continue
		}
		switch {
		case r.Container != nil:
			owners[r.Container.ID] = Owner{
				Engine: EnginePlyfs, Container: r.Container.Name, Image: r.Container.Labels[imageLabel],
			}
		case r.Snapshot != nil:
			owners[r.Snapshot.ID] = ofSnapshot(r.Snapshot.Name)
		case r.Holder != nil && r.Holder.Kind == "name":
			names[string(r.Holder.Data)] = r.Holder.Key
		}
	}
	for id, owner := range owners {
		if name, ok := names[owner.Image]; ok {
			owner.Image = name
		} else {
			owner.Image = short(strings.TrimPrefix(owner.Image, "sha256:"))
		}
		owners[id] = owner
	}
	return owners
}

// ofSnapshot recognises the snapshot of a container by its name: a snapshotter gets NAMESPACE/NUMBER/KEY from containerd, and dockerd has
// the namespace moby.
func ofSnapshot(name string) Owner {
	part := strings.SplitN(name, "/", 3)
	switch {
	case len(part) < 3:
		return Owner{Engine: EngineContainerd, Container: name}
	case part[0] == "moby":
		return Owner{Engine: EngineDocker, Container: short(part[2])}
	}
	return Owner{Engine: EngineContainerd, Container: part[0] + "/" + part[2]}
}

// ofDocker finds the container of a layer in dockerd's directory.
func (o *Owners) ofDocker(home, driver, id string, uid uint32) Owner {
	mounts := filepath.Join(home, "image", driver, "layerdb", "mounts")
	owners, ok := o.dockers[mounts]
	if !ok {
		owners = make(map[string]Owner)
		o.dockers[mounts] = owners
		entries, err := os.ReadDir(mounts)
		if err != nil {
			return Owner{Engine: EngineDocker}
		}
		for _, e := range entries {
			layer, err := readOwn(filepath.Join(mounts, e.Name(), "mount-id"), uid)
			if err != nil {
				continue
			}
			owner := Owner{Engine: EngineDocker, Container: short(e.Name())}
			var c struct {
				Name   string
				Config struct{ Image string }
			}
			if readJSON(filepath.Join(home, "containers", e.Name(), "config.v2.json"), uid, &c) == nil {
				owner.Container, owner.Image = strings.TrimPrefix(c.Name, "/"), c.Config.Image
			}
			owners[strings.TrimSpace(string(layer))] = owner
		}
	}
	if owner, known := owners[strings.TrimSuffix(id, "-init")]; known {
		return owner
	}
	return Owner{Engine: EngineDocker}
}

// short is the form in which people know ids.
func short(id string) string { return id[:min(12, len(id))] }

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// maxFile bounds a file of an engine.
const maxFile = 32 << 20

func readJSON(path string, uid uint32, v any) error {
	b, err := readOwn(path, uid)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// readOwn reads a regular file that belongs to uid or root. It blocks for no pipe, and follows no link in its name.
func readOwn(path string, uid uint32) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != uid && st.Uid != 0 || st.Size > maxFile {
		return nil, fmt.Errorf("%s is no file of user %d, or too large: %w", path, uid, ErrRefused)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}
