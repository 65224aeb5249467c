package graphplugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// contentType is that of all answers but streams: the version of the protocol of plugins.
const contentType = "application/vnd.docker.plugins.v1.2+json"

// maxRequest bounds the body of a request in bytes, streams excepted. The largest that dockerd sends are some kilobytes.
const maxRequest = 1 << 20

// initRequest is what dockerd says when it starts, and the content of the file that keeps it.
type initRequest struct {
	// Home is the absolute path of the directory for this plugin's layers.
	Home string
	// Opts are the storage options of dockerd, each NAME=VALUE.
	Opts []string
	// UIDMaps and GIDMaps are those of --userns-remap; empty without.
	UIDMaps, GIDMaps []idRange
}

// idRange maps ids of containers to ids of the machine.
type idRange struct {
	ContainerID uint32 `json:"container_id"`
	HostID      uint32 `json:"host_id"`
	Size        uint32 `json:"size"`
}

// layerRequest is the request of all other calls.
type layerRequest struct {
	ID         string
	Parent     string
	MountLabel string
	StorageOpt map[string]string
}

// response is the answer to all calls, of which each fills in its own field.
type response struct {
	Err          string            `json:",omitempty"`
	Implements   []string          `json:",omitempty"`
	Capabilities *capabilities     `json:",omitempty"`
	Dir          string            `json:",omitempty"`
	Exists       bool              `json:",omitempty"`
	Status       [][2]string       `json:",omitempty"`
	Metadata     map[string]string `json:",omitempty"`
	Changes      []change          `json:",omitempty"`
	Size         int64             `json:",omitempty"`
}

// capabilities are what dockerd may rely on.
type capabilities struct {
	// ReproducesExactDiffs says that Diff gives the bytes that ApplyDiff was given. Without it dockerd keeps what it needs
	// (tar-split) to make them of the layer's files.
	ReproducesExactDiffs bool
}

// change is a path that differs, with docker's numbers for how (cf. moby pkg/archive/changes.go ChangeType).
type change struct {
	Path string
	Kind int
}

const (
	changeModify = iota
	changeAdd
	changeDelete
)

// errRequest says that a request is not one of this protocol.
var errRequest = errors.New("malformed request")

// decode reads a request of at most maxRequest bytes; an empty body is a request without arguments. The error wraps
// errRequest, or is that of reading.
func decode[T any](body io.Reader) (req T, err error) {
	b, err := io.ReadAll(io.LimitReader(body, maxRequest+1))
	if err != nil {
		return req, fmt.Errorf("read the request: %w", err)
	}
	if len(b) > maxRequest {
		return req, fmt.Errorf("%w: it has more than %d bytes", errRequest, maxRequest)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return req, nil
	}
	if err := json.Unmarshal(b, &req); err != nil {
		return req, fmt.Errorf("%w: %w", errRequest, err)
	}
	return req, nil
}
