package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/internal/vm/guest"
)

func hypervisors() map[string]hypervisor {
	return map[string]hypervisor{
		"uml": {
			modules: []string{"overlay"},
			disk:    "/dev/ubd",
			fill:    fillUML,
			command: uml,
		},
		"qemu": {
			modules: []string{
				"virtio_pci", "virtio_console", "virtio_blk", "9pnet_virtio", "9p", "overlay",
			},
			disk:    "/dev/vd",
			fill:    fillQemu,
			command: qemu,
		},
	}
}

// commandLine is what every kernel is told: to end instead of stopping when it panics, and to spend no time on protecting
// itself.
const commandLine = "quiet loglevel=4 panic=-1 oops=panic mitigations=off"

func fillUML(j *guest.Job, m machine) {
	j.Root = guest.Share{Type: "hostfs", Options: "/"}
	j.Tools = guest.Share{Type: "hostfs", Options: m.root()}
	j.Console, j.Output, j.Status = "/dev/tty0", "/dev/ttyS0", "/dev/ttyS1"
	j.Off = unix.LINUX_REBOOT_CMD_POWER_OFF
}

// uml starts user-mode Linux: a kernel that is a process, and one more for each address space in it.
func uml(o options, m machine, f files) *exec.Cmd {
	console := fmt.Sprintf("con0=null,fd:%d", f.console)
	if o.shell {
		console = "con0=fd:0,fd:1"
	}
	args := []string{
		m.kernel(), fmt.Sprintf("mem=%dM", o.memory), "initrd=" + fdPath(f.initrd), "con=null", console, "ssl=null",
		fmt.Sprintf("ssl0=null,fd:%d", f.output), fmt.Sprintf("ssl1=null,fd:%d", f.status),
		// There is no management console, and no directory for one.
		"uml_dir=/dev/null/", "mconsole=notify:none",
	}
	for i, fd := range f.disks {
		args = append(args, fmt.Sprintf("ubd%c=%s", 'a'+i, fdPath(fd)))
	}
	args = append(args, strings.Fields(commandLine)...)
	// At every system call its processes hand over to each other; across CPUs each hand-over would be a wake-up of another
	// one, and all takes three times as long.
	//
	// The shell is the first process of the PID namespace in its stead: after a panic user-mode Linux aborts itself again and
	// again until that works, and signals that end others don't reach a first process.
	const script = `taskset -c "$@"; exit $?`
	cmd := exec.Command("sh", append([]string{"-c", script, "sh", strconv.Itoa(anyCPU())}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR=/dev/shm") // where its memory is a file
	return cmd
}

// anyCPU is one of the CPUs that this process may use.
func anyCPU() int {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0
	}
	var cpus []int
	for i := 0; len(cpus) < set.Count(); i++ {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus[rand.IntN(len(cpus))]
}

func fillQemu(j *guest.Job, _ machine) {
	const options = "trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=any"
	j.Root = guest.Share{Type: "9p", Source: "root", Options: options}
	j.Tools = guest.Share{Type: "9p", Source: "tools", Options: options}
	j.Console, j.Output, j.Status = "/dev/ttyS0", "/dev/vport0p1", "/dev/vport0p2"
	j.Off = unix.LINUX_REBOOT_CMD_RESTART // qemu ends instead
}

// qemu starts a machine of emulated CPUs: /dev/kvm can be there and hang, where this runs in a virtual machine itself.
func qemu(o options, m machine, f files) *exec.Cmd {
	share := func(tag, dir string) []string {
		return []string{
			"-fsdev", fmt.Sprintf("local,id=%s,path=%s,security_model=none,readonly=on,multidevs=remap", tag, dir),
			"-device", fmt.Sprintf("virtio-9p-pci,fsdev=%s,mount_tag=%s", tag, tag),
		}
	}
	port := func(nr int, name string, fd int) []string {
		return []string{
			"-chardev", fmt.Sprintf("file,id=%s,path=%s,append=on", name, fdPath(fd)),
			"-device", fmt.Sprintf("virtserialport,nr=%d,chardev=%s", nr, name),
		}
	}
	args := []string{
		"-M", "q35,usb=off,vmport=off", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2", "-m", strconv.Itoa(o.memory),
		"-kernel", m.kernel(), "-initrd", fdPath(f.initrd),
		"-append", "console=ttyS0 tsc=reliable no_timer_check rcupdate.rcu_expedited=1 " + commandLine,
		"-device", "virtio-serial-pci",
	}
	if o.shell {
		args = append(args, "-serial", "stdio")
	} else {
		args = append(args, "-chardev", "file,id=console,append=on,path="+fdPath(f.console), "-serial", "chardev:console")
	}
	args = append(args, port(1, "output", f.output)...)
	args = append(args, port(2, "status", f.status)...)
	args = append(args, share("root", "/")...)
	args = append(args, share("tools", m.root())...)
	for i, fd := range f.disks {
		args = append(args,
			"-drive", fmt.Sprintf("if=none,id=disk%d,file=%s,format=raw,discard=unmap,aio=threads", i, fdPath(fd)),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i))
	}
	return exec.Command("qemu-system-x86_64", args...)
}
