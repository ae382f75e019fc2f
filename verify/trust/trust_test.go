package trust

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// party is a node with its credential in a cluster.
type party struct {
	key  *Key
	node meta.Node
	cred *Credential
}

func enlist(t *testing.T, a *Authority, role meta.Role, now time.Time, hosts ...string) party {
	t.Helper()
	key := must(NewKey())
	node := meta.Node{ID: key.ID(), Role: role, Region: "eu"}
	chain, err := a.Issue(node, hosts, now)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := NewCredential(key, a.Root(), chain)
	if err != nil {
		t.Fatal(err)
	}
	return party{key, node, cred}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.key")
	ids := make([]meta.NodeID, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() { ids[i] = must(LoadOrCreateKey(path)).ID() })
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("two keys: %s, %s", id, ids[0])
		}
	}
	info := must(os.Stat(path))
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if left := must(os.ReadDir(filepath.Dir(path))); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}

	good := must(os.ReadFile(path))
	ecdsaKey := must(x509.MarshalPKCS8PrivateKey(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))))
	for name, test := range map[string]struct {
		content []byte
		mode    os.FileMode
		kind    error
	}{
		"empty":             {nil, 0o600, meta.ErrCorrupt},
		"cut off":           {good[:len(good)/2], 0o600, meta.ErrCorrupt},
		"two keys":          {append(bytes.Clone(good), good...), 0o600, meta.ErrCorrupt},
		"another algorithm": {pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: ecdsaKey}), 0o600, meta.ErrCorrupt},
		"rubbish inside":    {pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: []byte("x")}), 0o600, meta.ErrCorrupt},
		"readable by all":   {good, 0o644, meta.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "node.key")
			if err := os.WriteFile(path, test.content, test.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadOrCreateKey(path); !errors.Is(err, test.kind) {
				t.Errorf("got %v", err)
			}
			if after := must(os.ReadFile(path)); !bytes.Equal(after, test.content) {
				t.Error("the file was changed")
			}
		})
	}
	if _, err := LoadOrCreateKey(filepath.Join(t.TempDir(), "none", "node.key")); err == nil {
		t.Error("made a key in a folder that does not exist")
	}
}

func TestNodeIDs(t *testing.T) {
	key := must(NewKey())
	if got := must(PublicKeyOf(key.ID())); !got.Equal(key.Public()) {
		t.Error("the id does not give its key back")
	}
	if got := must(PeerID(key.ID())); got != must(peer.IDFromPrivateKey(key.Libp2p())) {
		t.Errorf("peer id %s", got)
	}
	if got := must(ParseRecipient(key.Recipient() + " a comment\n")); !got.Equal(key.Public()) {
		t.Error("the recipient is another key")
	}
	rsa := "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N" // a hashed key: nothing to check with
	asCID := peer.ToCid(must(PeerID(key.ID()))).String()
	for _, bad := range []meta.NodeID{"", "x", meta.NodeID(rsa), meta.NodeID(asCID), key.ID() + "1", key.ID()[:20], " " + key.ID()} {
		if _, err := PublicKeyOf(bad); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "ssh-rsa AAAA", "ssh-ed25519 AAAA", key.Recipient() + "\n" + key.Recipient()} {
		if _, err := ParseRecipient(bad); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("recipient %q: %v", bad, err)
		}
	}
}

