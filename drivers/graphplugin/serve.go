package graphplugin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	// headerTimeout bounds how long a request may take to begin. Its body may take as long as it likes: unpacking a layer does.
	headerTimeout = 30 * time.Second
	// maxHeader bounds the head of a request, in bytes.
	maxHeader = 64 << 10
	// endTimeout is how long calls may go on when the plugin ends.
	endTimeout = 10 * time.Second
)

// Serve serves connections until ctx ends, and then waits for running calls, for some seconds; what is left of them is cut off.
// It closes the listener, and returns nil if ctx was the reason to end. The caller closes the plugin afterwards.
func (p *Plugin) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           p.Handler(),
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withPeer,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return errors.Join(err, server.Close())
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	err := server.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		p.log.Warn("calls are cut off", "after", endTimeout)
		err = server.Close()
	}
	if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
