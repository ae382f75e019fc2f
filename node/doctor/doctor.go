// Package doctor finds what is wrong with a node from the outside: named checks,
// each with a finding and what to do about it.
//
// Start at Local, which looks at this machine and a data directory without
// needing the node to run, and at Ready, which asks a running node's ops
// listener. Checks only read. The package starts no goroutines.
package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Level is how bad a finding is.
type Level string

// Levels: OK, Warn for what will hurt later, Fail for what does not work.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is what a check saw.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
	// Advice says what to do; empty when all is well.
	Advice string `json:"advice,omitempty"`
}

// Check is one named look.
type Check struct {
	Name string
	Run  func(context.Context) Finding
}

// Run runs the checks in order, each for at most 10 s.
func Run(ctx context.Context, checks []Check) []Finding {
	findings := make([]Finding, 0, len(checks))
	for _, c := range checks {
		checkCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
		f := c.Run(checkCtx)
		cancel()
		f.Check = c.Name
		findings = append(findings, f)
	}
	return findings
}

// Worst returns the worst level among findings.
func Worst(findings []Finding) Level {
	worst := OK
	for _, f := range findings {
		if f.Level == Fail || f.Level == Warn && worst == OK {
			worst = f.Level
		}
	}
	return worst
}

func ok(format string, args ...any) Finding {
	return Finding{Level: OK, Detail: fmt.Sprintf(format, args...)}
}

func bad(level Level, advice, format string, args ...any) Finding {
	return Finding{Level: level, Detail: fmt.Sprintf(format, args...), Advice: advice}
}

// Local looks at this machine and at the data directory dir.
func Local(dir string) []Check {
	return []Check{
		{"data directory", func(context.Context) Finding { return dataDirectory(dir) }},
		{"membership", func(context.Context) Finding { return membership(dir) }},
		{"free space", func(context.Context) Finding { return freeSpace(dir) }},
		{"open files", func(context.Context) Finding { return openFiles() }},
		{"loopback", func(context.Context) Finding { return loopback() }},
	}
}

func dataDirectory(dir string) Finding {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return bad(Warn, "it is made at the first start; check the path if this node ran before", "%s does not exist", dir)
	case err != nil:
		return bad(Fail, "let the user that runs shoal read it", "%v", err)
	case !info.IsDir():
		return bad(Fail, "give a directory with --data", "%s is no directory", dir)
	case info.Mode().Perm()&0o077 != 0:
		return bad(Warn, "chmod 700 "+dir, "%s is open to other users (%v): it holds keys", dir, info.Mode().Perm())
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return bad(Fail, "run shoal as the owner of the directory", "%s cannot be written: %v", dir, err)
	}
	return ok("%s is there and writable", dir)
}

func freeSpace(dir string) Finding {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return bad(Warn, "", "cannot tell: %v", err)
	}
	free, total := s.Bavail*uint64(s.Bsize), s.Blocks*uint64(s.Bsize)
	text := fmt.Sprintf("%.1f of %.1f GiB free, %d inodes free", gib(free), gib(total), s.Ffree)
	switch {
	case free < 512<<20:
		return bad(Fail, "free some space: uploads are refused", "%s", text)
	case free < total/20:
		return bad(Warn, "free some space soon", "%s", text)
	case s.Files > 0 && s.Ffree < s.Files/50:
		return bad(Warn, "the filesystem runs out of inodes", "%s", text)
	}
	return ok("%s", text)
}

func gib(b uint64) float64 { return float64(b) / (1 << 30) }

// wantedFiles leaves room for thousands of peers and clients.
const wantedFiles = 16384

func openFiles() Finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return bad(Warn, "", "cannot tell: %v", err)
	}
	if limit.Max < wantedFiles {
		return bad(Warn, fmt.Sprintf("raise it: ulimit -n %d, or LimitNOFILE= of the unit", wantedFiles),
			"this user may open %d files", limit.Max)
	}
	return ok("up to %d", limit.Max)
}

func loopback() Finding {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return bad(Fail, "bring the loopback interface up", "cannot listen on it: %v", err)
	}
	l.Close()
	return ok("can be listened on")
}

// Ready asks a running node's ops listener, at host:port, for its own named
// checks and returns each as a finding.
func Ready(ctx context.Context, client *http.Client, ops string) []Finding {
	const name = "node"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/readyz?verbose", nil)
	if err != nil {
		f := bad(Fail, "write --ops HOST:PORT", "%v", err)
		f.Check = name
		return []Finding{f}
	}
	res, err := client.Do(req)
	if err != nil {
		f := bad(Fail, "start it, or say where its ops listener is with --ops", "nothing answers at %s: %v", ops, err)
		f.Check = name
		return []Finding{f}
	}
	defer res.Body.Close()
	var answer struct {
		Ready  bool `json:"ready"`
		Checks []struct {
			Name   string `json:"name"`
			OK     bool   `json:"ok"`
			Detail string `json:"detail"`
		} `json:"checks"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer); err != nil {
		f := bad(Fail, "check that it is shoal's ops listener", "%s answered %s with %v", ops, res.Status, err)
		f.Check = name
		return []Finding{f}
	}
	findings := make([]Finding, 0, len(answer.Checks))
	for _, c := range answer.Checks {
		f := Finding{Check: name + ": " + c.Name, Level: OK, Detail: c.Detail}
		if !c.OK {
			f.Level, f.Advice = Fail, "look at the node's log"
		}
		findings = append(findings, f)
	}
	return findings
}