func TestVerify(t *testing.T) {
	now := time.Now()
	a, b := must(NewAuthority("prod", now)), must(NewAuthority("prod", now))
	other := must(NewAuthority("other", now))
	node := enlist(t, a, meta.RoleServer, now, "registry.example.org", "192.0.2.1")
	id, err := a.Root().Verify(node.cred.Chain(), now)
	if err != nil {
		t.Fatal(err)
	}
	want := "shoal://prod/server/eu/" + string(node.node.ID)
	if id.String() != want || id.ID != node.node.ID || !id.NotAfter.Equal(now.Add(CertificateLife).Truncate(time.Second).UTC()) {
		t.Errorf("identity %+v", id)
	}
	reloaded := must(LoadAuthority(a.Root().DER(), must(a.KeyDER())))
	if got := must(reloaded.Root().Verify(must(reloaded.Issue(node.node, nil, now)), now)); got.ID != node.node.ID {
		t.Errorf("after a reload: %+v", got)
	}
	if _, err := LoadAuthority(a.Root().DER(), must(b.KeyDER())); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("a root with another's key: %v", err)
	}

	// forge signs a leaf with a's key that Issue would not make.
	forge := func(change func(*x509.Certificate), public any) [][]byte {
		leaf := must(x509.ParseCertificate(node.cred.Chain()[0]))
		leaf.SerialNumber = big.NewInt(7)
		change(leaf)
		return [][]byte{must(x509.CreateCertificate(rand.Reader, leaf, a.root.certificate, public, a.key))}
	}
	keyOfAnother := must(NewKey()).Public()
	flipped := bytes.Clone(node.cred.Chain()[0])
	flipped[len(flipped)-1] ^= 1
	for name, test := range map[string]struct {
		chain [][]byte
		now   time.Time
		bad   bool
	}{
		"good":                  {node.cred.Chain(), now, false},
		"leaf alone":            {node.cred.Chain()[:1], now, false},
		"clock behind":          {node.cred.Chain(), now.Add(-ClockSkew + time.Second), false},
		"clock too behind":      {node.cred.Chain(), now.Add(-ClockSkew - 2*time.Second), true},
		"expired":               {node.cred.Chain(), now.Add(CertificateLife + 2*time.Second), true},
		"nothing":               {nil, now, true},
		"rubbish":               {[][]byte{[]byte("x")}, now, true},
		"too long":              {make([][]byte, maxChain+1), now, true},
		"oversized":             {[][]byte{make([]byte, maxCertificateBytes+1)}, now, true},
		"flipped bit":           {[][]byte{flipped}, now, true},
		"same name, wrong root": {enlist(t, b, meta.RoleServer, now).cred.Chain(), now, true},
		"other cluster":         {enlist(t, other, meta.RoleServer, now).cred.Chain(), now, true},
		"the root itself":       {[][]byte{a.Root().DER()}, now, true},
		"key of another":        {forge(func(*x509.Certificate) {}, keyOfAnother), now, true},
		"no name":               {forge(func(c *x509.Certificate) { c.URIs = nil }, node.key.Public()), now, true},
		"a CA":                  {forge(func(c *x509.Certificate) { c.IsCA = true }, node.key.Public()), now, true},
		"servers' use only": {forge(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, node.key.Public()), now, true},
		"other scheme":  {forge(func(c *x509.Certificate) { c.URIs[0].Scheme = "spiffe" }, node.key.Public()), now, true},
		"other role":    {forge(func(c *x509.Certificate) { c.URIs[0].Path = "/admin/eu/" + string(node.node.ID) }, node.key.Public()), now, true},
		"extra path":    {forge(func(c *x509.Certificate) { c.URIs[0].Path += "/x" }, node.key.Public()), now, true},
		"cluster claim": {forge(func(c *x509.Certificate) { c.URIs[0].Host = "other" }, node.key.Public()), now, true},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.Root().Verify(test.chain, test.now)
			if test.bad && !errors.Is(err, meta.ErrDenied) || !test.bad && err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestIssue(t *testing.T) {
	now := time.Now()
	a := must(NewAuthority("prod", now))
	names := func(p party) string {
		c := must(x509.ParseCertificate(p.cred.Chain()[0]))
		return fmt.Sprint(c.DNSNames, c.IPAddresses)
	}
	server := enlist(t, a, meta.RoleServer, now, "Registry.Example.org.", "[2001:db8::1]", "0.0.0.0", "localhost", "192.0.2.1")
	if got := names(server); got != "[localhost registry.example.org] [127.0.0.1 ::1 2001:db8::1 192.0.2.1]" {
		t.Errorf("a server's certificate is for %s", got)
	}
	agent := enlist(t, a, meta.RoleAgent, now, "registry.example.org", "192.0.2.1")
	if got := names(agent); got != "[localhost] [127.0.0.1 ::1]" {
		t.Errorf("an agent's certificate is for %s", got)
	}
	id := server.node.ID
	for name, test := range map[string]struct {
		node  meta.Node
		hosts []string
	}{
		"no id":     {meta.Node{Role: meta.RoleServer, Region: "eu"}, nil},
		"no role":   {meta.Node{ID: id, Region: "eu"}, nil},
		"no region": {meta.Node{ID: id, Role: meta.RoleServer}, nil},
		"wildcard":  {meta.Node{ID: id, Role: meta.RoleServer, Region: "eu"}, []string{"*.example.org"}},
		"a port":    {meta.Node{ID: id, Role: meta.RoleServer, Region: "eu"}, []string{"example.org:5000"}},
		"a URL":     {meta.Node{ID: id, Role: meta.RoleServer, Region: "eu"}, []string{"https://example.org"}},
		"empty":     {meta.Node{ID: id, Role: meta.RoleServer, Region: "eu"}, []string{""}},
		"too many":  {meta.Node{ID: id, Role: meta.RoleServer, Region: "eu"}, make([]string, MaxHosts+1)},
	} {
		if _, err := a.Issue(test.node, test.hosts, now); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	end := a.Root().NotAfter()
	late := must(a.Root().Verify(must(a.Issue(server.node, nil, end.Add(-time.Hour))), end.Add(-time.Minute)))
	if late.NotAfter.After(end) {
		t.Error("a certificate outlives its root")
	}
	for _, bad := range []string{"", "Prod", "a/b", strings.Repeat("a", 64), "eu_1"} {
		if _, err := NewAuthority(bad, now); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("cluster %q: %v", bad, err)
		}
	}
	if _, err := ParseRoot(server.cred.Chain()[0]); !errors.Is(err, meta.ErrCorrupt) {
		t.Errorf("a leaf as a root: %v", err)
	}
	if _, err := NewCredential(agent.key, a.Root(), server.cred.Chain()); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("another's certificate: %v", err)
	}
}

