package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"plyfs/drivers"
)

// Problem is something about an image that is not as it should be.
type Problem struct {
	// Kind is a word for programs, Object what it is about, Detail what is wrong, and Remedy what to do; nothing here can be
	// repaired from what is in the store.
	Kind, Object, Detail, Remedy string
}

// Kinds of problems.
const (
	ProblemDocument = "image-document"
	ProblemName     = "image-name"
	ProblemRecord   = "image-record"
)

// Check looks at the documents of all images and at what names stand for. It reads the documents and compares them with
// their digests; what layers hold is not its business.
func (s *Store) Check(ctx context.Context) ([]Problem, error) {
	holders, err := s.layers.Holders(ctx, kindImage)
	if err != nil {
		return nil, err
	}
	const again = "remove the image and pull or import it again"
	var problems []Problem
	known := make(map[digest.Digest]bool)
	for _, h := range holders {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		known[digest.Digest(h.Key)] = true
		img, err := decodeImage(h)
		if err != nil {
			problems = append(problems, Problem{ProblemRecord, h.Key, err.Error(), again})
			continue
		}
		for _, d := range img.documents() {
			_, err := s.blobs.read(d)
			switch {
			case errors.Is(err, drivers.ErrNotFound), errors.Is(err, drivers.ErrDamaged), errors.Is(err, ErrMalformed):
				problems = append(problems, Problem{ProblemDocument, h.Key, err.Error(), again})
			case err != nil:
				return nil, err
			}
		}
	}
	names, err := s.layers.Holders(ctx, kindName)
	if err != nil {
		return nil, err
	}
	for _, h := range names {
		if !known[digest.Digest(h.Data)] {
			problems = append(problems, Problem{
				ProblemName, h.Key, fmt.Sprintf("it stands for image %s, which is not there", h.Data), "give the name to another image",
			})
		}
	}
	return problems, nil
}
