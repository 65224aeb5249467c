package fuzz

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// FuzzLayerRecord holds that any bytes are damaged or a record, and that a record that is taken is written, and read
// again as it was.
func FuzzLayerRecord(f *testing.F) {
	d := digest.FromString("layer")
	for _, r := range []layerdb.Record{
		{Layer: &layerdb.Layer{
			ID: layerdb.ChainOf(d), DiffID: d, Created: time.Unix(1, 2).UTC(), Sum: 7, Stream: layerdb.StreamSplit, StreamSum: d, CacheID: "0",
		}, Drivers: []string{"vfs"}},
		{Container: &layerdb.Container{
			Name: "c", ID: "1", Parent: layerdb.ChainOf(d), Quota: drivers.Quota{Bytes: 1}, Labels: map[string]string{"a": "b"}, Mounts: 1,
		}, Drivers: []string{"vfs"}},
		{Holder: &layerdb.Holder{Kind: "image", Key: "a/b:c", Layers: []layerdb.ChainID{layerdb.ChainOf(d)}, Data: []byte("{}")}},
	} {
		b, err := layerdb.EncodeRecord(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := layerdb.DecodeRecord(b)
		if err != nil {
			if !errors.Is(err, drivers.ErrDamaged) {
				t.Errorf("%v, want ErrDamaged", err)
			}
			return
		}
		once, err := layerdb.EncodeRecord(r)
		if err != nil {
			t.Fatalf("a record that is taken cannot be written: %v", err)
		}
		again, err := layerdb.DecodeRecord(once)
		if err != nil {
			t.Fatalf("%s is not taken: %v", once, err)
		}
		twice, err := layerdb.EncodeRecord(again)
		if err != nil || !reflect.DeepEqual(once, twice) {
			t.Errorf("%s becomes %s, %v", once, twice, err)
		}
	})
}
