package server

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
)

// slack returns the timer slack of each thread of this process.
func slack(t *testing.T) map[string]string {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/" + task.Name() + "/timerslack_ns")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		out[task.Name()] = strings.TrimSpace(string(b))
	}
	return out
}

// TestQuietMonitor: one thread is woken less exactly, and that is one which only sleeps and looks around.
func TestQuietMonitor(t *testing.T) {
	before := slack(t)
	err := quietMonitor()
	if err != nil {
		t.Fatalf("%v; it takes CAP_SYS_NICE", err)
	}
	tid, err := monitorThread()
	if err != nil {
		t.Fatal(err)
	}
	after := slack(t)
	monitor := strconv.Itoa(tid)
	if got := after[monitor]; got != strconv.Itoa(monitorSlack) {
		t.Errorf("the monitor may be %s ns late, want %d", got, int(monitorSlack))
	}
	for task, was := range before {
		if now, ok := after[task]; ok && now != was && task != monitor {
			t.Errorf("thread %s may be %s ns late, and %s before", task, now, was)
		}
	}
	if tid == os.Getpid() {
		t.Error("the first thread is nobody's monitor")
	}
}
