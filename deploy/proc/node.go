package proc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Endpoint is a node as dev.json lists it.
type Endpoint struct {
	Region  string `json:"region"`
	Gateway string `json:"gateway"` // host:port or URL of the gateway
	Ops     string `json:"ops"`     // the same of the private listener
}

// DevFile is DIR/dev.json, which `shoal dev` writes when it is ready.
type DevFile struct {
	Servers    []Endpoint `json:"servers"`
	Agents     []Endpoint `json:"agents"`
	AdminToken string     `json:"admin_token"`
}

// All returns the servers, then the agents.
func (d DevFile) All() []Endpoint { return append(append([]Endpoint(nil), d.Servers...), d.Agents...) }

// Address strips a scheme, so that host:port is left for clients that want it bare.
func Address(gateway string) string {
	gateway = strings.TrimPrefix(strings.TrimPrefix(gateway, "http://"), "https://")
	return strings.TrimSuffix(gateway, "/")
}

// LoopbackHost returns an address of 127.0.0.0/8 that nobody else uses by the odds
// (1 in 16 million), so that processes can have well-known ports without a search
// for free ones.
func LoopbackHost() string {
	return fmt.Sprintf("127.%d.%d.%d", 64+rand.IntN(128), rand.IntN(256), 2+rand.IntN(250))
}

// Ports of a node that has an address to itself: the defaults of the command line.
const (
	GatewayPort = "5000"
	SwarmPort   = "7070"
	RaftPort    = "7071"
	OpsPort     = "7072"
)

// Node says how to start one `shoal server` or `shoal agent` that has the address
// Host to itself.
type Node struct {
	Role   string // server or agent
	Region string // of a server; an agent's is in its token
	Zone   string
	Rack   string
	Data   string
	Host   string // the address others reach it by
	// Everywhere lets the gateway and the private listener be on all addresses of the
	// machine or namespace, so that loopback clients are served too.
	Everywhere bool
	Bootstrap  bool
	Join       string // https://host:port
	Token      string
	Extra      []string // further flags
}

// Args returns the command line of the node, as design.md section 6 has it.
func (n Node) Args() []string {
	local := n.Host
	if n.Everywhere {
		local = "0.0.0.0"
	}
	args := []string{
		n.Role, "--data", n.Data,
		"--gateway", net.JoinHostPort(local, GatewayPort),
		"--swarm", net.JoinHostPort(n.Host, SwarmPort),
		"--ops", net.JoinHostPort(local, OpsPort),
		"--advertise", n.Host,
	}
	if n.Role == "server" {
		args = append(args, "--region", n.Region, "--raft", net.JoinHostPort(n.Host, RaftPort), "--raft-profile", "site")
	}
	if n.Zone != "" {
		args = append(args, "--zone", n.Zone)
	}
	if n.Rack != "" {
		args = append(args, "--rack", n.Rack)
	}
	if n.Bootstrap {
		args = append(args, "--bootstrap")
	}
	if n.Join != "" {
		args = append(args, "--join", n.Join, "--token", n.Token)
	}
	return append(args, n.Extra...)
}

// AdminToken reads the credential that --bootstrap and dev leave in a data directory.
func AdminToken(data string) (string, error) {
	text, err := os.ReadFile(filepath.Join(data, "admin.token"))
	return strings.TrimSpace(string(text)), err
}

// ReadDevFile reads dev.json of a data directory; it fails while the file is not there.
func ReadDevFile(data string) (DevFile, error) {
	var d DevFile
	text, err := os.ReadFile(filepath.Join(data, "dev.json"))
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal(text, &d); err != nil {
		return d, fmt.Errorf("dev.json: %w", err)
	}
	return d, nil
}

// Ready is nil when the node behind the ops address answers /readyz with 200.
func Ready(ctx context.Context, client *http.Client, ops string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+Address(ops)+"/readyz", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 1024))
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz of %s: %s: %s", ops, response.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// Run runs a command line of the binary to its end and returns its standard output.
//
// env is added to Environ, enter is as in Spec. The error carries what it wrote to standard error.
func Run(ctx context.Context, enter func(func() error) error, path string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = Environ(env...)
	cmd.WaitDelay = 5 * time.Second
	var out, problem strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &problem
	var err error
	if enter == nil {
		err = cmd.Start()
	} else {
		err = enter(cmd.Start)
	}
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s%s", filepath.Base(path), strings.Join(args, " "), err, out.String(), problem.String())
	}
	return out.String(), nil
}

// Binary returns the shoal binary to test: what SHOAL_BIN names, else one built from
// this source tree into dir.
func Binary(ctx context.Context, dir string) (string, error) {
	if path := os.Getenv("SHOAL_BIN"); path != "" {
		return filepath.Abs(path)
	}
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "shoal")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/shoal")
	cmd.Dir = root
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build shoal: %w: %s", err, output)
	}
	return path, nil
}

// ModuleRoot returns the folder of go.mod above the working directory, past nested modules.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "cmd", "shoal")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no module of shoal above the working directory")
		}
		dir = parent
	}
}
