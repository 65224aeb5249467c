package main

import "plyfs/internal/exit"

// fault is how commands end that fail; see package exit.
type fault = exit.Fault

// The exit codes of commands that have none of their own.
const (
	exitOK          = exit.OK
	exitUsage       = exit.Usage
	exitSystem      = exit.System
	exitInterrupted = exit.Interrupted
	exitMount       = exit.Mount
)

// faultf formats a fault.
func faultf(code int, format string, args ...any) *fault { return exit.Faultf(code, format, args...) }
