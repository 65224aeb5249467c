package image

import (
	"strings"
	"testing"

	"plyfs/drivers"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseName(t *testing.T) {
	for _, c := range []struct{ in, full, familiar string }{
		{"nginx", "docker.io/library/nginx:latest", "nginx:latest"},
		{"nginx:1.2", "docker.io/library/nginx:1.2", "nginx:1.2"},
		{"library/nginx", "docker.io/library/nginx:latest", "nginx:latest"},
		{"index.docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest"},
		{"user/app", "docker.io/user/app:latest", "user/app:latest"},
		{"localhost/app", "localhost/app:latest", "localhost/app:latest"},
		{"localhost:5000/app:x", "localhost:5000/app:x", "localhost:5000/app:x"},
		{"[::1]:5000/a/b", "[::1]:5000/a/b:latest", "[::1]:5000/a/b:latest"},
		{"quay.io/a/b__c/d-e.f:T_1", "quay.io/a/b__c/d-e.f:T_1", "quay.io/a/b__c/d-e.f:T_1"},
		{"HOST/app", "HOST/app:latest", "HOST/app:latest"},
		{"nginx@" + someDigest, "docker.io/library/nginx@" + someDigest, "nginx@" + someDigest},
		{"nginx:1@" + someDigest, "docker.io/library/nginx:1@" + someDigest, "nginx:1@" + someDigest},
	} {
		n, err := ParseName(c.in)
		if err != nil || n.String() != c.full || n.Familiar() != c.familiar {
			t.Errorf("%s: %q, %q, %v; want %q, %q", c.in, n.String(), n.Familiar(), err, c.full, c.familiar)
		}
		for _, form := range []string{n.String(), n.Familiar()} {
			if again, err := ParseName(form); err != nil || again != n {
				t.Errorf("%s: %q is read as %+v, %v", c.in, form, again, err)
			}
		}
	}
}

func TestParseNameRefuses(t *testing.T) {
	for in, why := range map[string]string{
		"":                                  "no repository",
		":tag":                              "no repository",
		"Nginx":                             "capital letters",
		"a//b":                              "components",
		"a/../b":                            "components",
		"nginx:":                            "tag",
		"nginx:-x":                          "tag",
		"nginx:" + strings.Repeat("a", 129): "tag",
		"nginx@sha256:12":                   "digest",
		"nginx@md5:d41d8cd98f00b204e9800998ecf8427e": "digest",
		"ho st.example/app":                          "registry",
		strings.Repeat("a", 256):                     "longer",
		strings.Repeat("0123456789abcdef", 4):        "an id",
		"example.com:port/app":                       "registry",
		"a b":                                        "components",
		"a\x00b":                                     "components",
	} {
		_, err := ParseName(in)
		mustBe(t, err, drivers.ErrInvalid)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v; want something about %q", in, err, why)
		}
	}
}
