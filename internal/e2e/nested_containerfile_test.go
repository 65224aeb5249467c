//go:build engines && long

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"plyfs/internal/testenv"
)

// TestNestedContainerfile builds the image of docs/nested.md by its Containerfile, and has it run what the image of this
// machine's own engines runs elsewhere.
func TestNestedContainerfile(t *testing.T) {
	n := newNested(t, newEngine(t, 0), "podman")
	n.engine.run(t, "podman", "rmi", enginesImage)
	n.importDebian(t)
	context := n.path("engines")
	if err := os.Mkdir(context, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range docBlocks(t, nestedPage, "file") {
		if err := os.WriteFile(filepath.Join(context, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{testenv.Binary(t), testenv.MountBinary(t)} {
		text, err := os.ReadFile(program)
		if err := errors.Join(err, os.WriteFile(filepath.Join(context, filepath.Base(program)), text, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	n.buildEngines(t, context)
	n.run(t, "docker-on-plyfs", "podman-as-user-in-podman")
}

// buildEngines builds the image. Its installation of packages takes longer than what else is run here.
func (n *nested) buildEngines(t *testing.T, context string) {
	t.Helper()
	out, err := n.command(t.Context(), "podman", "build", "--isolation", "chroot", "--network", "host", "--layers=false", "-q",
		"-t", enginesImage, context).CombinedOutput()
	if err != nil {
		t.Fatalf("podman build of the Containerfile of docs/%s: %v\n%s", nestedPage, err, tail(string(out), 30))
	}
}

// importDebian gives the outer engine the image that the Containerfile begins with, a Debian of this machine's release.
func (n *nested) importDebian(t *testing.T) {
	t.Helper()
	n.engine.run(t, "podman", "import", "-c", "CMD sh", debianTar(t), "docker.io/library/debian:12")
}
