// Package proc runs the shoal binary and other daemons as real processes, for the
// lab, the benchmarks and the end-to-end tests.
//
// Start reading at Process; node.go writes shoal's own command lines, ended.go lets
// their starter end in good order. A process dies with the program that started it
// (parent-death signal), so an interrupted run leaves nothing behind. Each Process owns
// one goroutine, which waits for the child and ends with it. Linux only, like everything
// beneath deploy.
package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Spec says what to start.
type Spec struct {
	Name string   // for messages, e.g. "server east-1"
	Path string   // executable
	Args []string // without the executable's name
	Env  []string // added to Environ
	Dir  string
	Log  string // file that gets stdout and stderr, appended; "" discards them
	// Enter runs start where the child shall be born, e.g. in a network namespace;
	// nil runs it as is.
	Enter func(start func() error) error
}

// passedOn are the variables that a child has from us: where programs are, what a person is
// called, and how the Go runtime behaves. Proxies, private module paths, mirrors, credentials
// and settings of clients (npm_config_*, PIP_*, AWS_*, SHOAL_* ...) are not among them: what
// is tried or measured shall not depend on who does it.
var passedOn = []string{"PATH", "HOME", "TMPDIR", "USER", "LOGNAME", "LANG", "JAVA_HOME", "GOCOVERDIR", "GODEBUG", "GOMAXPROCS", "GORACE", "GOTRACEBACK"}

// Environ is the environment of a child, with more variables (NAME=value), the last of a
// name counts.
func Environ(more ...string) []string {
	env := make([]string, 0, len(passedOn)+len(more))
	for _, name := range passedOn {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return append(env, more...)
}

// Process is a started child. Its methods may be called from several goroutines.
type Process struct {
	spec Spec
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	err error // how the child ended; read after done
}

// Start starts the child and returns at once.
func Start(spec Spec) (*Process, error) {
	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Dir = spec.Dir
	cmd.Env = Environ(spec.Env...)
	// Its own group, so that a terminal's interrupt reaches us first; its death with ours.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if spec.Log != "" {
		log, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", spec.Name, err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	enter := spec.Enter
	if enter == nil {
		enter = func(start func() error) error { return start() }
	}
	started := make(chan error, 1)
	p := &Process{spec: spec, cmd: cmd, done: make(chan struct{})}
	go func() {
		// The death signal follows the thread that forked, so that thread stays ours until the end.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := enter(cmd.Start); err != nil {
			started <- err
			return
		}
		started <- nil
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	return p, nil
}

// Name returns the name for messages.
func (p *Process) Name() string { return p.spec.Name }

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended: nil while it runs and after exit code 0.
func (p *Process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Kill ends the process at once (SIGKILL) and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks the process to end (SIGTERM) and waits; after grace it is killed, which
// is an error, as is an exit code other than 0.
func (p *Process) Stop(grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.spec.Name, err)
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		if err := p.Err(); err != nil {
			return fmt.Errorf("stop %s: %w", p.spec.Name, err)
		}
		return nil
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("stop %s: still there %v after SIGTERM, killed", p.spec.Name, grace)
	}
}

// LogTail returns at most n bytes from the end of the process's log, for messages.
func (p *Process) LogTail(n int64) string {
	f, err := os.Open(p.spec.Log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-n), io.SeekStart)
	}
	tail, _ := io.ReadAll(f)
	return string(tail)
}

// Memory is the resident set of a process in bytes.
type Memory struct {
	Now  int64 // VmRSS
	Peak int64 // VmHWM, the most it ever was
}

// Memory reads /proc/PID/status.
func (p *Process) Memory() (Memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return Memory{}, fmt.Errorf("memory of %s: %w", p.spec.Name, err)
	}
	return parseMemory(string(text))
}

func parseMemory(status string) (Memory, error) {
	var m Memory
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		var into *int64
		switch key {
		case "VmRSS":
			into = &m.Now
		case "VmHWM":
			into = &m.Peak
		default:
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return m, fmt.Errorf("%s: %w", key, err)
		}
		*into = kib << 10
	}
	if m.Now == 0 || m.Peak == 0 {
		return m, errors.New("no VmRSS and VmHWM in status")
	}
	return m, nil
}

// CPU returns the processor time that the process has used, user and system.
func (p *Process) CPU() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return 0, fmt.Errorf("cpu of %s: %w", p.spec.Name, err)
	}
	return parseCPU(string(text))
}

// parseCPU reads utime and stime, fields 14 and 15 of proc_pid_stat(5), in ticks of
// 1/100 s; the second field is a name in brackets that may hold spaces.
func parseCPU(stat string) (time.Duration, error) {
	end := strings.LastIndex(stat, ") ")
	if end < 0 {
		return 0, fmt.Errorf("stat %q names no process", stat)
	}
	fields := strings.Fields(stat[end+2:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("stat %q is short", stat)
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}

// Await asks check again and again until it returns nil.
//
// It gives up with check's last error when ctx ends, or when one of the processes
// ends first; the error then carries the end of that process's log.
func Await(ctx context.Context, what string, check func(context.Context) error, alive ...*Process) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	var last error // of a check that was not cut short
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("await %s: %w (last: %w)", what, context.Cause(ctx), last)
		case <-ticker.C:
		}
		for _, p := range alive {
			select {
			case <-p.Done():
				return fmt.Errorf("await %s: %s ended (%v): %s", what, p.Name(), p.Err(), p.LogTail(4096))
			default:
			}
		}
	}
}
