package image

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// container makes a mounted container of an image and returns its root.
func container(t testing.TB, s *Store, i Image, name string) string {
	t.Helper()
	_, err := s.layers.CreateContainer(t.Context(), name, i.Top, layerdb.ContainerOptions{Labels: map[string]string{LabelImage: i.ID.String()}})
	must(t, err)
	root, err := s.layers.Mount(t.Context(), name, layerdb.MountOptions{})
	must(t, err)
	t.Cleanup(func() {
		if err := s.layers.Unmount(t.Context(), name); err != nil {
			t.Error(err)
		}
	})
	return root
}

// A commit makes an image of one layer more, whose config keeps what the image's said.
func TestCommit(t *testing.T) {
	f, _ := twoLayers(t)
	s := newStore(t)
	i := importOne(t, s, f.dir(t), ImportOptions{})
	root := container(t, s, i, "c1")
	must(t, os.WriteFile(filepath.Join(root, "new"), []byte("content"), 0o600))
	n, err := ParseName("committed:1")
	must(t, err)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	got, err := s.Commit(t.Context(), "c1", CommitOptions{
		Names: []Name{n}, Author: "me", Message: "why", Time: at,
		Changes: []string{`CMD ["/bin/app","-x"]`, `ENV A=1 B="two words" PATH=/sbin`, "LABEL a.b c d", "EXPOSE 80 53/udp", "WORKDIR /srv", "WORKDIR sub", "USER 1:2"},
	})
	must(t, err)
	if len(got.Layers) != 3 || got.Names[0] != n.String() || got.Manifest != nil || !got.Created.Equal(at) {
		t.Errorf("%+v", got)
	}
	raw, config, err := s.Config(t.Context(), got)
	must(t, err)
	want := map[string]string{
		"Cmd": `["/bin/app","-x"]`, "Env": `["A=1","B=two words","PATH=/sbin"]`, "Labels": `{"a.b":"c d"}`,
		"ExposedPorts": `{"53/udp":{},"80/tcp":{}}`, "WorkingDir": `"/srv/sub"`, "User": `"1:2"`,
	}
	var doc struct {
		Config map[string]json.RawMessage
		Other  json.RawMessage `json:"x-other"`
		Author string
	}
	must(t, json.Unmarshal(raw, &doc))
	for k, v := range want {
		if string(doc.Config[k]) != v {
			t.Errorf("%s is %s, want %s", k, doc.Config[k], v)
		}
	}
	if string(doc.Other) != `{"kept":true}` || doc.Author != "me" {
		t.Errorf("config %s", raw)
	}
	if h := config.History[len(config.History)-1]; len(config.History) != 3 || h.Comment != "why" || h.Author != "me" {
		t.Errorf("history %+v", config.History)
	}
	entries, err := s.History(t.Context(), got)
	if err != nil || len(entries) != 3 || entries[0].Comment != "why" || entries[0].DiffID != got.Layers[2].DiffID || entries[2].Size == 0 {
		t.Errorf("%+v, %v", entries, err)
	}
	if !slices.Equal(config.RootFS.DiffIDs[:2], []digest.Digest{i.Layers[0].DiffID, i.Layers[1].DiffID}) {
		t.Errorf("the layers below are %v", config.RootFS.DiffIDs)
	}
}

// Without its image a container gives an image of which only the layers are known.
func TestCommitWithoutImage(t *testing.T) {
	f, _ := twoLayers(t)
	s := newStore(t)
	i := importOne(t, s, f.dir(t), ImportOptions{})
	root := container(t, s, i, "c1")
	_, err := s.Remove(t.Context(), "example.test/app:1", Careful)
	mustBe(t, err, drivers.ErrInUse)
	_, err = s.Remove(t.Context(), "example.test/app:1", Forced)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "new"), nil, 0o600))
	got, err := s.Commit(t.Context(), "c1", CommitOptions{})
	must(t, err)
	_, config, err := s.Config(t.Context(), got)
	if err != nil || len(got.Layers) != 3 || len(config.History) != 3 || len(got.Names) != 0 {
		t.Errorf("%+v, %+v, %v", got, config, err)
	}
	if found, err := s.Find(t.Context(), got.ID.Encoded()[:12]); err != nil || found.ID != got.ID {
		t.Errorf("%+v, %v", found, err)
	}
}

// An instruction that makes no sense is refused before a layer is made.
func TestCommitRefuses(t *testing.T) {
	f, _ := twoLayers(t)
	s := newStore(t)
	container(t, s, importOne(t, s, f.dir(t), ImportOptions{}), "c1")
	before, err := s.layers.Layers(t.Context())
	must(t, err)
	for _, change := range []string{
		"", "CMD", "RUN x", "FROM y", "CMD [1", `ENV "A=1`, "ENV A", "EXPOSE http", "LABEL =x", "VOLUME [1]", "ENV =1",
	} {
		_, err := s.Commit(t.Context(), "c1", CommitOptions{Changes: []string{change}})
		mustBe(t, err, drivers.ErrInvalid)
		if err == nil || !strings.Contains(err.Error(), strconv.Quote(strings.TrimSpace(change))) {
			t.Errorf("%q: %v", change, err)
		}
	}
	_, err = s.Commit(t.Context(), "c2", CommitOptions{})
	mustBe(t, err, drivers.ErrNotFound)
	if after, err := s.layers.Layers(t.Context()); err != nil || len(after) != len(before) {
		t.Errorf("%d layers, %d before, %v", len(after), len(before), err)
	}
}

func TestSplitWords(t *testing.T) {
	for in, want := range map[string][]string{
		"a b":          {"a", "b"},
		`a="b c"  d`:   {"a=b c", "d"},
		`a='b "c"' ""`: {`a=b "c"`, ""},
		`a=b\ c`:       {"a=b c"},
		`'a\b'`:        {`a\b`},
	} {
		if got, err := splitWords(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v", in, got, err)
		}
	}
}
