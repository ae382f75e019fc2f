package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// A short round of faults (make faults DURATION=1h is a long one): kills, pauses,
// partitions, disks and power, one after another, under clients; nothing that was
// acknowledged is lost, no read is staler than it says, no byte is wrong. How available
// the cluster was is printed.
func TestFaults(t *testing.T) {
	needRoot(t, "network namespaces, disks, signals")
	needTools(t, "ip", "tc", "iptables", "mkfs.ext4", "fsfreeze")
	root, err := proc.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := folder(t, "")
	faults := filepath.Join(dir, "faults")
	ctx := limit(t, 15*time.Minute)
	build := exec.CommandContext(ctx, "go", "build", "-o", faults, "./deploy/lab/faults")
	build.Dir = root
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, output)
	}
	duration := time.Minute
	if full {
		duration = 10 * time.Minute
	}
	// Few operations a second are enough here: a busy machine shall not fail the test.
	output, err := command(ctx, nil, faults, "--bin", binary, "--dir", filepath.Join(dir, "kept"), "--seed", fmt.Sprint(seed()),
		"--duration", duration.String(), "--rate", "150", "--at-least", "10")
	t.Log(output)
	if err != nil {
		t.Fatal("the round failed; its log is above")
	}
}
