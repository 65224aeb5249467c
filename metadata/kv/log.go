package kv

import (
	"fmt"
	"log/slog"
	"strings"
)

// bridge gives the library's messages to a slog.Logger, which may be nil.
type bridge struct{ log *slog.Logger }

func (b bridge) say(level, format string, args []any) {
	if b.log != nil {
		b.log.Debug("database: "+strings.TrimSpace(fmt.Sprintf(format, args...)), "level", level)
	}
}

// Errorf is called for what the library could not do.
func (b bridge) Errorf(format string, args ...any) { b.say("error", format, args) }

// Warningf is called for what the library finds odd.
func (b bridge) Warningf(format string, args ...any) { b.say("warning", format, args) }

// Infof does nothing: what is open and how full is of no use to a user of plyfs.
func (b bridge) Infof(string, ...any) {}

// Debugf does nothing, like Infof.
func (b bridge) Debugf(string, ...any) {}
