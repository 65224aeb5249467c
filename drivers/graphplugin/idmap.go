package graphplugin

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"plyfs/drivers"
)

// idMap maps ids between containers and the machine, where dockerd runs with --userns-remap: layers hold ids of the machine,
// streams those of containers. The empty map is the identity.
type idMap []idRange

// newIDMap checks a map. The error wraps drivers.ErrInvalid.
func newIDMap(name string, ranges []idRange) (idMap, error) {
	for i, a := range ranges {
		if a.Size == 0 || a.ContainerID > math.MaxUint32-a.Size || a.HostID > math.MaxUint32-a.Size {
			return nil, fmt.Errorf("%s: range %+v is empty, or beyond the largest id: %w", name, a, drivers.ErrInvalid)
		}
		for _, b := range ranges[:i] {
			if overlap(a.ContainerID, b.ContainerID, a.Size, b.Size) || overlap(a.HostID, b.HostID, a.Size, b.Size) {
				return nil, fmt.Errorf("%s: ranges %+v and %+v overlap: %w", name, b, a, drivers.ErrInvalid)
			}
		}
	}
	m := idMap(ranges)
	if len(m) > 0 {
		if _, err := m.toHost(0); err != nil {
			return nil, fmt.Errorf("%s: root of containers: %w", name, err)
		}
	}
	return m, nil
}

func overlap(a, b, sizeA, sizeB uint32) bool { return a < b+sizeB && b < a+sizeA }

// toHost is the id of the machine for one of a container. The error wraps drivers.ErrInvalid.
func (m idMap) toHost(id int) (int, error) {
	if len(m) == 0 {
		return id, nil
	}
	for _, r := range m {
		if id >= int(r.ContainerID) && id < int(r.ContainerID)+int(r.Size) {
			return id - int(r.ContainerID) + int(r.HostID), nil
		}
	}
	return 0, fmt.Errorf("id %d of containers is not mapped (--userns-remap, subuid(5)): %w", id, drivers.ErrInvalid)
}

// toContainer is the id of containers for one of the machine. The error wraps drivers.ErrInvalid.
func (m idMap) toContainer(id int) (int, error) {
	if len(m) == 0 {
		return id, nil
	}
	for _, r := range m {
		if id >= int(r.HostID) && id < int(r.HostID)+int(r.Size) {
			return id - int(r.HostID) + int(r.ContainerID), nil
		}
	}
	return 0, fmt.Errorf("id %d of the machine is not mapped (--userns-remap, subuid(5)): %w", id, drivers.ErrInvalid)
}

// mapped says whether ids differ between containers and the machine.
func (s settings) mapped() bool { return len(s.uid) > 0 }

// root is who root of containers is on the machine.
func (s settings) root() (uid, gid int, err error) {
	uid, uidErr := s.uid.toHost(0)
	gid, gidErr := s.gid.toHost(0)
	return uid, gid, errors.Join(uidErr, gidErr)
}

// toDisk returns a stream of a layer with owners as they are on disk. first says that the layer has no parent, from which its
// root would have its owner: then root of containers owns it, unless the stream says otherwise. The caller closes it.
func (s settings) toDisk(ctx context.Context, r io.Reader, first bool) io.ReadCloser {
	return drivers.Stream(ctx, func(_ context.Context, w io.Writer) error {
		out := tar.NewWriter(w)
		if first {
			uid, gid, err := s.root()
			if err != nil {
				return err
			}
			root := tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755, Uid: uid, Gid: gid}
			if err := out.WriteHeader(&root); err != nil {
				return err
			}
		}
		return translate(out, r, func(hdr *tar.Header) error { return owner(hdr, s.uid.toHost, s.gid.toHost) })
	}, func() error { return nil })
}

// toStream returns a difference, which it closes, with owners as containers see them. The caller closes it.
func (s settings) toStream(ctx context.Context, r io.ReadCloser) io.ReadCloser {
	return drivers.Stream(ctx, func(_ context.Context, w io.Writer) error {
		return translate(tar.NewWriter(w), r, func(hdr *tar.Header) error {
			if isDeletion(hdr) {
				return nil // it has root's numbers, as containers see them
			}
			return owner(hdr, s.uid.toContainer, s.gid.toContainer)
		})
	}, r.Close)
}

// isDeletion says whether a member of a difference may be a whiteout, which says nothing of itself but its name. A file with these
// attributes that is none is one that no container made.
func isDeletion(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeReg && hdr.Size == 0 && hdr.Mode == 0 && hdr.Uid == 0 && hdr.Gid == 0 && hdr.ModTime.Unix() == 0
}

// owner gives a member another owner.
func owner(hdr *tar.Header, uid, gid func(int) (int, error)) (err error) {
	if hdr.Uid, err = uid(hdr.Uid); err == nil {
		hdr.Gid, err = gid(hdr.Gid)
	}
	if err != nil {
		return fmt.Errorf("owner of %s: %w", hdr.Name, err)
	}
	return nil
}

// translate copies the members of a stream with what change makes of their headers, and then ends it.
func translate(out *tar.Writer, r io.Reader, change func(*tar.Header) error) error {
	in := tar.NewReader(r)
	for {
		hdr, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return err
		}
		if err := change(hdr); err != nil {
			return err
		}
		plain(hdr)
		if err := out.WriteHeader(hdr); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return fmt.Errorf("content of %s: %w", hdr.Name, err)
		}
	}
}

// plain makes a header that was read one that can be written.
func plain(hdr *tar.Header) {
	// The writer makes some records of the header's fields, and the reader has filled the holes.
	maps.DeleteFunc(hdr.PAXRecords, func(key, _ string) bool {
		return key == "uid" || key == "gid" || strings.HasPrefix(key, "GNU.sparse.")
	})
	if hdr.Typeflag == tar.TypeGNUSparse {
		hdr.Typeflag = tar.TypeReg
	}
	if hdr.Format = tar.FormatUnknown; len(hdr.PAXRecords) > 0 {
		hdr.Format = tar.FormatPAX // parts of seconds stay
	}
}

// admit lets root of containers, who owns nothing of the store, reach dir: it may search the directories from home down to dir,
// which is excluded, as members of its group (cf. moby daemon/graphdriver/overlay2, whose directories are so from the start).
func (s settings) admit(dir string) error {
	_, gid, err := s.root()
	if err != nil {
		return err
	}
	below, err := filepath.Rel(s.home, dir)
	if err != nil || below == ".." || strings.HasPrefix(below, "../") {
		return fmt.Errorf("%s is not beneath %s: %w", dir, s.home, drivers.ErrInvalid)
	}
	for at := filepath.Dir(dir); ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		if err != nil {
			return err
		}
		const search = 0o010
		if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Gid) != gid {
			err = os.Lchown(at, -1, gid)
		}
		if err == nil && info.Mode()&search == 0 {
			err = os.Chmod(at, info.Mode().Perm()|search)
		}
		if err != nil {
			return fmt.Errorf("let root of containers search %s: %w", at, err)
		}
		if at == s.home {
			return nil
		}
	}
}
