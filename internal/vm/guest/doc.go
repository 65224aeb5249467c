// Package guest is the first process of a virtual machine: it puts the host's tree together with the machine's own modules
// and tools, runs one program in it, says how the program ended, and turns the machine off.
//
// Command vm puts it into the machine's initial file system, beside a Job. Whatever fails ends the machine with a message
// on its console.
package guest
