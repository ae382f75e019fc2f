package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/image"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// binary is the shoal under test, emptyHome a folder for clients that are given no other;
// TestMain sets them.
var binary, emptyHome string

// full asks for the large cases (make e2e-full).
var full = os.Getenv("SHOAL_E2E") == "full"

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "shoal-e2e-bin-")
	if err != nil {
		log.Fatal(err)
	}
	if binary, err = proc.Binary(context.Background(), dir); err != nil {
		log.Fatal(err)
	}
	// Client tools built from deploy/tools come first.
	tools := os.Getenv("SHOAL_TOOLS")
	if tools == "" {
		if root, err := proc.ModuleRoot(); err == nil {
			out, _ := exec.Command(filepath.Join(root, "deploy", "tools", "setup"), "path").Output()
			tools = strings.TrimSpace(string(out))
		}
	}
	os.Setenv("PATH", tools+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	emptyHome = filepath.Join(dir, "home")
	if err := os.Mkdir(emptyHome, 0o700); err != nil {
		log.Fatal(err)
	}
	code := m.Run()
	lastWords.print(os.Stdout)
	os.RemoveAll(dir)
	os.Exit(code)
}

// lastWords has the ends of the logs of the processes of failed tests. They are printed after
// all tests, so that a test's own output ends with why it failed.
var lastWords tails

type tails struct {
	mu    sync.Mutex
	texts []string
	bytes int
}

const (
	tailBytes  = 4096      // of one log
	tailsBytes = 512 << 10 // of all logs of a run
)

// keep notes the end of a process's log if t has failed. p may be nil.
func (l *tails) keep(t *testing.T, p *proc.Process) {
	if p == nil || !t.Failed() {
		return
	}
	text := fmt.Sprintf("=== end of the log of %s of %s\n%s\n", p.Name(), t.Name(), strings.TrimSpace(p.LogTail(tailBytes)))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bytes += len(text); l.bytes <= tailsBytes {
		l.texts = append(l.texts, text)
	}
}

func (l *tails) print(w io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, text := range l.texts {
		fmt.Fprint(w, text)
	}
	if l.bytes > tailsBytes {
		fmt.Fprintf(w, "=== the other logs are left out, %d bytes of their ends in all\n", l.bytes)
	}
}

// skip ends a test that this machine cannot run; on CI that is a failure.
func skip(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("CI must be able to run this: "+format, args...)
	}
	t.Skipf("SKIPPED: "+format, args...)
}

// needRoot skips when not root.
func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "needs root: %s", why)
	}
}

// needTools skips when a command is missing.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			skip(t, "no %s; `make tools` installs it", name)
		}
	}
}

// limit returns a context that only guards against hangs.
func limit(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("no end after %v", d))
	t.Cleanup(cancel)
	return ctx
}

// folder makes a folder outside t.TempDir, whose removal also lets go of what container
// tools mounted in it.
func folder(t *testing.T, parent string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "shoal-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBeneath(dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

// unmountBeneath unmounts everything mounted in dir, the innermost first.
func unmountBeneath(dir string) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			points = append(points, fields[1])
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		_ = syscall.Unmount(points[i], syscall.MNT_DETACH)
	}
}

// seed returns a number that no other image of this run has, so that nothing is found
// in a cache by accident.
func seed() uint64 { return rand.Uint64() >> 9 }

// makeImage returns a new image.
func makeImage(t *testing.T, layers int, bytes int64) *image.Image {
	t.Helper()
	img, err := image.Make(seed(), layers, bytes)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// dev is a running `shoal dev`.
type dev struct {
	proc.DevFile
	data    string
	args    []string
	process *proc.Process
}

// startDev starts `shoal dev` with further flags on a loopback address of its own and
// waits until every node is ready.
func startDev(t *testing.T, data string, flags ...string) *dev {
	t.Helper()
	if data == "" {
		data = filepath.Join(folder(t, ""), "dev")
	}
	d := &dev{data: data, args: append([]string{"dev", "--data", data, "--gateway", proc.LoopbackHost() + ":" + proc.GatewayPort}, flags...)}
	t.Cleanup(func() {
		d.process.Kill()
		lastWords.keep(t, d.process)
	})
	d.start(t)
	return d
}

func (d *dev) start(t *testing.T) {
	t.Helper()
	// The file is the sign of readiness, so an old one must not count.
	if err := os.Remove(filepath.Join(d.data, "dev.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	process, err := proc.Start(proc.Spec{Name: "shoal dev", Path: binary, Args: d.args, Log: d.data + ".log",
		Env: []string{"HOME=" + filepath.Dir(d.data)}})
	if err != nil {
		t.Fatal(err)
	}
	d.process = process
	ctx := limit(t, 2*time.Minute)
	if err := proc.Await(ctx, "shoal dev to be ready", func(ctx context.Context) error {
		if d.DevFile, err = proc.ReadDevFile(d.data); err != nil {
			return err
		}
		for _, node := range d.All() {
			if err := proc.Ready(ctx, http.DefaultClient, node.Ops); err != nil {
				return err
			}
		}
		return nil
	}, process); err != nil {
		t.Fatalf("%v\nlog: %s", err, process.LogTail(4096))
	}
}

// registry returns a client of a node's gateway.
func registry(node proc.Endpoint, token string) *image.Client {
	return &image.Client{Base: "http://" + proc.Address(node.Gateway), Token: token}
}

// command runs a program to its end and returns its output; on an error the output is in it.
//
// The program has proc.Environ, an empty HOME unless env names one, and, if it is of rustup,
// our toolchains; whatever else it needs is in env.
func command(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	rustup := cmp.Or(os.Getenv("RUSTUP_HOME"), filepath.Join(os.Getenv("HOME"), ".rustup"))
	cmd.Env = append(proc.Environ("HOME="+emptyHome, "RUSTUP_HOME="+rustup), env...)
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	output, err := cmd.CombinedOutput()
	if err != nil {
		return string(output), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, output)
	}
	return string(output), nil
}
