package main

import (
	"cmp"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/config"
	"github.com/shoal-registry/shoal/node/local"
	"github.com/shoal-registry/shoal/verify/trust"
)

// requestTimeout bounds one request of a client verb.
const requestTimeout = 30 * time.Second

// target is where a client verb finds its server and its credential:
// --server or SHOAL_SERVER, --auth or SHOAL_TOKEN, else the file of `shoal
// login`, else what `shoal dev` or a server with --bootstrap left in --data.
type target struct {
	server, auth, data, trust string
}

func (t *target) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&t.server, "server", "", "URL of a gateway (SHOAL_SERVER)")
	f.StringVar(&t.auth, "auth", "", "token (SHOAL_TOKEN)")
	f.StringVar(&t.data, "data", "", "data directory whose admin.token and dev.json to use (default: dev's)")
	f.StringVar(&t.trust, "trust", "", "sha256 of the cluster's root certificate, from `shoal trust show`")
}

// login is what `shoal login` keeps.
type login struct {
	Server string `json:"server"`
	Token  string `json:"token"`
	// Trust is the hex sha256 of the cluster's root certificate, "" for the
	// system's roots.
	Trust string `json:"trust,omitempty"`
}

func loginFile() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "shoal", "login.json"), nil
}

func readLogin() (l login, err error) {
	name, err := loginFile()
	if err != nil {
		return l, err
	}
	err = readJSON(name, &l)
	if errors.Is(err, fs.ErrNotExist) {
		return login{}, nil
	}
	return l, err
}

func readJSON(name string, v any) error {
	raw, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// dataDir returns --data, or where dev keeps things.
func (t *target) dataDir() (string, error) {
	if t.data != "" {
		return t.data, nil
	}
	home, err := dataHome()
	return filepath.Join(home, "dev"), err
}

func readDescription(dir string) (d local.Description, err error) {
	return d, readJSON(filepath.Join(dir, "dev.json"), &d)
}

// resolve fills in what flags and environment leave open.
func (t *target) resolve() (login, error) {
	l := login{Server: cmp.Or(t.server, os.Getenv("SHOAL_SERVER")), Token: cmp.Or(t.auth, os.Getenv("SHOAL_TOKEN")), Trust: t.trust}
	kept, err := readLogin()
	if err != nil {
		return login{}, err
	}
	if kept.Server != "" && (l.Server == "" || l.Server == kept.Server) && t.data == "" {
		l.Server, l.Token, l.Trust = kept.Server, cmp.Or(l.Token, kept.Token), cmp.Or(l.Trust, kept.Trust)
	}
	dir, err := t.dataDir()
	if err != nil {
		return login{}, err
	}
	if l.Server == "" {
		if d, err := readDescription(dir); err == nil {
			l.Server = "http://" + d.Servers[0].Gateway
		} else {
			defaults, err := config.Defaults("server")
			if err != nil {
				return login{}, err
			}
			l.Server = "http://" + defaults.Gateway
		}
	}
	if l.Token == "" {
		raw, err := os.ReadFile(filepath.Join(dir, node.AdminTokenFile))
		if err == nil {
			l.Token = strings.TrimSpace(string(raw))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return login{}, err
		}
	}
	if !strings.Contains(l.Server, "://") {
		l.Server = "https://" + l.Server
	}
	u, err := url.Parse(l.Server)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return login{}, fmt.Errorf("server %q: write http://HOST:PORT or https://HOST:PORT", l.Server)
	}
	return l, nil
}

// client returns a client of the admin API of the target.
func (t *target) client() (*client.Client, error) {
	l, err := t.resolve()
	if err != nil {
		return nil, err
	}
	return l.client()
}

func (l login) client() (*client.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if l.Trust != "" {
		hash, err := hex.DecodeString(strings.TrimPrefix(l.Trust, "sha256:"))
		if err != nil || len(hash) != 32 {
			return nil, fmt.Errorf("trust %q: write the 64 hex digits that `shoal trust show` prints", l.Trust)
		}
		transport.TLSClientConfig = trust.JoinTLS([32]byte(hash))
	}
	return &client.Client{Base: l.Server, Token: l.Token, HTTP: &http.Client{Transport: explained{transport}, Timeout: requestTimeout}}, nil
}

// explained says what to do about a gateway that does not answer and a
// certificate that is not trusted.
type explained struct{ next http.RoundTripper }

func (e explained) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := e.next.RoundTrip(r)
	var unknown *tls.CertificateVerificationError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w: start the node, or say which gateway with --server URL", err)
	case errors.As(err, &unknown):
		return nil, fmt.Errorf("%w: give the cluster's root with --trust, from `shoal trust show` on a server", err)
	}
	return res, err
}
