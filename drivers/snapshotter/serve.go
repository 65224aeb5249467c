package snapshotter

import (
	"context"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
)

// Register adds the services of proxy plugins of the types "snapshot" and, if d is not nil, "diff" to a server.
func Register(server grpc.ServiceRegistrar, s *Snapshotter, d *Differ) {
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	if d != nil {
		diffapi.RegisterDiffServer(server, diffservice.FromApplierAndComparer(d, d))
	}
}

// ForwardContext is an interceptor for the server: what a call says of its namespace and lease counts for calls to containerd that
// are made on its behalf.
func ForwardContext(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if ns, ok := namespaces.Namespace(ctx); ok {
		ctx = namespaces.WithNamespace(ctx, ns)
	}
	if lease, ok := leases.FromContext(ctx); ok {
		ctx = leases.WithLease(ctx, lease)
	}
	return handle(ctx, req)
}
