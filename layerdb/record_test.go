package layerdb

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"plyfs/drivers"
)

func sampleRecords() map[string]Record {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	d := diffID([]byte("layer"))
	low := Layer{
		ID: ChainID(d), DiffID: d, Size: 1, Content: 2, Entries: 3, Created: at, Sum: 1<<64 - 1, Stream: StreamSplit,
		StreamSum: d, CacheID: "0123",
	}
	high := low
	high.Parent, high.ID, high.Stream = low.ID, ChainOf(d, d), StreamWhole
	return map[string]Record{
		"layer":       {Layer: &low, Drivers: []string{"vfs"}},
		"upper layer": {Layer: &high, Drivers: []string{"vfs", "plyfs"}},
		"container": {Container: &Container{
			Name: "c", ID: "45", Parent: high.ID, Created: at, Quota: drivers.Quota{Bytes: 1, Inodes: 2}, MountLabel: "l",
			Options: map[string]string{"a": "b"}, Labels: map[string]string{"c": "d"}, Mounts: 2, Boot: "x",
		}, Drivers: []string{"vfs"}},
		"holder": {Holder: &Holder{Kind: "image", Key: "docker.io/a/b:latest", Layers: []ChainID{high.ID}, Data: []byte{0, 1}, Created: at, Expires: at}},
	}
}

func TestRecordRoundTrip(t *testing.T) {
	for name, r := range sampleRecords() {
		b, err := EncodeRecord(r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := DecodeRecord(b); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, r)
		}
	}
}

// Each field that cannot be is refused on the way in and on the way out.
func TestRecordRefuses(t *testing.T) {
	for name, spoil := range map[string]func(r *Record){
		"nothing":               func(r *Record) { r.Layer = nil },
		"two things":            func(r *Record) { r.Container = sampleRecords()["container"].Container },
		"no driver":             func(r *Record) { r.Drivers = nil },
		"odd driver":            func(r *Record) { r.Drivers = []string{"a/b"} },
		"another chain":         func(r *Record) { r.Layer.ID = ChainOf(diffID(nil)) },
		"parent":                func(r *Record) { r.Layer.Parent = "x" },
		"digest":                func(r *Record) { r.Layer.DiffID = "sha256:00" },
		"digest of the stream":  func(r *Record) { r.Layer.StreamSum = "" },
		"size":                  func(r *Record) { r.Layer.Size = -1 },
		"stream":                func(r *Record) { r.Layer.Stream = "half" },
		"name at the driver":    func(r *Record) { r.Layer.CacheID = "../x" },
		"container's name":      func(r *Record) { *r = sampleRecords()["container"]; r.Container.Name = "" },
		"container's id":        func(r *Record) { *r = sampleRecords()["container"]; r.Container.ID = "" },
		"container's parent":    func(r *Record) { *r = sampleRecords()["container"]; r.Container.Parent = "x" },
		"container's quota":     func(r *Record) { *r = sampleRecords()["container"]; r.Container.Quota.Bytes = -1 },
		"holder's kind":         func(r *Record) { *r = sampleRecords()["holder"]; r.Holder.Kind = "layer" },
		"holder's key":          func(r *Record) { *r = sampleRecords()["holder"]; r.Holder.Key = strings.Repeat("x", MaxKey+1) },
		"holder's layers":       func(r *Record) { *r = sampleRecords()["holder"]; r.Holder.Layers = []ChainID{"x"} },
		"holder's data":         func(r *Record) { *r = sampleRecords()["holder"]; r.Holder.Data = make([]byte, MaxData+1) },
		"a holder in a driver":  func(r *Record) { *r = sampleRecords()["holder"]; r.Drivers = []string{"vfs"} },
		"holder's key not text": func(r *Record) { *r = sampleRecords()["holder"]; r.Holder.Key = "\xff" },
	} {
		r := sampleRecords()["layer"]
		spoil(&r)
		if b, err := EncodeRecord(r); !errors.Is(err, drivers.ErrInvalid) {
			t.Errorf("%s: encoded as %s, %v", name, b, err)
		}
	}
	good, err := EncodeRecord(sampleRecords()["layer"])
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"empty": "", "cut": string(good[:len(good)-1]), "more": string(good) + "{}", "null": "null", "list": "[]",
		"unknown field": strings.Replace(string(good), `"size"`, `"sise"`, 1), "wrong type": strings.Replace(string(good), `"size":1`, `"size":"1"`, 1),
	} {
		if r, err := DecodeRecord([]byte(b)); !errors.Is(err, drivers.ErrDamaged) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestTopDown(t *testing.T) {
	in := []work{{ID: "a"}, {ID: "c", Parent: "b"}, {ID: "b", Parent: "a"}, {ID: "d", Parent: "b"}, {ID: "x", Parent: "elsewhere"}}
	at := make(map[string]int)
	for i, w := range topDown(in) {
		at[w.ID] = i + 1
	}
	if len(at) != len(in) || at["c"] > at["b"] || at["d"] > at["b"] || at["b"] > at["a"] {
		t.Errorf("order: %v", at)
	}
}
