package uploadid

import (
	"errors"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func TestIDs(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcdef")
	m, err := NewMinter("n1", secret)
	if err != nil {
		t.Fatal(err)
	}
	repo := meta.RepoRef{Tenant: "acme", Name: "app"}
	id := m.New("session-1", "user:ada", repo)
	if owner, err := Owner(id); err != nil || owner != "n1" {
		t.Errorf("%s %v", owner, err)
	}
	if s, err := m.Session(id, "user:ada", repo); err != nil || s != "session-1" {
		t.Errorf("%s %v", s, err)
	}
	again, _ := NewMinter("n1", secret)
	if _, err := again.Session(id, "user:ada", repo); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	other, _ := NewMinter("n1", []byte("another secret of thirty-two byte"))
	otherNode, _ := NewMinter("n2", secret)
	for name, check := range map[string]func() (string, error){
		"principal":  func() (string, error) { return m.Session(id, "user:eve", repo) },
		"repository": func() (string, error) { return m.Session(id, "user:ada", meta.RepoRef{Tenant: "acme", Name: "lib"}) },
		"secret":     func() (string, error) { return other.Session(id, "user:ada", repo) },
		"node":       func() (string, error) { return otherNode.Session(id, "user:ada", repo) },
		"session":    func() (string, error) { return m.Session("n1~session-2"+id[len("n1~session-1"):], "user:ada", repo) },
		"cut":        func() (string, error) { return m.Session(id[:len(id)-1], "user:ada", repo) },
		"text":       func() (string, error) { return m.Session("x", "user:ada", repo) },
	} {
		if s, err := check(); !errors.Is(err, meta.ErrNotFound) || s != "" {
			t.Errorf("other %s: %q %v", name, s, err)
		}
	}
	for _, bad := range []string{"", "a~b", "~b~c", "a~~c", "a~b~", "a~b~c~d"} {
		if _, err := Owner(bad); !errors.Is(err, meta.ErrNotFound) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := NewMinter("n1", []byte("short")); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func FuzzOwner(f *testing.F) {
	f.Add("a~b~c")
	f.Fuzz(func(t *testing.T, id string) {
		if owner, err := Owner(id); (err == nil) == (owner == "") {
			t.Fatalf("%q: %q %v", id, owner, err)
		}
	})
}
