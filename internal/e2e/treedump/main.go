// Command treedump prints the listing of directories: treedump ROOT DIR... It is for the end-to-end tests, which bring
// it into containers.
package main

import (
	"bufio"
	"fmt"
	"os"

	"plyfs/internal/e2e/listing"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: treedump ROOT DIR...")
		os.Exit(2)
	}
	lines, err := listing.Walk(os.Args[1], os.Args[2:]...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "treedump:", err)
		os.Exit(1)
	}
	out := bufio.NewWriter(os.Stdout)
	for _, l := range lines {
		fmt.Fprintln(out, l)
	}
	if err := out.Flush(); err != nil {
		fmt.Fprintln(os.Stderr, "treedump:", err)
		os.Exit(1)
	}
}
