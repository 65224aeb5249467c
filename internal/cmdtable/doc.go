// Package cmdtable describes the commands of a program as data, for what has to know all of them: the completion of command lines,
// and the manual pages. Two programs make up plyfs, so the description can be written as JSON by one and read by another.
//
// It owns how a half-written command line is understood. It runs no command, and knows no name of an image or a container: where one
// can stand, it says so, and the caller looks them up.
package cmdtable
