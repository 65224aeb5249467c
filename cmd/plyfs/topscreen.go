package main

import (
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The control sequences, of ECMA-48 and, for the second screen, of xterm, that all terminals of today know.
const (
	screenEnter = "\x1b[?1049h\x1b[?25l" // second screen, no cursor
	screenLeave = "\x1b[?25h\x1b[?1049l"
	screenHome  = "\x1b[H"
	lineRest    = "\x1b[K" // erase the rest of the line
	screenRest  = "\x1b[J"
)

// terminal is a screen to draw frames on.
type terminal struct {
	out   *os.File
	saved unix.Termios
	// keys says that standard input is the terminal, and gives keys without a newline.
	keys bool
}

// openTerminal takes the screen over; close gives it back. The error is ENOTTY if out is none.
func openTerminal(out *os.File) (*terminal, error) {
	if _, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS); err != nil {
		return nil, err
	}
	t := &terminal{out: out}
	if saved, err := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); err == nil {
		t.saved = *saved
		raw := *saved
		raw.Lflag &^= unix.ICANON | unix.ECHO
		t.keys = unix.IoctlSetTermios(int(os.Stdin.Fd()), unix.TCSETS, &raw) == nil
	}
	_, err := io.WriteString(out, screenEnter)
	if err != nil {
		t.close()
	}
	return t, err
}

func (t *terminal) close() {
	_, _ = io.WriteString(t.out, screenLeave)
	if t.keys {
		_ = unix.IoctlSetTermios(int(os.Stdin.Fd()), unix.TCSETS, &t.saved)
	}
}

// awaitQuit calls quit when q is typed. It returns at the end of the input, or never.
func (t *terminal) awaitQuit(quit func()) {
	if !t.keys {
		return
	}
	var key [1]byte
	for {
		if n, err := os.Stdin.Read(key[:]); err != nil || n == 0 {
			return
		}
		if key[0] == 'q' || key[0] == 'Q' {
			quit()
			return
		}
	}
}

// show draws a frame over the one before.
func (t *terminal) show(_ io.Writer, f frame) error {
	width, height := 80, 24
	if size, err := unix.IoctlGetWinsize(int(t.out.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 && size.Row > 0 {
		width, height = int(size.Col), int(size.Row)
	}
	var b strings.Builder
	b.WriteString(screenHome)
	for i, line := range f.lines(height - 1) {
		if i >= height-1 {
			break
		}
		if r := []rune(line); len(r) > width {
			line = string(r[:width])
		}
		b.WriteString(line + lineRest + "\r\n")
	}
	b.WriteString(screenRest)
	_, err := io.WriteString(t.out, b.String())
	return err
}
