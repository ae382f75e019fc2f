package e2e

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// secured is a server that clients reach over TLS only, on an address that is not
// loopback, so that no client lets verification go.
type secured struct {
	*cluster
	addr  string // host:port of the gateway
	root  string // file with the cluster's root
	dir   string
	token string // one token, for all clients
}

// outer returns an address of this machine that is not loopback.
func outer(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Skip("SKIPPED: this machine has loopback only, where clients do without TLS")
	return ""
}

func startSecured(t *testing.T) *secured {
	t.Helper()
	host := outer(t)
	free, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &secured{cluster: &cluster{dir: folder(t, "")}, addr: free.Addr().String(), dir: folder(t, "")}
	free.Close()
	m := s.member("server", "server-r1", "r1")
	m.node.Bootstrap, m.node.Extra = true, []string{"--gateway", s.addr, "--advertise", host, "--log-level", "debug"}
	s.servers = append(s.servers, m)
	t.Cleanup(func() {
		m.process.Kill()
		lastWords.keep(t, m.process)
	})
	s.launch(t, m)
	if s.cluster.token, err = proc.AdminToken(m.node.Data); err != nil {
		t.Fatal(err)
	}

	// The hash of the root is what the operator of the first server reads there; here
	// it is the last certificate that the server shows.
	c, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	chain := c.ConnectionState().PeerCertificates
	c.Close()
	der := chain[len(chain)-1].Raw
	hash := sha256.Sum256(der)
	s.root = filepath.Join(s.dir, "ca.crt")
	if err := os.WriteFile(s.root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	s.run(t, "login", "https://"+s.addr, "--trust", hex.EncodeToString(hash[:]))
	if shown := s.run(t, "trust", "show", "--pem"); shown != readFile(t, s.root) {
		t.Fatalf("trust show prints another root:\n%s", shown)
	}
	s.run(t, "tenant", "create", "acme")
	s.run(t, "robot", "create", "acme/ci", "--role", "publisher")
	fields := strings.Fields(s.run(t, "token", "create", "--robot", "acme/ci", "--ttl", "1h"))
	i := slices.IndexFunc(fields, func(f string) bool { return strings.HasPrefix(f, "shoal_") })
	if i < 0 {
		t.Fatalf("no token in %d words", len(fields))
	}
	s.token = fields[i]
	return s
}

// run runs a client verb that has logged in.
func (s *secured) run(t *testing.T, args ...string) string {
	t.Helper()
	env := []string{"HOME=" + s.dir}
	if args[0] == "login" {
		env = append(env, "SHOAL_TOKEN="+s.cluster.token)
	}
	out, err := proc.Run(limit(t, time.Minute), nil, binary, env, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// put lays a file out in a generic repository.
func (s *secured) put(t *testing.T, path string, content []byte) {
	t.Helper()
	if status, body := s.http(t, http.MethodPut, path, content); status >= 300 {
		t.Fatalf("PUT %s: %d %s", path, status, body)
	}
}

func (s *secured) http(t *testing.T, method, path string, content []byte) (int, []byte) {
	t.Helper()
	r := request{method: method, path: path, header: http.Header{}, body: content}
	if strings.HasSuffix(path, ".html") {
		r.header.Set("Content-Type", "text/html")
	}
	return s.send(t, r, "")
}

// send sends r with the token to the repository at a path.
func (s *secured) send(t *testing.T, r request, at string) (int, []byte) {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(readFile(t, s.root))) {
		t.Fatal("no root")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	q, err := http.NewRequestWithContext(limit(t, time.Minute), r.method, "https://"+s.addr+at+r.path, bytes.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	q.Header = r.header
	q.Header.Set("Authorization", "Bearer "+s.token)
	res, err := client.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, body
}

// ecosystem is one client with its own way to show a token.
type ecosystem struct {
	name  string
	tools []string
	root  bool
	// use writes and reads with a token in a home of its own; says is what the client
	// prints for a wrong one, one of these in small letters.
	use  func(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error)
	says []string
}

// Every client proves itself with the same token in its own way, over TLS that it verifies
// by the cluster's root; with a wrong one each says so in its own words.
func TestClientMatrix(t *testing.T) {
	s := startSecured(t)
	s.run(t, "repo", "create", "acme/oci", "--format", "oci", "--home", "r1")
	for _, e := range ecosystems {
		t.Run(e.name, func(t *testing.T) {
			for _, tool := range e.tools {
				if _, err := exec.LookPath(tool); err != nil {
					t.Skipf("SKIPPED: no %s on this machine", tool)
				}
			}
			if e.root {
				needRoot(t, e.name+" manages containers' storage")
			}
			ctx := limit(t, 4*time.Minute)
			if !isOCI(e.name) {
				s.run(t, "repo", "create", "acme/"+e.name, "--format", matrixFormats[e.name], "--home", "r1")
			}
			if out, err := e.use(ctx, t, s, folder(t, ""), s.token); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			out, err := e.use(ctx, t, s, folder(t, ""), wrongToken)
			if err == nil {
				t.Fatalf("a wrong token was taken: %s", out)
			}
			said := strings.ToLower(out + err.Error())
			for _, words := range e.says {
				if strings.Contains(said, words) {
					return
				}
			}
			t.Errorf("with a wrong token it says none of %q: %s", e.says, said)
		})
	}
	s.keepsSecrets(t)
}

// keepsSecrets looks for every secret that was used in all that the server wrote: its log at
// the level of debug, its data directory, its metrics and views. Only the file that is the
// administrator's token may have it.
func (s *secured) keepsSecrets(t *testing.T) {
	t.Helper()
	m := s.servers[0]
	_, join, _ := strings.Cut(s.run(t, "token", "join", "--role", "agent", "--region", "r1"), "shoal1.")
	join, _, _ = strings.Cut(join, ".")
	secrets := map[string]string{"the robot's token": s.token, "the administrator's token": s.cluster.token, "a wrong token": wrongToken, "a join token": join}
	looked := 0
	search := func(where string, text []byte) {
		looked++
		for name, secret := range secrets {
			forms := []string{secret}
			for user := range 3 { // Of base64 the middle counts, by how much stands before it.
				basic := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("u", user) + ":" + secret))
				forms = append(forms, basic[4:len(basic)-4])
			}
			for _, form := range forms {
				if len(form) < 16 {
					t.Fatalf("%s is %d characters", name, len(form))
				}
				if bytes.Contains(text, []byte(form)) {
					t.Errorf("%s is in %s", name, where)
				}
			}
		}
	}
	search("the log", []byte(readFile(t, m.node.Data+".log")))
	err := filepath.WalkDir(m.node.Data, func(name string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a folder that is done with, like one in the making
		}
		if err != nil || entry.IsDir() || entry.Name() == "admin.token" {
			return err
		}
		text, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was replaced
		}
		search(name, text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/metrics", "/readyz?verbose", "/view/swarm", "/debug/pprof/cmdline"} {
		res, err := http.Get("http://" + net.JoinHostPort(m.node.Host, proc.OpsPort) + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		search(path, text)
	}
	t.Logf("%d files and pages searched for %d secrets", looked, len(secrets))
}

const wrongToken = "shoal_admin_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func isOCI(name string) bool {
	return strings.Contains(" crane skopeo oras docker podman containerd helm ", " "+name+" ")
}

// matrixFormats are the formats of the repositories that are not OCI.
var matrixFormats = map[string]string{
	"npm":   "npm",
	"pip":   "pypi",
	"twine": "pypi",
	"mvn":   "maven",
	"cargo": "cargo",
	"go":    "go",
}

// Users are named for their client: failed logins are limited by account.
var unauthorized = []string{"unauthorized", "401", "authentication required", "denied", "invalid username/password"}

var ecosystems = []ecosystem{
	{"crane", []string{"crane"}, false, useCrane, unauthorized},
	{"skopeo", []string{"skopeo"}, false, useSkopeo, unauthorized},
	{"oras", []string{"oras"}, false, useOras, unauthorized},
	{"docker", []string{"dockerd", "docker"}, true, useDocker, unauthorized},
	{"podman", []string{"podman"}, true, usePodman, unauthorized},
	{"containerd", []string{"containerd", "ctr"}, true, useContainerd, unauthorized},
	{"helm", []string{"helm"}, false, useHelm, unauthorized},
	{"npm", []string{"npm"}, false, useNPM, []string{"e401", "401"}},
	{"pip", []string{"pip3"}, false, usePip, []string{"401"}},
	{"twine", []string{"twine"}, false, useTwine, []string{"401"}},
	{"mvn", []string{"mvn", "keytool"}, false, useMaven, []string{"401", "unauthorized", "not authorized"}},
	{"cargo", []string{"cargo"}, false, useCargo, []string{"401", "token rejected", "unauthorized"}},
	{"go", []string{"go"}, false, useGo, []string{"401"}},
}

// all runs commands until one fails, and returns what they printed.
func all(ctx context.Context, env []string, lines ...[]string) (string, error) {
	var out strings.Builder
	for _, line := range lines {
		text, err := command(ctx, env, line[0], line[1:]...)
		out.WriteString(text)
		if err != nil {
			return out.String(), err
		}
	}
	return out.String(), nil
}

// layout writes an image to be pushed.
func layout(t *testing.T, home string) (dir, digest string) {
	img := makeImage(t, 1, 20_000)
	dir = filepath.Join(home, "layout")
	if err := img.WriteLayout(dir, "e2e"); err != nil {
		t.Fatal(err)
	}
	return dir, img.Digest()
}

func useCrane(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	dir, digest := layout(t, home)
	ref := s.addr + "/acme/oci/crane:1"
	out, err := all(ctx, []string{"HOME=" + home, "DOCKER_CONFIG=" + home, "SSL_CERT_FILE=" + s.root},
		[]string{"crane", "auth", "login", s.addr, "-u", "crane", "-p", token},
		[]string{"crane", "push", dir, ref},
		[]string{"crane", "pull", "--format", "oci", ref, filepath.Join(home, "back")},
		[]string{"crane", "digest", ref})
	return out, has(out, digest, err)
}

func useSkopeo(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	dir, digest := layout(t, home)
	ref := "docker://" + s.addr + "/acme/oci/skopeo:1"
	auth := filepath.Join(home, "auth.json")
	out, err := all(ctx, []string{"HOME=" + home},
		[]string{"skopeo", "login", "--authfile", auth, "--cert-dir", s.dir, "-u", "skopeo", "-p", token, s.addr},
		[]string{"skopeo", "copy", "--authfile", auth, "--dest-cert-dir", s.dir, "--preserve-digests", "oci:" + dir + ":e2e", ref},
		[]string{"skopeo", "inspect", "--authfile", auth, "--cert-dir", s.dir, "--format", "{{.Digest}}", ref})
	return out, has(out, digest, err)
}

func useOras(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	dir, digest := layout(t, home)
	ref := s.addr + "/acme/oci/oras:1"
	config := filepath.Join(home, "config.json")
	out, err := all(ctx, []string{"HOME=" + home},
		[]string{"oras", "login", "--registry-config", config, "--ca-file", s.root, "-u", "oras", "-p", token, s.addr},
		[]string{"oras", "cp", "--to-registry-config", config, "--to-ca-file", s.root, "--from-oci-layout", dir + ":e2e", ref},
		[]string{"oras", "resolve", "--registry-config", config, "--ca-file", s.root, ref})
	return out, has(out, digest, err)
}

func useDocker(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	// The daemon reads roots from here and nowhere else.
	certs := "/etc/docker/certs.d/" + s.addr
	write(t, filepath.Join(certs, "ca.crt"), readFile(t, s.root))
	defer os.RemoveAll(certs)
	d := openDocker(t).(docker)
	archive, ref := filepath.Join(home, "a.tar"), s.addr+"/acme/oci/docker:1"
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	if err := makeImage(t, 1, 20_000).WriteDockerArchive(f, ref); err != nil {
		t.Fatal(err)
	}
	f.Close()
	return all(ctx, d.env,
		[]string{"docker", "login", "-u", "docker", "-p", token, s.addr},
		[]string{"docker", "load", "--quiet", "--input", archive},
		[]string{"docker", "push", ref},
		[]string{"docker", "rmi", "--force", ref},
		[]string{"docker", "pull", ref})
}

func usePodman(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	p := openPodman(t).(storage)
	dir, _ := layout(t, home)
	ref, auth := s.addr+"/acme/oci/podman:1", filepath.Join(home, "auth.json")
	podman := func(args ...string) []string { return append(append([]string{"podman"}, p.args...), args...) }
	out, err := all(ctx, p.env, podman("login", "--authfile", auth, "--cert-dir", s.dir, "-u", "podman", "-p", token, s.addr),
		podman("pull", "--quiet", "oci:"+dir+":e2e"))
	if err != nil {
		return out, err
	}
	lines := strings.Fields(out)
	more, err := all(ctx, p.env,
		podman("push", "--quiet", "--authfile", auth, "--cert-dir", s.dir, lines[len(lines)-1], "docker://"+ref),
		podman("pull", "--quiet", "--authfile", auth, "--cert-dir", s.dir, ref))
	return out + more, err
}

func useContainerd(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	c := openContainerd(t).(containerd)
	dir, digest := layout(t, home)
	base := s.addr + "/acme/oci/containerd"
	hosts := filepath.Join(home, "certs.d")
	write(t, filepath.Join(hosts, s.addr, "hosts.toml"), fmt.Sprintf("server = \"https://%s\"\n[host.\"https://%s\"]\n  ca = %q\n", s.addr, s.addr, s.root))
	ctr := func(args ...string) []string {
		return append([]string{"ctr", "--address", c.socket, "--namespace", "e2e"}, args...)
	}
	archive := filepath.Join(home, "a.tar")
	if _, err := command(ctx, nil, "tar", "-C", dir, "-cf", archive, "."); err != nil {
		return "", err
	}
	out, err := all(ctx, c.env,
		ctr("images", "import", "--no-unpack", "--base-name", base, archive),
		ctr("images", "push", "--hosts-dir", hosts, "--user", "containerd:"+token, base+":e2e"),
		ctr("images", "remove", "--sync", base+":e2e"),
		ctr("images", "pull", "--hosts-dir", hosts, "--user", "containerd:"+token, "--snapshotter", "native", base+":e2e"),
		ctr("images", "list"))
	return out, has(out, digest, err)
}

func useHelm(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	chart := filepath.Join(home, "demo")
	write(t, filepath.Join(chart, "Chart.yaml"), "apiVersion: v2\nname: demo\nversion: 1.0.0\n")
	packed, back := filepath.Join(home, "demo-1.0.0.tgz"), t.TempDir()
	out, err := all(ctx, []string{"HOME=" + home, "HELM_REGISTRY_CONFIG=" + filepath.Join(home, "registry.json")},
		[]string{"helm", "registry", "login", "--ca-file", s.root, "-u", "helm", "-p", token, s.addr},
		[]string{"helm", "package", chart, "-d", home},
		[]string{"helm", "push", "--ca-file", s.root, packed, "oci://" + s.addr + "/acme/oci"},
		[]string{"helm", "pull", "--ca-file", s.root, "oci://" + s.addr + "/acme/oci/demo", "--version", "1.0.0", "-d", back})
	if err != nil {
		return out, err
	}
	pushed, err := os.ReadFile(packed)
	if err != nil {
		return out, err
	}
	pulled, err := os.ReadFile(filepath.Join(back, filepath.Base(packed)))
	if err == nil && !bytes.Equal(pushed, pulled) {
		err = errors.New("helm pulled another chart than it pushed")
	}
	return out, err
}

// has is err, or that out lacks text.
func has(out, text string, err error) error {
	if err == nil && !strings.Contains(out, text) {
		err = fmt.Errorf("no %s in %s", text, out)
	}
	return err
}

// tgz packs files, which are the same bytes each time.
func tgz(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text := files[name]
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text := files[name]
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// useNPM publishes and installs.
func useNPM(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	const base = "/npm/acme/npm/"
	write(t, filepath.Join(home, ".npmrc"), fmt.Sprintf("registry=https://%s%s\n//%s%s:_authToken=%s\ncafile=%s\naudit=false\nfund=false\nupdate-notifier=false\nfetch-retries=0\n", s.addr, base, s.addr, base, token, s.root))
	mine := filepath.Join(home, "written")
	write(t, filepath.Join(mine, "package.json"), `{"name":"written","version":"1.0.0"}`)
	env := []string{"HOME=" + home, "npm_config_cache=" + filepath.Join(home, "cache"), "npm_config_userconfig=" + filepath.Join(home, ".npmrc")}
	out, err := all(ctx, env, []string{"npm", "publish", mine}, []string{"npm", "install", "--prefix", filepath.Join(home, "project"), "written@1.0.0"})
	if err != nil {
		return out, err
	}
	_, err = os.Stat(filepath.Join(home, "project", "node_modules", "written", "package.json"))
	return out, err
}

// usePip installs from the index; the token is in .netrc, in no URL.
func usePip(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	r := uploadPyPI(t, "demo", "1.0", 1)
	if status, body := s.send(t, r, "/pypi/acme/pip"); status != http.StatusOK {
		t.Fatalf("upload: %d %s", status, body)
	}
	host, _, _ := net.SplitHostPort(s.addr)
	write(t, filepath.Join(home, ".netrc"), fmt.Sprintf("machine %s login pip password %s\n", host, token))
	return all(ctx, []string{"HOME=" + home, "NETRC=" + filepath.Join(home, ".netrc"), "PIP_CONFIG_FILE=/dev/null", "PIP_DISABLE_PIP_VERSION_CHECK=1",
		"REQUESTS_CA_BUNDLE=" + s.root, "CURL_CA_BUNDLE=" + s.root},
		[]string{"pip3", "install", "-vv", "--no-cache-dir", "--retries", "0", "--no-input", "--no-deps", "--cert", s.root,
			"--index-url", "https://" + s.addr + "/pypi/acme/pip/simple/", "--target", filepath.Join(home, "site"), "demo==1.0"})
}

// useTwine uploads a wheel, which the index shows then.
func useTwine(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	name, content := wheelOf(t, "demo", "1.0", 1)
	file := filepath.Join(home, name)
	write(t, file, string(content))
	out, err := all(ctx, []string{"HOME=" + home, "TWINE_USERNAME=__token__", "TWINE_PASSWORD=" + token, "REQUESTS_CA_BUNDLE=" + s.root, "CURL_CA_BUNDLE=" + s.root},
		[]string{"twine", "upload", "--non-interactive", "--disable-progress-bar", "--verbose", "--cert", s.root,
			"--repository-url", "https://" + s.addr + "/pypi/acme/twine/legacy/", file})
	if err != nil {
		return out, err
	}
	status, page := s.http(t, http.MethodGet, "/pypi/acme/twine/simple/demo/", nil)
	if status != http.StatusOK || !bytes.Contains(page, []byte(name)) {
		err = fmt.Errorf("the index answers %d %s", status, page)
	}
	return out, err
}

// useCargo publishes and fetches; it sends the token as it is.
func useCargo(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	write(t, filepath.Join(home, "config.toml"), fmt.Sprintf("[registries.shoal]\nindex = \"sparse+https://%s/cargo/acme/cargo/\"\n[registry]\nglobal-credential-providers = [\"cargo:token\"]\n[http]\ncainfo = %q\n[net]\nretry = 0\n", s.addr, s.root))
	write(t, filepath.Join(home, "demo", "Cargo.toml"), crateManifest("demo", "1.0.0"))
	write(t, filepath.Join(home, "demo", "src", "lib.rs"), "")
	write(t, filepath.Join(home, "p", "Cargo.toml"), "[package]\nname = \"p\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\ndemo = { version = \"1\", registry = \"shoal\" }\n")
	write(t, filepath.Join(home, "p", "src", "lib.rs"), "")
	return all(ctx, []string{"CARGO_HOME=" + home, "CARGO_REGISTRIES_SHOAL_TOKEN=" + token},
		[]string{"cargo", "publish", "--registry", "shoal", "--allow-dirty", "--no-verify", "--manifest-path", filepath.Join(home, "demo", "Cargo.toml")},
		[]string{"cargo", "fetch", "--manifest-path", filepath.Join(home, "p", "Cargo.toml")})
}

// useGo downloads a module; the token is in .netrc, and sent over TLS only.
func useGo(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	base, module := "/go/acme/go/", "example.com/demo"
	s.put(t, base+module+"/@v/v1.0.0.zip", uploadGo(t, module, "1.0.0", 1).body)
	host, _, _ := net.SplitHostPort(s.addr)
	write(t, filepath.Join(home, ".netrc"), fmt.Sprintf("machine %s login go password %s\nmachine %s login go password %s\n", s.addr, token, host, token))
	return all(ctx, []string{"HOME=" + home, "GOPATH=" + home, "GOMODCACHE=" + filepath.Join(home, "mod"), "GOCACHE=" + filepath.Join(home, "cache"), "GOENV=off", "GOFLAGS=-modcacherw",
		"NETRC=" + filepath.Join(home, ".netrc"), "SSL_CERT_FILE=" + s.root, "GOPROXY=https://" + s.addr + strings.TrimSuffix(base, "/"), "GOSUMDB=off", "GOTOOLCHAIN=local"},
		[]string{"go", "mod", "download", "-json", module + "@v1.0.0"})
}