// serve answers with who the client proved to be.
func serve(t *testing.T, root *Root, config *tls.Config) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok, err := PeerOf(root, r.TLS)
		fmt.Fprintf(w, "%s %v %v", id.ID, ok, err)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.TLS = config
	s.StartTLS()
	// httptest adds a certificate of its own that GetCertificate must win over.
	s.TLS.Certificates = nil
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func get(t *testing.T, addr string, config *tls.Config) (string, *tls.ConnectionState, error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Get("https://" + addr)
	if err != nil {
		return "", nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return string(body), res.TLS, err
}

func TestTLS(t *testing.T) {
	now := time.Now()
	longAgo := now.Add(-365 * 24 * time.Hour)
	a, b := must(NewAuthority("prod", longAgo)), must(NewAuthority("prod", longAgo))
	server := enlist(t, a, meta.RoleServer, now, "registry.example.org")
	agent := enlist(t, a, meta.RoleAgent, now)
	addr := serve(t, a.Root(), ServerTLS(server.cred))

	t.Run("node", func(t *testing.T) {
		body, state, err := get(t, addr, ClientTLS(agent.cred))
		if err != nil || body != string(agent.key.ID())+" true <nil>" || state.Version != tls.VersionTLS13 {
			t.Errorf("%q, %v", body, err)
		}
	})
	t.Run("foreign client", func(t *testing.T) {
		body, _, err := get(t, addr, &tls.Config{RootCAs: a.root.pool, ServerName: "registry.example.org", MaxVersion: tls.VersionTLS12})
		if err != nil || body != " false <nil>" {
			t.Errorf("%q, %v", body, err)
		}
	})
	t.Run("by address", func(t *testing.T) {
		if body, _, err := get(t, addr, &tls.Config{RootCAs: a.root.pool}); err != nil || body != " false <nil>" {
			t.Errorf("%q, %v", body, err)
		}
	})
	t.Run("renewed without restart", func(t *testing.T) {
		if err := server.cred.Set(must(a.Issue(server.node, []string{"new.example.org"}, now))); err != nil {
			t.Fatal(err)
		}
		if _, _, err := get(t, addr, &tls.Config{RootCAs: a.root.pool, ServerName: "new.example.org"}); err != nil {
			t.Error(err)
		}
	})
	expired := enlist(t, a, meta.RoleAgent, now.Add(-CertificateLife-time.Hour))
	if !expired.cred.Expired(now) || agent.cred.Expired(now) {
		t.Error("expiry is not told")
	}
	refused := map[string]*tls.Config{
		"wrong root":           ClientTLS(enlist(t, b, meta.RoleAgent, now).cred),
		"expired client":       ClientTLS(expired.cred),
		"public roots":         {ServerName: "registry.example.org"},
		"TLS 1.1":              {RootCAs: a.root.pool, MinVersion: tls.VersionTLS11, MaxVersion: tls.VersionTLS11},
		"node over TLS 1.2":    downgraded(ClientTLS(agent.cred)),
		"client of other root": foreignCert(ClientTLS(agent.cred), enlist(t, b, meta.RoleAgent, now).cred),
	}
	for name, config := range refused {
		t.Run(name, func(t *testing.T) {
			if body, _, err := get(t, addr, config); err == nil {
				t.Errorf("got %q", body)
			}
		})
	}
	for name, addr := range map[string]string{
		"an agent as server":    serve(t, a.Root(), ServerTLS(agent.cred)),
		"expired server":        serve(t, a.Root(), ServerTLS(enlist(t, a, meta.RoleServer, now.Add(-CertificateLife-time.Hour)).cred)),
		"server of other root":  serve(t, a.Root(), ServerTLS(enlist(t, b, meta.RoleServer, now).cred)),
		"server without chains": plainTLS(t),
	} {
		t.Run(name, func(t *testing.T) {
			if body, _, err := get(t, addr, ClientTLS(agent.cred)); err == nil {
				t.Errorf("got %q", body)
			}
		})
	}
}

func downgraded(c *tls.Config) *tls.Config {
	c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	return c
}

// foreignCert sends another's certificate, whoever the server asks for.
func foreignCert(c *tls.Config, other *Credential) *tls.Config {
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &other.current.Load().nodes.tls, nil
	}
	return c
}

