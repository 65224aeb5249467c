package image

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"plyfs/drivers"
)

// hostPlatform is the platform of this machine.
func hostPlatform() ocispec.Platform {
	p := ocispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	if p.Architecture == "arm" {
		p.Variant = armVariant()
	}
	return normalPlatform(p)
}

// armVariant is v5 to v8 by what the kernel says of the processor; v7 where it says nothing.
func armVariant() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	m := regexp.MustCompile(`(?m)^CPU architecture\s*:\s*([5-8])`).FindSubmatch(text)
	if err != nil || m == nil {
		return "v7"
	}
	return "v" + string(m[1])
}

// ParsePlatform reads OS/ARCHITECTURE[/VARIANT], or an architecture alone. The error wraps drivers.ErrInvalid.
func ParsePlatform(s string) (ocispec.Platform, error) {
	parts := strings.Split(s, "/")
	if slices.Contains(parts, "") || len(parts) > 3 {
		return ocispec.Platform{}, fmt.Errorf("platform %q is not OS/ARCHITECTURE[/VARIANT]: %w", s, drivers.ErrInvalid)
	}
	if len(parts) == 1 {
		parts = []string{runtime.GOOS, parts[0]}
	}
	p := ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return normalPlatform(p), nil
}

// normalPlatform replaces the words that uname and other tools have for an architecture.
func normalPlatform(p ocispec.Platform) ocispec.Platform {
	p.OS, p.Architecture, p.Variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "i386", "i686":
		p.Architecture = "386"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	switch {
	case p.Architecture == "arm64" && (p.Variant == "v8" || p.Variant == "8"):
		p.Variant = ""
	case p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	}
	return p
}

// fit says how well a platform that an index offers serves the wanted one: below zero not at all, and the more the better.
func fit(want, have ocispec.Platform) int {
	have = normalPlatform(have)
	if have.OS != want.OS || have.Architecture != want.Architecture {
		return -1
	}
	if have.Variant == want.Variant {
		return 100
	}
	if want.Architecture == "arm" && want.Variant > have.Variant && len(have.Variant) == 2 {
		return int(have.Variant[1] - '0') // an older processor's code runs, a newer one's does not
	}
	if have.Variant == "" || want.Variant == "" && want.Architecture == "arm64" {
		return 0
	}
	return -1
}

// choosePlatform returns the descriptors of an index that serve the wanted platform, the best first. Those that name no
// platform come last: only their configs would tell.
func choosePlatform(all []ocispec.Descriptor, want ocispec.Platform) ([]ocispec.Descriptor, error) {
	type ranked struct {
		d    ocispec.Descriptor
		rank int
	}
	var fits []ranked
	var offered []string
	for _, d := range all {
		switch {
		case !isManifest(d.MediaType) && !isIndex(d.MediaType) && d.MediaType != "":
		case d.Platform == nil:
			fits = append(fits, ranked{d, -1})
		case d.Platform.OS == "unknown":
			// Attestations hang beside the images that they are about.
		default:
			offered = append(offered, platformString(*d.Platform))
			if r := fit(want, *d.Platform); r >= 0 {
				fits = append(fits, ranked{d, r})
			}
		}
	}
	if len(fits) == 0 {
		return nil, fmt.Errorf("%w for platform %s; there are: %s: %w", errNoImage, platformString(want),
			strings.Join(offered, ", "), drivers.ErrNotFound)
	}
	slices.SortStableFunc(fits, func(a, b ranked) int { return b.rank - a.rank })
	out := make([]ocispec.Descriptor, 0, len(fits))
	for _, f := range fits {
		out = append(out, f.d)
	}
	return out, nil
}

// platformString is the form that ParsePlatform reads.
func platformString(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
