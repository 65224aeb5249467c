// Command ci runs checks and tests and says in one last line how they went.
//
//	ci [-check NAME=COMMAND]... [-timeout D] [-- GO-TEST-ARGUMENTS]...
//
// Each check is a shell command that counts as one test. Each group of arguments is given to `go test -json`. While
// they run, one line appears per package; the output of a test is shown only if it fails, and then at once. At the end stand all
// failures and skipped tests by name, and then the line
//
//	N passed, N failed, N skipped
//
// which counts tests without subtests, checks, and packages that failed as a whole (they did not compile, panicked, or
// ran out of time). The exit status is 0 if nothing failed, 1 if something did, 2 if the arguments are wrong.
package main
