package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
)

// ErrUnauthorized says that a registry wants other credentials, or none would do.
var ErrUnauthorized = errors.New("not authorised")

// RegistryOptions say how registries are spoken to; the zero value is right for public and private ones.
type RegistryOptions struct {
	// Keychain has the credentials; nil reads ~/.docker/config.json and, where there is none, containers/auth.json.
	Keychain authn.Keychain
	// Insecure accepts any certificate, and plain HTTP where a registry does not speak TLS. Plain HTTP to this machine is
	// always accepted.
	Insecure bool
	// Attempts is how often a download that gives nothing any more is tried; zero means 5. Each attempt goes on where the last
	// one ended.
	Attempts int
	// Delay is the pause before the second attempt, doubled for each further; zero means half a second.
	Delay time.Duration
	// Stall ends an attempt that gives nothing for so long; zero means a minute.
	Stall time.Duration
}

// client speaks to one repository of one registry.
type client struct {
	repo name.Repository
	base *http.Transport
	rt   http.RoundTripper
	http *http.Client
	o    RegistryOptions
}

// dial authenticates at the registry of n for pulling or pushing (transport.PullScope, transport.PushScope).
func dial(ctx context.Context, n Name, scope string, o RegistryOptions) (*client, error) {
	if o.Attempts <= 0 {
		o.Attempts = 5
	}
	if o.Delay <= 0 {
		o.Delay = time.Second / 2
	}
	if o.Stall <= 0 {
		o.Stall = time.Minute
	}
	var nameOptions []name.Option
	if o.Insecure {
		nameOptions = append(nameOptions, name.Insecure)
	}
	reg, err := name.NewRegistry(n.Domain, nameOptions...)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w: %w", n.Domain, err, drivers.ErrInvalid)
	}
	c := &client{repo: reg.Repo(n.Path), base: baseTransport(o), o: o}
	keys := o.Keychain
	if keys == nil {
		keys = hubKeychain{authn.DefaultKeychain}
	}
	auth, err := authn.Resolve(ctx, keys, c.repo)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", n.Domain, err)
	}
	base := transport.NewRetry(transport.NewUserAgent(&guard{base: c.base, insecure: o.Insecure}, "plyfs"))
	c.rt, err = transport.NewWithContext(ctx, reg, auth, base, []string{c.repo.Scope(scope)})
	if err != nil {
		c.close()
		return nil, registryError("registry "+n.Domain, err)
	}
	c.http = &http.Client{Transport: c.rt, CheckRedirect: checkRedirect}
	return c, nil
}

func baseTransport(o RegistryOptions) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: o.Stall,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		// A layer is compressed already, and Range counts bytes as they are on the wire.
		DisableCompression: true,
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: o.Insecure, MinVersion: tls.VersionTLS12},
	}
}

// close ends idle connections.
func (c *client) close() { c.base.CloseIdleConnections() }

// hubKeychain finds what podman login docker.io stored, under the name that it uses.
type hubKeychain struct{ authn.Keychain }

// Resolve implements authn.Keychain.
func (k hubKeychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	a, err := k.Keychain.Resolve(r)
	if err != nil || a != authn.Anonymous || r.RegistryStr() != name.DefaultRegistry {
		return a, err
	}
	return k.Keychain.Resolve(hubResource{})
}

// hubResource is docker.io as a key of a file with credentials.
type hubResource struct{}

// String implements authn.Resource.
func (hubResource) String() string { return defaultDomain }

// RegistryStr implements authn.Resource.
func (hubResource) RegistryStr() string { return defaultDomain }

// guard refuses to send anything over plain HTTP to another machine unless that was asked for. The library would try it
// for every private address.
type guard struct {
	base     *http.Transport
	insecure bool
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !g.insecure && !isLoopback(r.URL.Hostname()) {
		return nil, fmt.Errorf("plain HTTP to %s is refused; --insecure accepts it: %w", r.URL.Host, drivers.ErrNotSupported)
	}
	return g.base.RoundTrip(r)
}

func isLoopback(host string) bool {
	if host == localDomain {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// maxRedirects is what browsers and Go's client allow.
const maxRedirects = 10

// checkRedirect keeps a registry from sending this process to an address of the inner network, where its own requests
// would not get. Names are not looked up: who answers for a name answers for where it leads.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	host, first := r.URL.Hostname(), via[0].URL.Hostname()
	if host != first && !isLoopback(first) && isInner(host) {
		return fmt.Errorf("%s redirects to the private address %s: %w", first, host, drivers.ErrNotSupported)
	}
	return nil
}

// isInner says whether a host is this machine, or an address of the network that it is in.
func isInner(host string) bool {
	if isLoopback(host) {
		return true
	}
	a, err := netip.ParseAddr(host)
	// Linux takes the unspecified address for this machine.
	return err == nil && (a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsUnspecified())
}

// manifest fetches a manifest or an index by tag or digest.
func (c *client) manifest(ctx context.Context, reference string) (document, error) {
	var ref name.Reference = c.repo.Tag(reference)
	if d, err := digest.Parse(reference); err == nil {
		ref = c.repo.Digest(d.String())
	}
	got, err := remote.Get(ref, remote.WithTransport(c.rt), remote.WithContext(ctx))
	if err != nil {
		return document{}, registryError(ref.String(), err)
	}
	if len(got.Manifest) > maxDocument {
		return document{}, fmt.Errorf("%s: manifest of %d bytes: %w", ref, len(got.Manifest), ErrMalformed)
	}
	kind, err := kindOf(got.Manifest, string(got.MediaType))
	if err != nil {
		return document{}, fmt.Errorf("%s: %w", ref, err)
	}
	return document{raw: got.Manifest, desc: ocispec.Descriptor{
		MediaType: kind, Digest: digest.Digest(got.Digest.String()), Size: int64(len(got.Manifest)),
	}}, nil
}

// document fetches a small blob, such as a config.
func (c *client) document(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxDocument {
		return nil, fmt.Errorf("blob %s: config of %d bytes: %w", d.Digest, d.Size, ErrMalformed)
	}
	var buf bytes.Buffer
	err := c.retrying(ctx, func() (bool, error) {
		buf.Reset()
		body, err := c.get(ctx, d, 0)
		if err != nil {
			return false, err
		}
		defer body.Close()
		_, err = buf.ReadFrom(newVerifier(d.Digest, d.Size, body))
		return false, err
	})
	return buf.Bytes(), err
}

// registryError gives an answer of a registry its class.
func registryError(what string, err error) error {
	var te *transport.Error
	if !errors.As(err, &te) {
		return fmt.Errorf("%s: %w", what, err)
	}
	switch te.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w: %w", what, err, drivers.ErrNotFound)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%s: %w: %w; docker login or podman login stores credentials that plyfs uses", what, err, ErrUnauthorized)
	}
	return fmt.Errorf("%s: %w", what, err)
}
