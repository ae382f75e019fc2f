package proc

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestProcessLifeIsObserved(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := Start(Spec{Name: "shell", Path: "/bin/sh", Args: []string{"-c", "trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.02; done"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = Await(ctx, "hello", func(context.Context) error {
		if !strings.Contains(p.LogTail(100), "hello") {
			return errors.New("nothing said")
		}
		return nil
	}, p)
	if err != nil {
		t.Fatal(err)
	}
	if memory, err := p.Memory(); err != nil || memory.Now <= 0 || memory.Peak < memory.Now {
		t.Errorf("memory %+v, %v", memory, err)
	}
	if _, err := p.CPU(); err != nil {
		t.Error(err)
	}
	if err := p.Stop(time.Minute); err != nil {
		t.Error(err)
	}
	if got := p.LogTail(4); got != "bye\n" {
		t.Errorf("last words %q", got)
	}
}

func TestAwaitEndsWithTheProcess(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := Start(Spec{Name: "short-lived", Path: "/bin/sh", Args: []string{"-c", "echo cannot; exit 3"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	err = Await(t.Context(), "the impossible", func(context.Context) error { return errors.New("not yet") }, p)
	if err == nil || !strings.Contains(err.Error(), "cannot") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("await: %v", err)
	}
}

func TestParseProcFiles(t *testing.T) {
	m, err := parseMemory("Name:\tx y\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n")
	if err != nil || m != (Memory{Now: 1 << 20, Peak: 2 << 20}) {
		t.Errorf("memory %+v, %v", m, err)
	}
	if _, err := parseMemory("Name: zombie\n"); err == nil {
		t.Error("a zombie has memory")
	}
	cpu, err := parseCPU("12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0")
	if err != nil || cpu != 2*time.Second {
		t.Errorf("cpu %v, %v", cpu, err)
	}
}

func TestNodeArgsFollowTheContract(t *testing.T) {
	got := Node{Role: "server", Region: "east", Zone: "a", Data: "/d", Host: "10.0.0.1", Everywhere: true, Bootstrap: true}.Args()
	want := strings.Fields("server --data /d --gateway 0.0.0.0:5000 --swarm 10.0.0.1:7070 --ops 0.0.0.0:7072 --advertise 10.0.0.1 --region east --raft 10.0.0.1:7071 --raft-profile site --zone a --bootstrap")
	if !slices.Equal(got, want) {
		t.Errorf("args %q\nwant %q", got, want)
	}
}

func TestReadDevFile(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadDevFile(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	text := `{"servers":[{"region":"r1","gateway":"127.0.0.1:5000","ops":"127.0.0.1:1"}],"agents":[],"admin_token":"t"}`
	if err := os.WriteFile(filepath.Join(dir, "dev.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := ReadDevFile(dir)
	if err != nil || len(d.All()) != 1 || d.Servers[0].Gateway != "127.0.0.1:5000" || d.AdminToken != "t" {
		t.Errorf("dev.json: %+v, %v", d, err)
	}
}

func TestAChildHasNothingOfItsCallersSettings(t *testing.T) {
	for _, name := range []string{"https_proxy", "HTTP_PROXY", "GOPRIVATE", "GOFLAGS", "npm_config_registry", "PIP_INDEX_URL", "AWS_PROFILE", "SHOAL_TOKEN"} {
		t.Setenv(name, "the caller's")
	}
	t.Setenv("HOME", "/the/callers")
	out, err := Run(t.Context(), nil, "/usr/bin/env", []string{"HOME=/its/own", "WANTED=yes"})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out, "\n")
	for _, want := range []string{"HOME=/its/own", "WANTED=yes", "PATH=" + os.Getenv("PATH")} {
		if !slices.Contains(lines, want) {
			t.Errorf("no %s in %q", want, lines)
		}
	}
	if strings.Contains(out, "the caller's") || strings.Contains(out, "/the/callers") {
		t.Errorf("the child has %q", lines)
	}
}