func plainTLS(t *testing.T) string {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestSelfSignedInterposer is a man in the middle that shows the true root in
// its chain, without being certified by it.
func TestSelfSignedInterposer(t *testing.T) {
	now := time.Now()
	a := must(NewAuthority("prod", now))
	evil := must(NewAuthority("prod", now))
	mitm := enlist(t, evil, meta.RoleServer, now)
	cert := mitm.cred.current.Load().clients.tls
	cert.Certificate = [][]byte{cert.Certificate[0], a.Root().DER()}
	addr := serve(t, a.Root(), &tls.Config{Certificates: []tls.Certificate{cert}, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }})
	if _, _, err := get(t, addr, JoinTLS(a.Root().Hash())); err == nil {
		t.Fatal("joined through an interposer")
	}
}

func TestJoinTLS(t *testing.T) {
	now := time.Now()
	a, b := must(NewAuthority("prod", now)), must(NewAuthority("prod", now))
	token := must(ParseJoinToken(NewJoinToken(a.Root()).Text()))
	_, state, err := get(t, serve(t, a.Root(), ServerTLS(enlist(t, a, meta.RoleServer, now).cred)), JoinTLS(token.RootHash))
	if err != nil {
		t.Fatal(err)
	}
	root, err := RootOf(token.RootHash, state)
	if err != nil || root.Hash() != a.Root().Hash() || root.Cluster() != "prod" {
		t.Errorf("pinned %v, %v", root, err)
	}
	if _, err := RootOf(b.Root().Hash(), state); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("another root: %v", err)
	}
	if _, err := RootOf(token.RootHash, nil); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("no TLS: %v", err)
	}
	for name, addr := range map[string]string{
		"other cluster": serve(t, b.Root(), ServerTLS(enlist(t, b, meta.RoleServer, now).cred)),
		"an agent":      serve(t, a.Root(), ServerTLS(enlist(t, a, meta.RoleAgent, now).cred)),
	} {
		if _, _, err := get(t, addr, JoinTLS(token.RootHash)); err == nil {
			t.Errorf("%s: joined", name)
		}
	}
	if _, ok, err := PeerOf(a.Root(), nil); ok || err != nil {
		t.Errorf("a plain connection is %v, %v", ok, err)
	}
}

func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		a := must(NewAuthority("prod", begin))
		p := enlist(t, a, meta.RoleAgent, begin)
		ctx, cancel := context.WithCancel(t.Context())
		var renewed []time.Duration
		fail, failures := 3, 0
		done := make(chan error)
		go func() {
			done <- p.cred.Run(ctx, func(ctx context.Context) (Papers, error) {
				if _, ok := ctx.Deadline(); !ok {
					t.Error("no deadline")
				}
				if fail > 0 {
					fail--
					return Papers{}, meta.ErrUnavailable
				}
				renewed = append(renewed, time.Since(begin).Round(time.Minute))
				chain, err := a.Issue(p.node, nil, time.Now())
				return Papers{Root: a.Root().DER(), Chain: chain}, err
			}, nil, func(err error) {
				failures++
				if !errors.Is(err, meta.ErrUnavailable) {
					t.Errorf("failure %v", err)
				}
			})
		}()
		time.Sleep(73 * time.Hour)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ended with %v", err)
		}
		if fmt.Sprint(renewed) != "[24h0m0s 48h0m0s 72h0m0s]" || failures != 3 {
			t.Errorf("renewed after %v, %d failures", renewed, failures)
		}
		if p.cred.Expired(time.Now().Add(6 * 24 * time.Hour)) {
			t.Error("the renewed certificate is not in use")
		}
	})
}

