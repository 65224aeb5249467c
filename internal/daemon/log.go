package daemon

import (
	"context"
	"io"
	"log/slog"

	"github.com/urfave/cli/v2"
)

// The values of --log-format.
const (
	formatText = "text"
	formatJSON = "json"
)

// loggerKey is the context's key for the logger.
type loggerKey struct{}

// WithLogger returns a context of which Logger returns log.
func WithLogger(ctx context.Context, log *slog.Logger) context.Context {
	return context.WithValue(ctx, loggerKey{}, log)
}

// Logger returns the context's logger, or slog.Default where there is none. Listen logs to it.
func Logger(ctx context.Context) *slog.Logger {
	if log, ok := ctx.Value(loggerKey{}).(*slog.Logger); ok {
		return log
	}
	return slog.Default()
}

// newLogger makes the logger that the flags ask for. It writes to the program's ErrWriter.
func newLogger(c *cli.Context) (*slog.Logger, error) {
	var level slog.Level
	switch word := c.String(flagLogLevel); word {
	case "debug":
		level = slog.LevelDebug
	case "info":
		level = slog.LevelInfo
	case "warn":
		level = slog.LevelWarn
	case "error":
		level = slog.LevelError
	default:
		return nil, usagef("%s is %q, it can be debug, info, warn or error", flagLogLevel, word)
	}
	o := &slog.HandlerOptions{Level: level}
	switch word := c.String(flagLogFormat); word {
	case formatText:
		return slog.New(slog.NewTextHandler(logWriter(c), o)), nil
	case formatJSON:
		return slog.New(slog.NewJSONHandler(logWriter(c), o)), nil
	default:
		return nil, usagef("%s is %q, it can be text or json", flagLogFormat, word)
	}
}

func logWriter(c *cli.Context) io.Writer { return c.App.ErrWriter }
