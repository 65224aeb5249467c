package mounted

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
	"plyfs/internal/testenv"
)

// fuseMagic is the superblock magic of FUSE file systems, by which callers know that a mount serves.
const fuseMagic = 0x65735546

// Plyfs is plyfs over FUSE, served by the binary under test.
type Plyfs struct {
	// Data is the data mode: "noopen", "passthrough" or "auto".
	Data string
	// Extra are further mount options.
	Extra []string
	// Patience is how long a mount may exist before its server is killed, so that a case that hangs fails instead; 0
	// means 2 minutes.
	Patience time.Duration
	// PlainRenames says that the layers' file system takes no flags of renameat2.
	PlainRenames bool
}

// Name returns "plyfs-" and the data mode.
func (p Plyfs) Name() string { return "plyfs-" + p.Data }

// Traits returns those of a mount by the machine's root, or in a user namespace what is left of them.
func (p Plyfs) Traits() uniontest.Traits {
	t := rootTraits()
	if p.Data == "passthrough" {
		t |= uniontest.Passthrough
	}
	if p.PlainRenames {
		t |= uniontest.PlainRenames
	}
	return t
}

// Open starts a server and waits until it serves.
func (p Plyfs) Open(t testing.TB, s uniontest.Spec) (uniontest.Tree, error) {
	t.Helper()
	bin := testenv.Binary(t)
	return openTree(t, s, func(s uniontest.Spec, mnt string) (session, error) { return p.start(bin, s, mnt) })
}

// server is a plyfs process.
type server struct {
	cmd     *exec.Cmd
	mnt     string
	log     string
	done    chan error // receives the process's end once
	overdue atomic.Bool
	timer   *time.Timer
}

func (p Plyfs) start(bin string, s uniontest.Spec, mnt string) (session, error) {
	log, err := os.OpenFile(logFile(s, mnt), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(bin, "mount", "-f", "-o", p.options(s), mnt)
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: a signal to the tests' group is not for the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	v := &server{cmd: cmd, mnt: mnt, log: log.Name(), done: make(chan error, 1)}
	go func() { v.done <- cmd.Wait() }()
	if err := v.ready(); err != nil {
		return nil, err
	}
	patience := p.Patience
	if patience == 0 {
		patience = 2 * time.Minute
	}
	v.timer = time.AfterFunc(patience, v.giveUp)
	return v, nil
}

func (p Plyfs) options(s uniontest.Spec) string {
	opts := []string{"lowerdir=" + strings.Join(s.Lowers, ":")}
	if s.Upper != "" {
		opts = append(opts, "upperdir="+s.Upper, "workdir="+s.Work)
	}
	// A builder in the background would keep the layers busy after the mount has gone.
	opts = append(opts, "data="+p.Data, "index=off")
	opts = append(opts, s.Options...)
	return strings.Join(append(opts, p.Extra...), ",")
}

// ready waits until the mount point is a FUSE mount that answers.
func (v *server) ready() error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(v.mnt, &st); err == nil && st.Type == fuseMagic {
			return nil
		}
		select {
		case err := <-v.done:
			return fmt.Errorf("plyfs ended before it served: %w: %s", err, v.messages())
		default:
		}
		if time.Now().After(deadline) {
			v.giveUp()
			return fmt.Errorf("plyfs does not serve after 10 seconds: %s", v.messages())
		}
		time.Sleep(time.Millisecond)
	}
}

// giveUp makes a hanging server tell where it hangs and kills it, which ends every request of the mount with an error.
func (v *server) giveUp() {
	v.overdue.Store(true)
	_ = v.cmd.Process.Signal(syscall.SIGQUIT)
	time.Sleep(500 * time.Millisecond)
	_ = v.cmd.Process.Kill()
}

func (v *server) messages() string {
	text, err := os.ReadFile(v.log)
	if err != nil {
		return err.Error()
	}
	const most = 16 << 10
	if len(text) > most {
		text = append([]byte("..."), text[len(text)-most:]...)
	}
	return strings.TrimSpace(string(text))
}

// end unmounts; the server must then end by itself, within a second or two, and without an error.
func (v *server) end() error {
	v.timer.Stop()
	umount := unmount(v.mnt)
	var exit error
	select {
	case exit = <-v.done:
	case <-time.After(10 * time.Second):
		v.giveUp()
		exit = errors.New("it did not end after the unmount")
		<-v.done
	}
	if v.overdue.Load() && exit != nil {
		exit = fmt.Errorf("the server hung and was killed: %w", exit)
	}
	if exit != nil {
		exit = fmt.Errorf("plyfs server: %w: %s", exit, v.messages())
	}
	return errors.Join(umount, exit)
}