func TestPossession(t *testing.T) {
	now := time.Now()
	a, b := must(NewAuthority("prod", now)), must(NewAuthority("prod", now))
	key, other := must(NewKey()), must(NewKey())
	request := []byte("let me in")
	proof := key.ProvePossession(a.Root().Hash(), request)
	if err := CheckPossession(key.ID(), a.Root().Hash(), request, proof); err != nil {
		t.Fatal(err)
	}
	grant := must(key.SignGrant("prod", Grant{Peer: key.ID(), Root: digest.Sum(nil), Expires: meta.TimeOf(now)}))
	for name, err := range map[string]error{
		"another node":    CheckPossession(other.ID(), a.Root().Hash(), request, proof),
		"another cluster": CheckPossession(key.ID(), b.Root().Hash(), request, proof),
		"another request": CheckPossession(key.ID(), a.Root().Hash(), []byte("let us in"), proof),
		"no proof":        CheckPossession(key.ID(), a.Root().Hash(), request, nil),
		"another purpose": CheckPossession(key.ID(), a.Root().Hash(), request, grant[len(grant)-64:]),
		"cut off":         CheckPossession(key.ID(), a.Root().Hash(), request, proof[:40]),
	} {
		if !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := CheckPossession("nobody", a.Root().Hash(), request, proof); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("no id: %v", err)
	}
}

func TestJoinToken(t *testing.T) {
	root := must(NewAuthority("prod", time.Now())).Root()
	token := NewJoinToken(root)
	text := token.Text()
	if got, err := ParseJoinToken("  " + text + "\n"); err != nil || got != token {
		t.Fatalf("%+v, %v", got, err)
	}
	if len(token.SecretHash()) != 64 || token.SecretHash() != SecretHash(token.Secret) || NewJoinToken(root).SecretHash() == token.SecretHash() {
		t.Errorf("id %s", token.SecretHash())
	}
	if strings.Contains(fmt.Sprintf("%v %+v %s", token, token, token), token.Secret.Reveal()) {
		t.Error("a token prints its secret")
	}
	parts := strings.Split(text, ".")
	for name, bad := range map[string]string{
		"empty":           "",
		"cut off":         text[:len(text)-1],
		"no root":         parts[0] + "." + parts[1],
		"no secret":       parts[0] + ".." + parts[2],
		"other version":   "shoal2." + parts[1] + "." + parts[2],
		"too long":        text + "A",
		"padded":          text + "=",
		"other alphabet":  parts[0] + "." + strings.Repeat("+", 43) + "." + parts[2],
		"four parts":      text + ".x",
		"stray low bits":  parts[0] + "." + parts[1][:42] + "_" + "." + parts[2],
		"space inside":    parts[0] + ". " + parts[1] + "." + parts[2],
		"short secret":    parts[0] + ".AAAA." + parts[2],
		"an admin token":  NewAdminToken().Reveal(),
		"newline in root": parts[0] + "." + parts[1] + "." + parts[2][:20] + "\n" + parts[2][20:],
	} {
		_, err := ParseJoinToken(bad)
		if !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), parts[1][:20]) {
			t.Errorf("%s: the error tells the secret", name)
		}
	}
}

func FuzzParseJoinToken(f *testing.F) {
	root := must(NewAuthority("prod", time.Now())).Root()
	f.Add(NewJoinToken(root).Text())
	f.Add("shoal1.x.y")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseJoinToken(text)
		if err == nil && token.Text() != strings.TrimSpace(text) {
			t.Fatalf("%q came back as %q", text, token.Text())
		}
	})
}

