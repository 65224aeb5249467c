package doctor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// TryCommand is the hidden subcommand of plyfs doctor that runs a trial; see RunTrial.
const TryCommand = "try"

// trialLimit is how long a trial may take, whoever waits for it.
const trialLimit = 10 * time.Second

// The names of the trials.
const (
	trialNamespace  = "namespace"
	trialKernel     = "kernel"
	trialMount      = "mount"
	trialFusermount = "fusermount"
	trialOverlay    = "overlay"
	trialFiles      = "files"
	trialAlive      = "alive"
	trialDrivers    = "drivers"
)

// trials says what each trial does with its scratch directory and arguments.
func trials() map[string]func(*steps, string, []string) {
	return map[string]func(*steps, string, []string){
		trialNamespace:  tryNamespace,
		trialKernel:     tryKernel,
		trialMount:      tryMount,
		trialFusermount: tryFusermount,
		trialOverlay:    tryOverlay,
		trialFiles:      tryFiles,
		trialAlive:      tryAlive,
		trialDrivers:    tryDrivers,
	}
}

// ErrTrial is a command line that names no trial.
var ErrTrial = errors.New("no such trial")

// RunTrial is the child's side of Host.Try: args are the name of a trial, its scratch directory and its arguments. The
// outcome goes to w, a JSON object for each step. The error is about the command line only: a trial that fails says so
// in its results. If it takes too long, it ends the process.
func RunTrial(args []string, w io.Writer) error {
	if len(args) < 2 {
		return fmt.Errorf("plyfs doctor %s is for plyfs doctor itself: %w", TryCommand, ErrTrial)
	}
	try, ok := trials()[args[0]]
	if !ok {
		return fmt.Errorf("plyfs doctor %s %s: %w", TryCommand, args[0], ErrTrial)
	}
	time.AfterFunc(trialLimit, func() { os.Exit(1) })
	try(&steps{out: json.NewEncoder(w)}, args[1], args[2:])
	return nil
}

// steps writes down the results of a trial as they come: if it gets stuck, those before are known.
type steps struct {
	mu  sync.Mutex
	out *json.Encoder // guarded by mu
	bad bool          // guarded by mu
}

// do runs a step, unless one before failed, and says whether all is well.
func (s *steps) do(step string, f func() (value string, err error)) bool {
	s.mu.Lock()
	bad := s.bad
	s.mu.Unlock()
	if bad {
		return false
	}
	value, err := f()
	return s.note(step, value, err)
}

// must is do for a step without a value.
func (s *steps) must(step string, f func() error) bool {
	return s.do(step, func() (string, error) { return "", f() })
}

// note writes down the result of a step.
func (s *steps) note(step, value string, err error) bool {
	r := Result{Step: step, Value: value}
	if err != nil {
		r.Error = err.Error()
		var errno syscall.Errno
		if errors.As(err, &errno) {
			r.Errno = int(errno)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad = s.bad || err != nil
	// Nobody is left to tell if the pipe is closed.
	_ = s.out.Encode(r)
	return err == nil
}

// parseResults reads what a trial wrote. With an error it returns the results that are whole.
func parseResults(out []byte) (all []Result, err error) {
	for in := json.NewDecoder(bytes.NewReader(out)); ; {
		var r Result
		err := in.Decode(&r)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, fmt.Errorf("output of a trial: %w", err)
		}
		all = append(all, r)
	}
}
