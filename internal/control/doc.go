// Package control lets programs ask the servers of mounts how they do. Each server listens on a Unix socket of its own in the
// runtime directory (Dir); List finds the sockets, and a Socket asks. Others finds mounts that have none.
//
// # Protocol
//
// A client connects, sends one line and reads lines of JSON:
//
//	plyfs/1 status            one line: a Status
//	plyfs/1 metrics           one line: a Metrics. From the first such request on, the server measures durations.
//	plyfs/1 watch SECONDS     a line each interval until the client hangs up: a Sample
//	plyfs/1 settle            one line when the server has fetched all that was written, so that an unmount loses nothing. Of a
//	                          mount that has ended there is none: the server hangs up when it has handled all requests.
//
// Every line has the field "version". A line with "error" is the last one. A server that does not know the version of a request
// says which it knows. Fields may be added within a version; a client passes over those that it does not know.
//
// # Who may ask
//
// The socket has mode 0600, in a directory of mode 0700. Beside that the server looks at the peer's credentials: users other
// than its own and root are hung up on without a word. In a user namespace root of the outside has no number; there the
// permissions of the file, which only outer root passes, have to do.
//
// A reader believes a socket no more than the owner of its directory: it is opened without following links, the peer must be
// that owner, and answers are bounded in size and time.
//
// # Resources
//
// A server that nobody asks has one goroutine that waits in the runtime's poller, and no thread. A client that is slow delays
// nobody but itself. The package has no state of its own; a Server's is guarded by its mutex.
package control