func TestSecretsAreHidden(t *testing.T) {
	s := NewAdminToken()
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", s, "held", struct{ T Secret }{s})
	js := must(json.Marshal(map[string]any{"a": s, "b": []Secret{s}}))
	for _, seen := range []string{
		fmt.Sprint(s), fmt.Sprintf("%s %v %q %x %#v %+v %d", s, s, s, s, s, s, s), fmt.Sprintf("%v %+v", struct{ T Secret }{s}, []Secret{s}),
		log.String(), string(js), fmt.Errorf("x %v", s).Error(),
	} {
		if strings.Contains(seen, s.Reveal()[len(adminPrefix):]) || strings.Contains(seen, fmt.Sprintf("%x", s.Reveal())) || !strings.Contains(seen, hidden) {
			t.Errorf("shows %s", seen)
		}
	}
	hash := HashToken(s)
	for given, want := range map[Secret]bool{s: true, s + "x": false, s[1:]: false, "": false, NewAdminToken(): false} {
		if CheckToken(given, hash) != want {
			t.Errorf("a token of %d bytes is taken: %v", len(given), !want)
		}
	}
	if CheckToken("", nil) || CheckToken(s, hash[:31]) {
		t.Error("a short hash fits")
	}
	if want := sha256.Sum256([]byte(s.Reveal())); !bytes.Equal(hash, want[:]) {
		t.Error("not the sha256")
	}
}

func TestSeal(t *testing.T) {
	a, b, c := must(NewKey()), must(NewKey()), must(NewKey())
	secret := []byte("the key of the root")
	sealed, err := Seal(secret, a.Public(), must(ParseRecipient(b.Recipient())))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []*Key{a, b} {
		if got, err := k.Open(sealed); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%q, %v", got, err)
		}
	}
	if bytes.Contains(sealed, secret) {
		t.Error("sealed in the clear")
	}
	for i := 0; i < len(sealed); i += 7 {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if got, err := a.Open(bad); err == nil && !bytes.Equal(got, secret) {
			t.Fatalf("byte %d changed: %q", i, got)
		}
	}
	for name, bad := range map[string][]byte{"nothing": nil, "rubbish": []byte("x"), "cut off": sealed[:len(sealed)-1], "huge": make([]byte, MaxSealedBytes+1)} {
		if _, err := a.Open(bad); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Open(sealed); !errors.Is(err, meta.ErrDenied) {
		t.Errorf("a stranger: %v", err)
	}
	for name, to := range map[string][]ed25519.PublicKey{"nobody": nil, "a short key": {a.Public()[:31]}} {
		if _, err := Seal(secret, to...); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("to %s: %v", name, err)
		}
	}
}

