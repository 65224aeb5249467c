//go:build engines && long

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"plyfs/internal/e2e/listing"
)

// TestKubernetes is what a kubelet does with a pod, through the interface of containerd that it uses.
func TestKubernetes(t *testing.T) {
	t.Run("containerd of Debian", func(t *testing.T) {
		c := prepareContainerd(t, "plyfs")
		c.pod(t)
	})
	t.Run("containerd "+containerdVersion, func(t *testing.T) {
		c := prepareContainerd(t, "plyfs")
		c.useModule(buildContainerd(t))
		c.pod(t)
	})
}

// kubelet calls containerd.
type kubelet struct {
	*containerdTest
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	// sandbox is the pod's.
	sandbox string
	spec    *cri.PodSandboxConfig
}

// pod starts a pod and its containers, with the snapshotter being killed meanwhile, and removes everything.
func (c *containerdTest) pod(t *testing.T) {
	c.cri = true
	c.start(t)
	im := engineImage(t)
	im.cmd = []string{"sleep", "10000"}
	im.writeDocker(t, c.path("docker.tar"), imageName)
	c.want = listing.Lines(im.entries("data"))
	c.ctr(t, "-n", "k8s.io", "images", "import", "--snapshotter", "plyfs", c.path("docker.tar"))
	conn, err := grpc.NewClient("unix://"+c.path("containerd.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	k := &kubelet{containerdTest: c, runtime: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn)}
	k.startPod(t)
	box := k.container(t, "box")
	checkLines(t, "the image", c.want, k.sh(t, box, "/treedump / data"))
	k.sh(t, box, work)
	live := k.sh(t, box, "/treedump / data")
	k.checkUsage(t, box)

	c.snapshotter.end(t, unix.SIGKILL)
	checkLines(t, "the container while there is no snapshotter", live, k.sh(t, box, "/treedump / data"))
	c.startSnapshotter(t)
	var other string
	c.waitFor(t, c.snapshotter, func() (err error) {
		other, err = k.tryContainer(t, "other")
		return err
	})
	checkLines(t, "a new container", c.want, k.sh(t, other, "/treedump / data"))
	checkLines(t, "the container with another snapshotter", live, k.sh(t, box, "/treedump / data"))
	k.removePod(t)
}

// call calls containerd, which must do it.
func call[Q, A any](t *testing.T, method func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) A {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	answer, err := method(ctx, request)
	if err != nil {
		t.Fatalf("%T: %v", request, err)
	}
	return answer
}

// startPod starts a pod in the machine's network.
func (k *kubelet) startPod(t *testing.T) {
	t.Helper()
	k.spec = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "pod", Uid: "uid", Namespace: "default"},
		LogDirectory: k.path("tmp"),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/" + filepath.Base(k.dir),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
	k.sandbox = call(t, k.runtime.RunPodSandbox, &cri.RunPodSandboxRequest{Config: k.spec}).PodSandboxId
	t.Cleanup(func() {
		if t.Failed() {
			// What a test that failed left running would keep its mounts.
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			_, _ = k.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: k.sandbox})
			_, _ = k.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: k.sandbox})
		}
	})
}

// tryContainer starts a container of the pod.
func (k *kubelet) tryContainer(t *testing.T, name string) (id string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	made, err := k.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: k.sandbox, SandboxConfig: k.spec,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name},
			Image:    &cri.ImageSpec{Image: imageName},
			Mounts:   []*cri.Mount{{ContainerPath: "/treedump", HostPath: k.path("treedump"), Readonly: true}},
			Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: k.spec.Linux.SecurityContext.NamespaceOptions}},
		},
	})
	if err != nil {
		return "", err
	}
	_, err = k.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
	return made.ContainerId, err
}

func (k *kubelet) container(t *testing.T, name string) string {
	t.Helper()
	id, err := k.tryContainer(t, name)
	if err != nil {
		t.Fatalf("container %s: %v", name, err)
	}
	return id
}

// sh runs a script in a container and returns the lines that it printed.
func (k *kubelet) sh(t *testing.T, id, script string) []string {
	t.Helper()
	answer := call(t, k.runtime.ExecSync, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-ec", script}})
	if answer.ExitCode != 0 {
		t.Fatalf("%s: exit code %d: %s", script, answer.ExitCode, answer.Stderr)
	}
	return outputLines(string(answer.Stdout))
}

// checkUsage holds that a kubelet learns what a container wrote, and what images take up where.
func (k *kubelet) checkUsage(t *testing.T, id string) {
	t.Helper()
	k.waitFor(t, k.containerd, func() error {
		answer := call(t, k.runtime.ContainerStats, &cri.ContainerStatsRequest{ContainerId: id})
		if layer := answer.Stats.GetWritableLayer(); layer.GetUsedBytes().GetValue() == 0 || layer.GetInodesUsed().GetValue() == 0 {
			return fmt.Errorf("the writable layer: %v", layer)
		}
		return nil
	})
	k.waitFor(t, k.containerd, func() error {
		answer := call(t, k.images.ImageFsInfo, &cri.ImageFsInfoRequest{})
		for _, fs := range answer.ImageFilesystems {
			// Version 1.6 has a place of its own for all snapshotters.
			if fs.UsedBytes.GetValue() > 0 && (k.config < 3 || fs.FsId.GetMountpoint() == k.path("store")) {
				return nil
			}
		}
		return fmt.Errorf("the file system of images: %v", answer.ImageFilesystems)
	})
}

// removePod removes everything, and looks at what is left.
func (k *kubelet) removePod(t *testing.T) {
	t.Helper()
	call(t, k.runtime.StopPodSandbox, &cri.StopPodSandboxRequest{PodSandboxId: k.sandbox})
	call(t, k.runtime.RemovePodSandbox, &cri.RemovePodSandboxRequest{PodSandboxId: k.sandbox})
	for _, image := range call(t, k.images.ListImages, &cri.ListImagesRequest{}).Images {
		call(t, k.images.RemoveImage, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image.Id}})
	}
	k.waitFor(t, k.snapshotter, func() error {
		k.ctr(t, "-n", "k8s.io", "leases", "create", "--id", "collect")
		k.ctr(t, "-n", "k8s.io", "leases", "rm", "--sync", "collect")
		left := strings.TrimSpace(k.ctr(t, "-n", "k8s.io", "snapshots", "--snapshotter", "plyfs", "ls"))
		if lines := outputLines(left); len(lines) > 1 {
			return fmt.Errorf("snapshots stay: %v", lines)
		}
		return nil
	})
}
