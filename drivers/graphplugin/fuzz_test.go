package graphplugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"testing"

	"plyfs/drivers"
)

// FuzzRequests: any body is a request or an error of the right class, and what an Init means survives being written down.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{
		``, `{}`, `null`, `[]`, `{"ID":"x","Parent":"y","StorageOpt":{"size":"1.5GiB"}}`, `{"Home":"/a","Opts":null}`,
		`{"Home":"/var/lib/docker/plyfs","Opts":["plyfs.driver=overlay2","plyfs.size=10g","plyfs.mountopt=a,b=c"],` +
			`"UIDMaps":[{"container_id":0,"host_id":100000,"size":65536}],"GIDMaps":[{"container_id":0,"host_id":1,"size":1}]}`,
		`{"Home":"/a","UIDMaps":[{"container_id":4294967295,"host_id":1,"size":4294967295}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if req, err := decode[layerRequest](bytes.NewReader(body)); err == nil {
			q, err := parseQuota(req.StorageOpt)
			if err != nil && !errors.Is(err, drivers.ErrInvalid) || q.Bytes < 0 || q.Inodes < 0 {
				t.Errorf("quota %+v, %v", q, err)
			}
		} else if !errors.Is(err, errRequest) {
			t.Errorf("not a request: %v", err)
		}
		req, err := decode[initRequest](bytes.NewReader(body))
		if err != nil {
			if !errors.Is(err, errRequest) {
				t.Errorf("not a request: %v", err)
			}
			return
		}
		s, err := req.parse()
		if err != nil {
			if !errors.Is(err, drivers.ErrInvalid) {
				t.Errorf("a bad Init: %v", err)
			}
			return
		}
		kept, err := json.Marshal(req)
		must(t, err)
		again, err := decode[initRequest](bytes.NewReader(kept))
		if err != nil || !again.equal(req) {
			t.Errorf("kept as %s, read as %+v, %v", kept, again, err)
		}
		for _, m := range []idMap{s.uid, s.gid} {
			for _, id := range []int{0, 1, 1000, math.MaxUint32} {
				host, err := m.toHost(id)
				if err != nil {
					continue
				}
				if back, err := m.toContainer(host); err != nil || back != id {
					t.Errorf("%v maps %d to %d, and that to %d, %v", m, id, host, back, err)
				}
			}
		}
	})
}

func TestParseSize(t *testing.T) {
	for text, expected := range map[string]int64{
		"0": 0, "1000": 1000, "1b": 1, "64k": 64 << 10, "1K": 1 << 10, "1kb": 1 << 10, "2MiB": 2 << 20, "500m": 500 << 20,
		"1.5g": 3 << 29, "10 GB": 10 << 30, "2t": 2 << 40, "1p": 1 << 50,
	} {
		if got, err := parseSize(text); err != nil || got != expected {
			t.Errorf("%q is %d, %v; want %d", text, got, err, expected)
		}
	}
	for _, text := range []string{
		"", "k", "-1", "1e3", "1.2.3", "1kk", "1ik", "1i", "1bb", "ten", "0x10", "9223372036854775808", "8388608t", "1 000", "inf", "nan", "1bib",
	} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is %d, want an error", text, got)
		}
	}
}