func TestGrants(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	server, peer, thief := must(NewKey()), must(NewKey()), must(NewKey())
	root := digest.Sum([]byte("root"))
	sign := func(k *Key, cluster string, g Grant) []byte { return must(k.SignGrant(cluster, g)) }
	grant := Grant{Peer: peer.ID(), Context: "acme", Root: root, Expires: meta.TimeOf(now.Add(GrantLife))}
	good := sign(server, "prod", grant)
	if got := must(OpenGrant("prod", good)); got.Issuer != server.ID() || got.Context != "acme" {
		t.Errorf("%+v", got)
	}
	var parts signedGrant
	if err := codec.Unmarshal(good, &parts); err != nil {
		t.Fatal(err)
	}
	resigned := func(change func(*Grant)) []byte { // keeps the signature of the true one
		var g Grant
		codec.Unmarshal(parts.Body, &g)
		change(&g)
		return codec.Encode(signedGrant{Body: codec.Encode(g), Signature: parts.Signature})
	}
	changed := func(change func(*Grant)) Grant { g := grant; change(&g); return g }
	at := func(d time.Duration) time.Time { return now.Add(d) }
	for name, test := range map[string]struct {
		grant []byte
		peer  meta.NodeID
		root  digest.CID
		now   time.Time
		grace time.Duration
		ok    bool
	}{
		"good":                                {good, peer.ID(), root, now, 0, true},
		"just before its end":                 {good, peer.ID(), root, at(GrantLife), 0, true},
		"clock ahead":                         {good, peer.ID(), root, at(GrantLife + GrantSkew), 0, true},
		"clock behind":                        {good, peer.ID(), root, at(-GrantSkew), 0, true},
		"expired":                             {good, peer.ID(), root, at(GrantLife + GrantSkew + 1), 0, false},
		"expired, no server":                  {good, peer.ID(), root, at(15 * time.Minute), 15 * time.Minute, true},
		"long expired":                        {good, peer.ID(), root, at(17 * time.Minute), 15 * time.Minute, false},
		"from the future":                     {good, peer.ID(), root, at(-GrantSkew - 1), 0, false},
		"replayed by another":                 {good, thief.ID(), root, now, 0, false},
		"for another blob":                    {good, peer.ID(), digest.Sum([]byte("other")), now, 0, false},
		"issued by an agent":                  {sign(thief, "prod", grant), peer.ID(), root, now, 0, false},
		"of another cluster":                  {sign(server, "other", grant), peer.ID(), root, now, 0, false},
		"longer than they last":               {sign(server, "prod", changed(func(g *Grant) { g.Expires = meta.TimeOf(now.Add(time.Hour)) })), peer.ID(), root, now, 0, false},
		"tampered peer":                       {resigned(func(g *Grant) { g.Peer = thief.ID() }), thief.ID(), root, now, 0, false},
		"tampered expiry":                     {resigned(func(g *Grant) { g.Expires++ }), peer.ID(), root, now, 0, false},
		"tampered issuer":                     {resigned(func(g *Grant) { g.Issuer = thief.ID() }), peer.ID(), root, now, 0, false},
		"tampered context":                    {resigned(func(g *Grant) { g.Context = "other" }), peer.ID(), root, now, 0, false},
		"no signature":                        {codec.Encode(signedGrant{Body: parts.Body}), peer.ID(), root, now, 0, false},
		"nothing":                             {nil, peer.ID(), root, now, 0, false},
		"truncated":                           {good[:len(good)-1], peer.ID(), root, now, 0, false},
		"with more behind":                    {append(bytes.Clone(good), 0), peer.ID(), root, now, 0, false},
		"oversized":                           {make([]byte, MaxGrantBytes+1), peer.ID(), root, now, 0, false},
		"grace does not outlast a wrong peer": {good, thief.ID(), root, at(5 * time.Minute), time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := Checker{Cluster: "prod", IsServer: func(id meta.NodeID) bool { return id == server.ID() }}
			if test.grace > 0 {
				c.Grace = func() time.Duration { return test.grace }
			}
			err := c.Check(test.grant, test.peer, test.root, test.now)
			if test.ok && err != nil || !test.ok && !errors.Is(err, meta.ErrDenied) {
				t.Errorf("got %v", err)
			}
		})
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if g, err := OpenGrant("prod", bad); err == nil {
			t.Fatalf("byte %d changed: %+v", i, g)
		}
	}
	for name, g := range map[string]Grant{
		"no peer": {Root: root, Expires: 1}, "no root": {Peer: peer.ID(), Expires: 1}, "no end": {Peer: peer.ID(), Root: root},
		"long context": {Peer: peer.ID(), Root: root, Expires: 1, Context: strings.Repeat("x", maxContextBytes+1)},
	} {
		if _, err := server.SignGrant("prod", g); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGoldenGrant keeps the form on the wire: a rolling upgrade mixes versions.
func TestGoldenGrant(t *testing.T) {
	server := keyOf(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)))
	peer := keyOf(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32)))
	got := must(server.SignGrant("prod", Grant{Peer: peer.ID(), Context: "acme", Root: digest.Sum([]byte("root")), Expires: 5}))
	if sum := fmt.Sprintf("%x", sha256.Sum256(got)); sum != goldenGrant || len(got) > MaxGrantBytes {
		t.Errorf("%d bytes, sha256 %s:\n%x", len(got), sum, got)
	}
}

const goldenGrant = "2aaa5e6784676b0fb39bb4c1ff720530c09caa3af90eecdd1ced4528336daaf6"

func FuzzOpenGrant(f *testing.F) {
	server := must(NewKey())
	f.Add(must(server.SignGrant("prod", Grant{Peer: server.ID(), Root: digest.Sum(nil), Expires: 1})))
	f.Add(codec.Encode(signedGrant{Body: codec.Encode(Grant{Issuer: server.ID()})}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := OpenGrant("prod", b); err != nil && !errors.Is(err, meta.ErrDenied) {
			t.Fatalf("got %v", err)
		}
	})
}

func BenchmarkCheckGrant(b *testing.B) {
	server, peer := must(NewKey()), must(NewKey())
	now, root := time.Now(), digest.Sum(nil)
	grant := must(server.SignGrant("prod", Grant{Peer: peer.ID(), Context: "acme", Root: root, Expires: meta.TimeOf(now.Add(time.Minute))}))
	c := Checker{Cluster: "prod", IsServer: func(meta.NodeID) bool { return true }}
	for b.Loop() {
		if err := c.Check(grant, peer.ID(), root, now); err != nil {
			b.Fatal(err)
		}
	}
}
