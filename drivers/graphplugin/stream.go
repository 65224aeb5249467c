package graphplugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"plyfs/drivers"
)

// streamChunk is how much of a difference is read before its answer begins, in bytes: until then an error can be told.
const streamChunk = 64 << 10

// diff returns the difference of a layer to another as a tar stream, which the caller closes.
func (s *store) diff(ctx context.Context, r layerRequest) (io.ReadCloser, error) {
	stream, err := s.differ.Diff(ctx, r.ID, r.Parent, &drivers.DiffOptions{Note: func(path, reason string) {
		s.log.Warn("left out of a difference", "layer", r.ID, "path", "/"+path, "reason", reason)
	}})
	if err != nil || !s.mapped() {
		return stream, err
	}
	return s.toStream(ctx, stream), nil
}

// applyDiff gives a layer its content, durably, and returns the size of its files in bytes.
func (s *store) applyDiff(ctx context.Context, id, parent string, r io.Reader) (size int64, err error) {
	if err := drivers.ValidID(id); err != nil {
		return 0, err
	}
	defer s.locks.Lock(id)()
	d, _, err := s.readDraft(id)
	if err != nil {
		return 0, err
	}
	if !d.Written {
		if err := s.endDraft(id); err != nil {
			return 0, err
		}
	}
	if s.mapped() {
		mapped := s.toDisk(ctx, r, parent == "")
		defer func() { err = errors.Join(err, mapped.Close()) }()
		r = mapped
	}
	// dockerd hashes the stream, which HTTP does not let break off unseen.
	res, err := s.differ.ApplyDiff(ctx, id, r, &drivers.ApplyOptions{AcceptUnterminated: true})
	if err != nil {
		return 0, err
	}
	// dockerd is about to note, durably, that it has this layer.
	return res.Bytes, s.driver.Sync(ctx, id)
}

// serveDiff answers with a stream. Nothing can be said in the middle of one, so an error there cuts the connection.
func (p *Plugin) serveDiff(w http.ResponseWriter, r *http.Request) {
	req, err := decode[layerRequest](r.Body)
	if err != nil {
		p.fail(w, r, http.StatusBadRequest, err)
		return
	}
	err = p.with(r.Context(), func(s *store) error {
		stream, err := s.diff(r.Context(), req)
		if err != nil {
			return err
		}
		defer stream.Close()
		first := make([]byte, streamChunk)
		n, err := io.ReadFull(stream, first)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		w.Header().Set("Content-Type", "application/x-tar")
		if _, err = w.Write(first[:n]); err == nil {
			_, err = io.Copy(w, stream)
		}
		if err != nil {
			p.cut(w, r, req.ID, err)
		}
		return nil
	})
	if err != nil {
		p.fail(w, r, http.StatusInternalServerError, err)
	}
}

// cut ends the connection, so that what was sent is not taken for a whole stream.
func (p *Plugin) cut(w http.ResponseWriter, r *http.Request, id string, err error) {
	if r.Context().Err() == nil {
		p.log.Error("a difference broke off", "layer", id, "error", err)
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.log.Error("cut the connection", "layer", id, "error", err)
		return
	}
	conn.Close()
}

// serveApplyDiff takes a stream. It is read to its end in any case: dockerd sends all of it before it looks at the answer.
func (p *Plugin) serveApplyDiff(w http.ResponseWriter, r *http.Request) {
	var res response
	err := p.with(r.Context(), func(s *store) (err error) {
		q := r.URL.Query()
		res.Size, err = s.applyDiff(r.Context(), q.Get("id"), q.Get("parent"), r.Body)
		return err
	})
	if _, drainErr := io.Copy(io.Discard, r.Body); err == nil && drainErr != nil {
		err = fmt.Errorf("read the stream: %w", drainErr)
	}
	p.reply(w, r, res, err)
}
