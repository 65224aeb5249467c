package drivers

import (
	"context"
	"io"
	"os"
	"strings"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
)

// Unpack applies a tar stream to root, a directory that shows the parent's content: whiteouts delete. An error leaves
// root half-changed.
func Unpack(ctx context.Context, root string, r io.Reader, o *ApplyOptions) (tarlayer.ApplyResult, error) {
	l, err := layer.OpenPlain(root)
	if err != nil {
		return tarlayer.ApplyResult{}, err
	}
	defer l.Close()
	opts, r := o.Tar(r)
	return tarlayer.Apply(ctx, l, r, opts)
}

// Tar returns what tarlayer.Apply is to be called with: options that suit this process's privileges, for a plain tree,
// and a reader of the stream that reports progress. A nil o stands for none.
//
// In a user namespace devices are left out, as all unpackers do there: it cannot make them, and its containers get
// theirs from the runtime. With a single id, all files belong to it.
func (o *ApplyOptions) Tar(r io.Reader) (tarlayer.ApplyOptions, io.Reader) {
	if o == nil {
		o = &ApplyOptions{}
	}
	t := tarlayer.ApplyOptions{
		Whiteouts: tarlayer.WhiteoutRemove, Limits: o.Limits, Sum: true, Note: o.Note,
		KeepTrusted: o.KeepTrusted, AcceptUnterminated: o.AcceptUnterminated,
	}
	if ids := UserNamespace(); ids.Nested {
		t.Devices = tarlayer.DeviceSkip
		if ids.Single {
			t.Owner = tarlayer.OwnerIgnore
		}
	}
	return t, &countingReader{r: r, progress: o.Progress}
}

// countingReader tells how much of a stream was consumed.
type countingReader struct {
	r        io.Reader
	n        int64
	progress func(int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.progress != nil && n > 0 {
		c.progress(c.n)
	}
	return n, err
}

// IDs says what a process can be to a file system.
type IDs struct {
	// Nested says that the process is in a user namespace that is not the machine's; root of it is not root of the
	// machine.
	Nested bool
	// Single says that the namespace has one user.
	Single bool
}

// UserNamespace describes the user namespace of this process. Where procfs does not tell, it is taken to be the
// machine's.
func UserNamespace() IDs {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return IDs{}
	}
	ranges := strings.Split(strings.TrimSpace(string(text)), "\n")
	f := strings.Fields(ranges[0])
	if len(f) != 3 {
		return IDs{}
	}
	return IDs{
		Nested: len(ranges) > 1 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295",
		Single: len(ranges) == 1 && f[2] == "1",
	}
}
