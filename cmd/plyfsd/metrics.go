package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/urfave/cli/v2"

	"plyfs/internal/control"
	"plyfs/internal/daemon"
)

const (
	flagAddress = "address"
	// metricsSocket is the socket's name in the runtime directory.
	metricsSocket = "metrics.sock"
	metricsPath   = "/metrics"
	// maxScrapes are answered at a time.
	maxScrapes = 4
)

// metricsCommand is plyfs metrics.
func metricsCommand() *cli.Command {
	return daemon.Command(daemon.Spec{
		Name: "metrics", Usage: "export the metrics of all mounts to Prometheus",
		Description: "Serves " + metricsPath + " over HTTP, of the mounts whose control sockets this user may read. It asks them when it is " +
			"asked; from then on they measure how long requests take. A unix socket is for this user and root alone; a port is open " +
			"to all of this machine, and can be a loopback one only.",
		Flags: []cli.Flag{&cli.StringFlag{
			Name: flagAddress, Usage: "`ADDRESS`: unix:///PATH or tcp://127.0.0.1:PORT (default: the socket " + metricsSocket +
				" in /run/plyfs, of users other than root in $XDG_RUNTIME_DIR/plyfs)",
		}},
		Run: serveMetrics,
	})
}

// serveMetrics runs the exporter until ctx ends.
func serveMetrics(ctx context.Context, c *cli.Context, log *slog.Logger) error {
	address := c.String(flagAddress)
	if address == "" {
		dir, err := control.RuntimeDir()
		if err != nil {
			return fmt.Errorf("no address: give --%s: %w", flagAddress, err)
		}
		address = "unix://" + filepath.Join(dir, metricsSocket)
	}
	l, err := daemon.Listen(ctx, address)
	if err != nil {
		return err
	}
	defer l.Close()
	handler, err := metricsHandler(newCollector(log), l.Addr())
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: time.Minute,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(stopped)
		last, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := srv.Shutdown(last); err != nil {
			log.Warn("a scrape was cut off", "error", err)
			_ = srv.Close()
		}
	})
	defer unhook()
	if err := daemon.Ready(); err != nil {
		log.Warn("tell systemd that the exporter serves", "error", err)
	}
	log.Info("serving metrics", "address", l.Addr().String())
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", address, err)
	}
	<-stopped
	return nil
}

// metricsHandler serves what the collector collects.
func metricsHandler(c prometheus.Collector, at net.Addr) (http.Handler, error) {
	registry := prometheus.NewRegistry()
	if err := registry.Register(c); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+metricsPath, promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		// One mount that says nonsense must not hide the others.
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes,
	}))
	if at.Network() == "unix" {
		return mux, nil
	}
	return localOnly(mux), nil
}

// localOnly refuses requests for other names than this machine's: a page in a browser, from a site whose name resolves to a
// loopback address, could read the answer otherwise.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "ask for localhost", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
