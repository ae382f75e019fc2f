package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/node/clients"
)

// setupIn runs `shoal setup` in a home of its own and returns what it printed.
func setupIn(t *testing.T, home, token string, args ...string) (string, error) {
	t.Helper()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, ".config"))
	t.Setenv("SHOAL_TOKEN", token)
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(append([]string{"setup"}, args...))
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.Execute()
	return out.String(), err
}

func TestSetup(t *testing.T) {
	const token = "a-token-of-the-test"
	home := t.TempDir()
	file := filepath.Join(home, ".npmrc")
	out, err := setupIn(t, home, token, "npm", "--repo", "acme/npm")
	if err != nil || strings.Contains(out, token) || !strings.Contains(out, "_authToken=TOKEN") || !strings.Contains(out, "SHOAL_TOKEN") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("setup wrote without --write")
	}
	if out, err := setupIn(t, home, token, "npm", "--repo", "acme/npm", "--show-token"); err != nil || !strings.Contains(out, "_authToken="+token) {
		t.Errorf("%v\n%s", err, out)
	}
	const mine = "; mine\nfund=false\n"
	if err := os.WriteFile(file, []byte(mine), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err = setupIn(t, home, token, "npm", "--repo", "acme/npm", "--agent", "http://127.0.0.9:7000", "--write")
	if err != nil || strings.Contains(out, token) || !strings.Contains(out, "changed") {
		t.Errorf("%v\n%s", err, out)
	}
	const want = mine + "registry=http://127.0.0.9:7000/npm/acme/npm/\n//127.0.0.9:7000/npm/acme/npm/:_authToken=" + token + "\n"
	expectFile(t, file, want, 0o600)
	expectFile(t, file+beforeShoal, mine, 0o600)
	out, err = setupIn(t, home, token, "npm", "--repo", "acme/npm", "--agent", "http://127.0.0.9:7000", "--write", "--json")
	var printed struct{ Files []configured }
	if err != nil || json.Unmarshal([]byte(out), &printed) != nil || len(printed.Files) != 1 || printed.Files[0].Changed || strings.Contains(out, token) {
		t.Errorf("%v\n%s", err, out)
	}
	expectFile(t, file+beforeShoal, mine, 0o600)
	// What else is secret in a file is not printed either, with a credential or without.
	other := filepath.Join(home, ".npmrc")
	if err := os.WriteFile(other, []byte("//other.example/:_authToken=another-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"npm", "--repo", "acme/npm"}, {"npm", "--repo", "acme/npm", "--json"}, {"npm", "--repo", "acme/npm", "--write", "--json"}} {
		for _, given := range []string{"", token} {
			if out, err := setupIn(t, home, given, args...); err != nil || strings.Contains(out, "another-secret") {
				t.Errorf("setup %v: %v\n%s", args, err, out)
			}
		}
	}
	for _, args := range [][]string{{"nope", "--repo", "a/b"}, {"npm"}, {"npm", "--repo", "a"}, {"npm", "--repo", "a/b", "--agent", "ftp://x"}, {"npm", "--repo", "a/b", "--agent", "http://x/y"}} {
		if out, err := setupIn(t, home, token, args...); err == nil {
			t.Errorf("setup %v: %s", args, out)
		}
	}
}

func expectFile(t *testing.T, path, want string, mode os.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s: %v\n%s\nwant\n%s", path, err, got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
		t.Errorf("%s: %v %v, want %v", path, info.Mode(), err, mode)
	}
}

// Files of the system go below --root, links stay links, and without a credential nothing is secret.
func TestSetupRoot(t *testing.T) {
	home, root := t.TempDir(), t.TempDir()
	if out, err := setupIn(t, home, "", "containerd", "--repo", "acme/hub", "--mirror", "docker.io", "--root", root, "--write"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	expectFile(t, filepath.Join(root, "etc/containerd/certs.d/docker.io/hosts.toml"),
		"server = \"https://registry-1.docker.io\"\n\n[host.\"http://127.0.0.1:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n", 0o644)
	// A link of the image does not lead to this machine's files.
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(root, "etc/yum.repos.d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("containerd", filepath.Join(root, "etc/linked")); err != nil {
		t.Fatal(err)
	}
	s := setup{root: root, write: true}
	own := func([]byte) ([]byte, error) { return []byte("x"), nil }
	if _, err := s.apply(clients.Edit{Path: "/etc/yum.repos.d/x.repo", Apply: own}); err == nil {
		t.Error("a link led out of the root")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside there is %v, %v", left, err)
	}
	if _, err := s.apply(clients.Edit{Path: "/etc/linked/new/x", Apply: own}); err != nil {
		t.Error(err)
	}
	expectFile(t, filepath.Join(root, "etc/containerd/new/x"), "x", 0o644)
	real := filepath.Join(home, "dotfiles")
	if err := os.WriteFile(real, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, filepath.Join(home, ".npmrc")); err != nil {
		t.Fatal(err)
	}
	if out, err := setupIn(t, home, "", "npm", "--repo", "acme/npm", "--write"); err != nil || !strings.Contains(out, "shoal login") {
		t.Fatalf("%v\n%s", err, out)
	}
	expectFile(t, real, "registry=http://127.0.0.1:5000/npm/acme/npm/\n", 0o600)
	if info, err := os.Lstat(filepath.Join(home, ".npmrc")); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link is a file now")
	}
}
