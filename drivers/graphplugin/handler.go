package graphplugin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

// Handler serves the protocol.
func (p *Plugin) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /Plugin.Activate", func(w http.ResponseWriter, r *http.Request) {
		p.reply(w, r, response{Implements: []string{"GraphDriver"}}, nil)
	})
	mux.HandleFunc("POST /GraphDriver.Capabilities", func(w http.ResponseWriter, r *http.Request) {
		p.reply(w, r, response{Capabilities: &capabilities{}}, nil)
	})
	mux.HandleFunc("POST /GraphDriver.Init", func(w http.ResponseWriter, r *http.Request) {
		req, err := decode[initRequest](r.Body)
		if err == nil {
			err = p.initialise(r.Context(), req)
		}
		p.reply(w, r, response{}, err)
	})
	for name, call := range calls() {
		mux.HandleFunc("POST /GraphDriver."+name, func(w http.ResponseWriter, r *http.Request) { p.serveCall(w, r, call) })
	}
	mux.HandleFunc("POST /GraphDriver.Diff", p.serveDiff)
	mux.HandleFunc("POST /GraphDriver.ApplyDiff", p.serveApplyDiff)
	return p.logged(mux)
}

// call serves one method: it fills in the answer.
type call func(ctx context.Context, s *store, r layerRequest, res *response) error

// calls are the methods with a layerRequest.
func calls() map[string]call {
	return map[string]call{
		"Create": func(ctx context.Context, s *store, r layerRequest, _ *response) error { return s.create(ctx, r) },
		"CreateReadWrite": func(ctx context.Context, s *store, r layerRequest, _ *response) error {
			return s.createReadWrite(ctx, r)
		},
		"Remove": func(ctx context.Context, s *store, r layerRequest, _ *response) error { return s.remove(ctx, r) },
		"Get": func(ctx context.Context, s *store, r layerRequest, res *response) (err error) {
			res.Dir, err = s.getVisible(ctx, r)
			return err
		},
		"Put": func(ctx context.Context, s *store, r layerRequest, _ *response) error { return s.put(ctx, r) },
		"Exists": func(ctx context.Context, s *store, r layerRequest, res *response) (err error) {
			res.Exists, err = s.driver.Exists(ctx, r.ID)
			return err
		},
		"Status": func(ctx context.Context, s *store, _ layerRequest, res *response) (err error) {
			res.Status, err = s.status(ctx)
			return err
		},
		"GetMetadata": func(ctx context.Context, s *store, r layerRequest, res *response) (err error) {
			res.Metadata, err = s.metadata(ctx, r)
			return err
		},
		"Changes": func(ctx context.Context, s *store, r layerRequest, res *response) (err error) {
			res.Changes, err = s.changes(ctx, r)
			return err
		},
		"DiffSize": func(ctx context.Context, s *store, r layerRequest, res *response) (err error) {
			res.Size, err = s.differ.DiffSize(ctx, r.ID, r.Parent)
			return err
		},
		"Cleanup": func(ctx context.Context, s *store, _ layerRequest, _ *response) error { return s.dropAll(ctx) },
	}
}

func (p *Plugin) serveCall(w http.ResponseWriter, r *http.Request, fn call) {
	req, err := decode[layerRequest](r.Body)
	var res response
	if err == nil {
		err = p.with(r.Context(), func(s *store) error { return fn(r.Context(), s, req, &res) })
	}
	p.reply(w, r, res, err)
}

// reply answers a call. dockerd shows the text of an error to its user.
func (p *Plugin) reply(w http.ResponseWriter, r *http.Request, res response, err error) {
	if errors.Is(err, errRequest) {
		p.fail(w, r, http.StatusBadRequest, err)
		return
	}
	if err != nil {
		p.log.Warn("a call failed", "call", r.URL.Path, "error", err)
		res = response{Err: err.Error()}
	}
	p.write(w, r, http.StatusOK, res)
}

// fail answers with a status, for requests that are none, and where only the status tells an error.
func (p *Plugin) fail(w http.ResponseWriter, r *http.Request, status int, err error) {
	p.log.Warn("a call failed", "call", r.URL.Path, "error", err)
	p.write(w, r, status, response{Err: err.Error()})
}

func (p *Plugin) write(w http.ResponseWriter, r *http.Request, status int, res response) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(res); err != nil && r.Context().Err() == nil {
		p.log.Warn("answer a call", "call", r.URL.Path, "error", err)
	}
}

// logged tells of each call, and how long it took.
func (p *Plugin) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		next.ServeHTTP(w, r)
		p.log.Debug("call", "call", r.URL.Path, "took", time.Since(began))
	})
}
