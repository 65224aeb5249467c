package mountopt

// VerdictEnv is the environment variable that holds the number of a descriptor to which plyfs, started to serve a mount,
// writes whether it does: one byte, zero for yes, else the exit code of mount(8) followed by the reason. It serves in the
// process that was started, and gives up its standard files with the verdict.
const VerdictEnv = "_PLYFS_VERDICT_FD"

// StandbyEnv is the environment variable that holds the number of a descriptor of a socket, over which plyfs, started in
// advance, gets its command line: its length as four bytes, the first the least significant, and a JSON array that begins
// with the name that it is called by. The verdict goes back over the same socket. A process that stands by ends when the
// socket is closed before a command line came.
const StandbyEnv = "_PLYFS_STANDBY_FD"
