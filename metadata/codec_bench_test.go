package metadata_test

import (
	"fmt"
	"testing"

	"plyfs/metadata"
	"plyfs/metadata/metadatatest"
)

func BenchmarkEncode(b *testing.B) {
	rec := metadatatest.TypicalRecord(100)
	var buf []byte
	for b.Loop() {
		buf, _ = rec.Encode(buf[:0])
	}
	b.ReportMetric(float64(len(buf))/100, "B/entry")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/entry")
}

func BenchmarkDecodeDir(b *testing.B) {
	buf, err := metadatatest.TypicalRecord(100).Encode(nil)
	if err != nil {
		b.Fatal(err)
	}
	s := string(buf)
	done := metadatatest.ReportCPU(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := metadata.DecodeDirString(s); err != nil {
			b.Fatal(err)
		}
	}
	done(b.N)
}

func BenchmarkFind(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rec := metadatatest.TypicalRecord(n)
			buf, err := rec.Encode(nil)
			if err != nil {
				b.Fatal(err)
			}
			d, err := metadata.DecodeDir(buf)
			if err != nil {
				b.Fatal(err)
			}
			var e metadata.Entry
			done := metadatatest.ReportCPU(b)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if ok, err := d.Find(rec.Entries[i%n].Name, &e); !ok || err != nil {
					b.Fatal(ok, err)
				}
				i++
			}
			done(b.N)
		})
	}
}
