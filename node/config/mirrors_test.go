package config

import "testing"

func TestMirrors(t *testing.T) {
	m, err := ParseMirrors(" Docker.io=acme/hub, ghcr.io:443=acme/ghcr ,")
	if err != nil || m.String() != "docker.io=acme/hub,ghcr.io:443=acme/ghcr" {
		t.Errorf("%v, %v", m, err)
	}
	for _, bad := range []string{"docker.io", "=acme/hub", "docker.io=hub", "https://docker.io=acme/hub", "docker.io=acme/hub/alpine"} {
		if m, err := ParseMirrors(bad); err == nil {
			t.Errorf("%q is %v", bad, m)
		}
	}
	if m, err := ParseMirrors(""); err != nil || m != nil {
		t.Errorf("none is %v, %v", m, err)
	}
}
