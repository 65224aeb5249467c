package mountopt

// VerdictEnv is the environment variable that holds the number of a descriptor to which plyfs, started to serve a mount,
// writes whether it does: one byte, zero for yes, else the exit code of mount(8) followed by the reason. It serves in the
// process that was started, and gives up its standard files with the verdict.
const VerdictEnv = "_PLYFS_VERDICT_FD"

// StandbyEnv is the environment variable that holds the number of a descriptor of a socket, over which plyfs, started in
// advance, gets command lines to serve, one after the other. All that goes over it is preceded by its length as four bytes, the
// first the least significant. A command line is a JSON array that begins with the name that plyfs is called by; relative paths
// mean the directory that the process was started in. The verdict comes back, as with VerdictEnv. Behind a good one follows, once the mount is gone and
// nothing of it is left in the process, a single zero byte: the process stands by again. One that ends instead closes the
// socket. It ends when a mount failed, when it has grown too much, and when it stands by and the socket is closed.
const StandbyEnv = "_PLYFS_STANDBY_FD"
