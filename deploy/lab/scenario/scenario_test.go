package scenario

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/lab/netns"
	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

func TestScenariosAreNamedOnce(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range All() {
		if seen[s.Name] || s.Name == "" || s.Claim == "" || s.Run == nil {
			t.Errorf("%q: twice, or without a name, a claim or steps", s.Name)
		}
		seen[s.Name] = true
		for _, plan := range []wave.Plan{s.Full, s.Quick} {
			plan.Bin, plan.Dir = "shoal", "/tmp"
			if err := plan.Check(); err != nil {
				t.Errorf("%s: %v", s.Name, err)
			}
		}
		if found, err := Find(s.Name); err != nil || found.Name != s.Name {
			t.Errorf("find %s: %v", s.Name, err)
		}
	}
	if _, err := Find("nothing"); err == nil {
		t.Error("found nothing")
	}
}

// A scenario that fails is a result with an error, its figures so far, and no folder.
func TestRunLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	r := Run(t.Context(), Scenario{Name: "x", Claim: "y", Quick: wave.Plan{Hosts: 3}, Run: func(ctx context.Context, l *Lab) error {
		if l.Plan.Hosts != 3 || l.Plan.Bytes != 7 || l.Plan.Seed != 9 {
			t.Errorf("plan %+v", l.Plan)
		}
		l.AtMost("ratio", "%.2f", 1.2, 1.15)
		l.AtMost("memory", "%.0f", 79, 80)
		l.Must("right", "4", false, "%d", 3)
		l.Note("seen", "%d", 5)
		return errors.Join(errors.New("broke"), os.WriteFile(filepath.Join(l.dir, "file"), nil, 0o600))
	}}, Options{Dir: dir, Quick: true, Bytes: 7, Seed: 9})
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind %v, %v", entries, err)
	}
	if r.Error != "broke" || r.Kept() || !r.Broken() || len(r.Short()) != 2 {
		t.Errorf("result %+v", r)
	}
	var b strings.Builder
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| x (quick) | ratio", "| 1.20 | <= 1.15 | SHORT", "| 79 | <= 80 | kept", "| 3 | 4 | SHORT", "| ERROR", "x (quick): broke"} {
		if !strings.Contains(strings.Join(strings.Fields(b.String()), " "), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestMostInASecond(t *testing.T) {
	start := time.Unix(100, 0)
	var s linkSamples
	total := int64(0)
	for i := range 50 { // 5 s: 10 a second, in the third second 30
		if i >= 20 && i < 30 {
			total += 2
		}
		total++
		s = append(s, linkSample{start.Add(time.Duration(i) * 100 * time.Millisecond), netns.Traffic{Received: total}})
	}
	received := func(t netns.Traffic) int64 { return t.Received }
	for _, c := range []struct {
		name     string
		from, to time.Duration
		want     int64
	}{
		{"all", 0, time.Minute, 30},
		{"before the third second", 0, 1900 * time.Millisecond, 10},
		{"after it", 2900 * time.Millisecond, time.Minute, 10},
		{"half a second", 0, 500 * time.Millisecond, 5},
		{"nothing", time.Hour, 2 * time.Hour, 0},
	} {
		if got := s.most(start.Add(c.from), start.Add(c.to), received); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestDescribeParts(t *testing.T) {
	content := make([]byte, 1001)
	parts, err := describeParts(bytes.NewReader(content), int64(len(content)), 4)
	if err != nil || len(parts) != 4 {
		t.Fatalf("%d parts, %v", len(parts), err)
	}
	var offset int64
	for _, part := range parts {
		if got := image.DigestOf(content[offset : offset+part.Size]); got != part.Digest {
			t.Errorf("part at %d has digest %s, not %s", offset, got, part.Digest)
		}
		offset += part.Size
	}
	if offset != int64(len(content)) {
		t.Errorf("parts of %d bytes in all", offset)
	}
	if _, err := describeParts(bytes.NewReader(content), 5000, 2); err == nil {
		t.Error("a stream that is too short has parts")
	}
}

// holder is the environment variable that makes the test binary a process with content
// in its memory, whose digest it prints when its input ends.
const holder = "SHOAL_TEST_HOLDER"

func TestMain(m *testing.M) {
	if os.Getenv(holder) == "" {
		os.Exit(m.Run())
	}
	content := make([]byte, 256<<10)
	_, _ = image.Random(5).Read(content)
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	fmt.Println(image.DigestOf(content))
}

// Content in another process's memory is found and changed, once for each 64 KiB.
func TestDamage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: not root, so memory cannot be written from outside")
	}
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), holder+"=1")
	input, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(output)
	lines.Scan() // ready
	flipped, err := damage(child.Process.Pid, image.Random(5), 256<<10)
	if err != nil || flipped != 4 {
		t.Errorf("flipped %d places, %v", flipped, err)
	}
	input.Close()
	lines.Scan()
	content := make([]byte, 256<<10)
	if _, err := image.Random(5).Read(content); err != nil {
		t.Fatal(err)
	}
	if got := lines.Text(); !strings.HasPrefix(got, "sha256:") || got == image.DigestOf(content) {
		t.Errorf("the content has digest %q", got)
	}
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}

func TestOnDisk(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	hole, err := os.Create(filepath.Join(dir, "b", "hole"))
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	if err := hole.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	if got := atOnce(filesOf(dir), filesOf(dir)); got < 8192 || got > 1<<20 {
		t.Errorf("%d bytes on disk", got)
	}
}

// A file that goes while a folder is listed, and one that takes its room, never were
// there at once, whatever one listing holds.
func TestAtOnce(t *testing.T) {
	before := map[string]int64{"pinned": 4, "evicted": 10, "grows": 1}
	after := map[string]int64{"pinned": 4, "arrives": 10, "grows": 3}
	if got := atOnce(before, after); got != 5 {
		t.Errorf("%d between the listings, want 5", got)
	}
}
