package server

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func order(text string) string {
	return string(binary.LittleEndian.AppendUint32(nil, uint32(len(text)))) + text
}

func TestReceiveOrder(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want []string
		err  error
	}{
		"good":      {in: order(`["plyfs","mount","-o","lowerdir=a:b","x y"]`), want: []string{"plyfs", "mount", "-o", "lowerdir=a:b", "x y"}},
		"nobody":    {in: "", err: io.EOF},
		"no length": {in: "\x01\x00", err: io.ErrUnexpectedEOF},
		"cut":       {in: order(`["plyfs"]`)[:8], err: io.ErrUnexpectedEOF},
		"all cut":   {in: order(`["plyfs"]`)[:4], err: io.ErrUnexpectedEOF},
		"too long":  {in: "\xff\xff\xff\x7f", err: unix.E2BIG},
		"no name":   {in: order(`[]`), err: unix.EINVAL},
	} {
		got, err := receiveOrder(strings.NewReader(c.in))
		if !slices.Equal(got, c.want) || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s: %q, %v; want %q, %v", name, got, err, c.want, c.err)
		}
	}
	if got, err := receiveOrder(strings.NewReader(order(`{"not":"a list"}`))); err == nil {
		t.Errorf("no list: %q", got)
	}
}
