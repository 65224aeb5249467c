package guest

// Places in the initial file system.
const (
	JobFile   = "/job.json"
	ModuleDir = "/modules"
)

// ExitPrefix begins the line on Job.Status that says the program's exit status.
const ExitPrefix = "exit "

// Job is what a machine is started for.
type Job struct {
	// Root is the host's tree, and Tools what lies over it; both are mounted read-only.
	Root, Tools Share
	// Args is the program and its arguments; Dir and Env are its working directory and environment.
	Args []string
	Dir  string
	Env  []string
	// Terminal asks for a shell on Console instead.
	Terminal bool
	// Console, Output and Status are devices: the kernel's console, where the program's output goes, and where its exit
	// status.
	Console, Output, Status string
	// Disks are the devices of the empty disks.
	Disks []string
	// Off is the argument of reboot(2) that ends the machine.
	Off int
}

// Share is a directory of the host, as mount(2) takes it.
type Share struct{ Type, Source, Options string }

// Directories are the directories that the initial file system must have.
func Directories() []string {
	return []string{"/proc", "/sys", "/dev", hostDir, toolsDir, changesDir, newRoot}
}

// Where things are mounted before the root is.
const (
	hostDir    = "/host"
	toolsDir   = "/tools"
	changesDir = "/changes"
	newRoot    = "/new"
)
