package devicemapper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"plyfs/drivers"
)

// Keys of records; see the package doc.
const (
	keyPool        = "pool"
	keyTransaction = "transaction"
	devicePrefix   = "device-"
)

// poolRecord is what is settled when a store begins.
type poolRecord struct {
	// Token tells the devices of this store from others in the kernel.
	Token string `json:"token"`
	// Pool, Data and Metadata are where the layers are: a pool's name, or the paths of what one is made from.
	Pool     string `json:"pool,omitempty"`
	Data     string `json:"data,omitempty"`
	Metadata string `json:"metadata,omitempty"`
	// Loop says that Data and Metadata are files of the home.
	Loop bool `json:"loop,omitempty"`
	// BlockSize is that of the pool, in bytes; 0 for one that someone else made.
	BlockSize uint64 `json:"blockSize,omitempty"`
	// FS is the file system of all layers.
	FS string `json:"fs"`
}

// deviceState says where a thin device is in its life.
type deviceState string

const (
	// stateMaking: it is not what it will be; whoever finds it so after a crash deletes it.
	stateMaking deviceState = "making"
	stateReady  deviceState = "ready"
	// stateLeaving: its layer was removed, and the device is to be deleted.
	stateLeaving deviceState = "leaving"
)

// baseLayer is what stands for a layer in the record of the base; no id is like it.
const baseLayer = "<base>"

// deviceRecord is a thin device.
type deviceRecord struct {
	Layer    string      `json:"layer"`
	Parent   string      `json:"parent,omitempty"`
	Writable bool        `json:"writable,omitempty"`
	State    deviceState `json:"state"`
	// Size is that of the device, in bytes. The file system may be smaller only while the state is making.
	Size uint64 `json:"size"`
	// Label is the SELinux context that it is always mounted with.
	Label string `json:"label,omitempty"`
	// Projects says that the file system counts what is in it, for project layerProject; Limited that it enforces a
	// limit.
	Projects bool `json:"projects,omitempty"`
	Limited  bool `json:"limited,omitempty"`

	id deviceID
}

func deviceKey(id deviceID) string { return devicePrefix + strconv.FormatUint(uint64(id), 10) }

type transactionOp string

const (
	opClaim  transactionOp = "claim"
	opCreate transactionOp = "create"
	opDelete transactionOp = "delete"
)

// transactionRecord is the last transaction.
type transactionRecord struct {
	// ID is the transaction id of the pool once this is done.
	ID     uint64        `json:"id"`
	Op     transactionOp `json:"op"`
	Device deviceID      `json:"device"`
	// Record is that of the device after its creation.
	Record *deviceRecord `json:"record,omitempty"`
}

// records are those of a store.
type records struct{ drivers.Ledger }

func (r records) put(ctx context.Context, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return r.Put(ctx, key, b)
}

// get reads a record; ok is false if there is none.
func (r records) get(ctx context.Context, key string, v any) (ok bool, err error) {
	b, err := r.Get(ctx, key)
	if errors.Is(err, drivers.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return false, fmt.Errorf("record %s: %w: %w", key, err, drivers.ErrDamaged)
	}
	return true, nil
}

func (r records) putDevice(ctx context.Context, d *deviceRecord) error {
	return r.put(ctx, deviceKey(d.id), d)
}

// devices reads the records of all devices.
func (r records) devices(ctx context.Context) (map[deviceID]*deviceRecord, error) {
	all := make(map[deviceID]*deviceRecord)
	err := r.Scan(ctx, devicePrefix, func(key string, value []byte) error {
		n, err := strconv.ParseUint(strings.TrimPrefix(key, devicePrefix), 10, 24)
		if err != nil {
			return fmt.Errorf("record %s: %w: %w", key, err, drivers.ErrDamaged)
		}
		d := &deviceRecord{id: deviceID(n)}
		if err := json.Unmarshal(value, d); err != nil {
			return fmt.Errorf("record %s: %w: %w", key, err, drivers.ErrDamaged)
		}
		all[d.id] = d
		return nil
	})
	return all, err
}
