package apt_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ulikunitz/xz"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/gateway/protocols/apt"
	"github.com/shoal-registry/shoal/gateway/publication/publicationtest"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

var update = flag.Bool("update", false, "write the answers of the conversations anew")

// archive is a node that serves apt.
type archive struct {
	*upstreamtest.Stack
	t    *testing.T
	apt  *apt.Protocol
	repo string
}

func start(t *testing.T, o catalogtest.Options) *archive {
	a := &archive{t: t, repo: "acme/apt"}
	a.Stack = upstreamtest.New(t, o, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		a.apt = apt.New(s.Catalog, e, publicationtest.Start(t, s, apt.Indexes{}))
		return []protocol.Protocol{a.apt}
	})
	return a
}

// in is the archive of another repository of the node.
func (a archive) in(repo string) *archive {
	a.repo = repo
	return &a
}

func (a *archive) do(method, path string, body []byte, headers ...string) catalogtest.Answer {
	a.t.Helper()
	return a.Ask(a.t, method, "/apt/"+a.repo+"/"+path, bytes.NewReader(body), headers...)
}

func (a *archive) expect(status int, method, path string, body []byte, headers ...string) []byte {
	a.t.Helper()
	return []byte(a.do(method, path, body, headers...).Expect(a.t, status).Text)
}

func (a *archive) get(path string) []byte {
	a.t.Helper()
	return a.expect(200, "GET", path, nil)
}

// put publishes a package and waits until its index has it.
func (a *archive) put(pkg, version, arch, path string) []byte {
	a.t.Helper()
	b := debOf(a.t, pkg, version, arch, "")
	a.expect(201, "PUT", path, b)
	return b
}

// index returns an index that the signed Release names, by its hash.
func (a *archive) index(dist, name string) string {
	a.t.Helper()
	release := a.release(dist)
	for line := range strings.Lines(string(release)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[2] != name {
			continue
		}
		byHash := name[:strings.LastIndexByte(name, '/')] + "/by-hash/SHA256/" + fields[0]
		b := a.get("dists/" + dist + "/" + byHash)
		if digest.FromBytes(b).Encoded() != fields[0] || fmt.Sprint(len(b)) != fields[1] {
			a.t.Errorf("%s is %d bytes of %s, Release says %q", name, len(b), digest.FromBytes(b), line)
		}
		if other := a.get("dists/" + dist + "/" + name); !bytes.Equal(other, b) {
			a.t.Errorf("%s is another by its path", name)
		}
		return string(b)
	}
	a.t.Fatalf("%s is not in the Release of %s:\n%s", name, dist, release)
	return ""
}

// release returns the Release of a distribution, whose signatures hold.
func (a *archive) release(dist string) []byte {
	a.t.Helper()
	keys, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(a.get("key.asc")))
	if err != nil {
		a.t.Fatal(err)
	}
	block, _ := clearsign.Decode(a.get("dists/" + dist + "/InRelease"))
	if block == nil {
		a.t.Fatal("InRelease is not signed")
	}
	if _, err := block.VerifySignature(keys, nil); err != nil {
		a.t.Errorf("InRelease: %v", err)
	}
	release := a.get("dists/" + dist + "/Release")
	if !bytes.Equal(bytes.TrimSpace(release), bytes.TrimSpace(block.Plaintext)) {
		a.t.Errorf("Release and InRelease differ")
	}
	if _, err := openpgp.CheckArmoredDetachedSignature(keys, bytes.NewReader(release), bytes.NewReader(a.get("dists/"+dist+"/Release.gpg")), nil); err != nil {
		a.t.Errorf("Release.gpg: %v", err)
	}
	return release
}

var packageLine = regexp.MustCompile(`(?m)^Package: (.*)\nVersion: (.*)$`)

// listed returns the packages of an index as `name version`, sorted.
func listed(index string) (all []string) {
	for _, m := range packageLine.FindAllStringSubmatch(index, -1) {
		all = append(all, m[1]+" "+m[2])
	}
	slices.Sort(all)
	return all
}

func (a *archive) lists(dist, name string, want ...string) {
	a.t.Helper()
	if got := listed(a.index(dist, name)); !slices.Equal(got, want) {
		a.t.Errorf("%s of %s lists %q, want %q", name, dist, got, want)
	}
}

func TestArchive(t *testing.T) {
	a := start(t, catalogtest.Options{})
	hello := a.put("hello", "1:2.0-1", "amd64", "pool/stable/main/hello_2.0-1_amd64.deb")
	a.put("docs", "1.0", "all", "docs_1.0_all.deb?dist=stable&component=main")
	a.put("hello", "1:2.0-1", "arm64", "pool/stable/contrib/hello_2.0-1_arm64.deb")
	a.put("hello", "3.0~rc1", "amd64", "pool/testing/main/hello_3.0~rc1_amd64.deb")

	release := string(a.release("stable"))
	for _, line := range []string{"Suite: stable\n", "Codename: stable\n", "Architectures: all amd64 arm64\n", "Components: contrib main\n", "Acquire-By-Hash: yes\n"} {
		if !strings.Contains(release, line) {
			t.Errorf("no %q in\n%s", line, release)
		}
	}
	if strings.Contains(release, "Valid-Until") {
		t.Error("a repository that nothing changes in goes stale")
	}
	a.lists("stable", "main/binary-amd64/Packages", "docs 1.0", "hello 1:2.0-1")
	a.lists("stable", "main/binary-all/Packages", "docs 1.0")
	a.lists("stable", "contrib/binary-arm64/Packages", "hello 1:2.0-1")
	a.lists("testing", "main/binary-amd64/Packages", "hello 3.0~rc1")
	plain := a.index("stable", "main/binary-amd64/Packages")
	for name, open := range map[string]func(io.Reader) (io.Reader, error){
		".gz": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		".xz": func(r io.Reader) (io.Reader, error) { return xz.NewReader(r) },
	} {
		r, err := open(strings.NewReader(a.index("stable", "main/binary-amd64/Packages"+name)))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != plain {
			t.Errorf("Packages%s unpacks to %d bytes of %d: %v", name, len(b), len(plain), err)
		}
	}
	want := fmt.Sprintf("Filename: pool/stable/main/hello_2.0-1_amd64.deb\nSize: %d\nSHA256: %s\n\n", len(hello), digest.FromBytes(hello).Encoded())
	if !strings.Contains(plain, want) {
		t.Errorf("no %q in\n%s", want, plain)
	}
	if got := a.get("pool/stable/main/hello_2.0-1_amd64.deb"); !bytes.Equal(got, hello) {
		t.Error("the package came back as another")
	}
	// Only at its own place.
	a.expect(404, "GET", "pool/testing/main/hello_2.0-1_amd64.deb", nil)
	a.expect(404, "GET", "dists/stable/main/binary-mips/Packages", nil)
	a.expect(404, "GET", "dists/none/InRelease", nil)

	// apt asks whether there is something new.
	head := a.do("HEAD", "dists/stable/InRelease", nil)
	a.expect(304, "GET", "dists/stable/InRelease", nil, "If-Modified-Since: "+head.Header.Get("Last-Modified"))
}

// What is published twice, or is not what its name says, is refused and changes nothing.
func TestRefusals(t *testing.T) {
	a := start(t, catalogtest.Options{})
	const path = "pool/stable/main/hello_1.0_all.deb"
	b := a.put("hello", "1.0", "all", path)
	a.expect(200, "PUT", path, b)
	a.expect(409, "PUT", path, debOf(t, "hello", "1.0", "all", "other bytes"))
	a.expect(409, "PUT", "pool/testing/main/hello_1.0_all.deb", b)
	a.expect(409, "PUT", path, debOf(t, "hello", "7:1.0", "all", "another epoch"))
	for path, body := range map[string][]byte{
		"pool/stable/main/hello_1.1_all.deb":              b,
		"pool/stable/main/hello_1.0_amd64.deb":            b,
		"pool/stable/main/other_1.0_all.deb":              b,
		"pool/stable/main/hello.deb":                      b,
		"pool/stable/hello_1.0_all.deb":                   b,
		"hello_1.0_all.deb":                               b,
		"hello_1.0_all.deb?dist=stable&component=a%2Fb":   b,
		"pool/stable/main/x/hello_1.0_all.deb":            b,
		"dists/stable/Release":                            b,
		"pool/stable/main/broken_1.0_all.deb":             b[:len(b)/2],
		"pool/stable/main/empty_1.0_all.deb":              nil,
		"pool/by-hash/main/hello_1.0_all.deb":             b,
		"pool/stable/main/hello_1.0_all.deb.sha256":       b,
		"pool/stable/main/hello_1.0_source.changes":       b,
		"pool/stable/main/hello_1.0-1_all.deb?dist=other": b,
	} {
		if got := a.expect(400, "PUT", path, body); !strings.HasSuffix(string(got), "invalid\n") {
			t.Errorf("%s: %q", path, got)
		}
	}
	a.lists("stable", "main/binary-all/Packages", "hello 1.0")
}

// What is deleted, hidden or kept from readers leaves the index; a distribution without
// packages stays, so that apt sees it empty.
func TestTakenAway(t *testing.T) {
	a := start(t, catalogtest.Options{})
	for _, version := range []string{"1.0", "2.0", "3.0", "4.0"} {
		a.put("hello", version, "all", "pool/stable/main/hello_"+version+"_all.deb")
	}
	yes := true
	for _, c := range []state.Command{
		state.DeleteVersion{Repo: upstreamtest.Ref(a.repo), Package: "hello", Version: "1.0_all"},
		state.MarkVersions{Repo: upstreamtest.Ref(a.repo), Package: "hello", Versions: []string{"2.0_all"}, Marking: meta.Marking{Yanked: &yes, Reason: "broken"}},
		state.QuarantineVersion{Repo: upstreamtest.Ref(a.repo), Package: "hello", Version: "3.0_all", Reason: "odd"},
	} {
		a.commit(c)
	}
	a.lists("stable", "main/binary-all/Packages", "hello 4.0")
	a.expect(404, "GET", "pool/stable/main/hello_1.0_all.deb", nil)
	a.get("pool/stable/main/hello_2.0_all.deb") // who has it pinned
	a.expect(409, "PUT", "pool/stable/main/hello_1.0_all.deb", debOf(t, "hello", "1.0", "all", "other bytes"))
	for _, version := range []string{"2.0_all", "4.0_all"} {
		a.commit(state.DeleteVersion{Repo: upstreamtest.Ref(a.repo), Package: "hello", Version: version})
	}
	a.lists("stable", "main/binary-all/Packages")
}

// commit sends a command and waits until the indexes have it.
func (a *archive) commit(c state.Command) {
	a.t.Helper()
	receipt, err := a.Metadata.Do(a.t.Context(), state.Origin{Principal: "user:ada"}, c)
	if err != nil {
		a.t.Fatal(err)
	}
	a.await(upstreamtest.Ref(a.repo), receipt.Token.Index)
}

// await waits until the indexes of a repository contain an index of the log.
func (a *archive) await(repo meta.RepoRef, index uint64) {
	a.t.Helper()
	for change, err := range a.Metadata.Watch(a.t.Context(), 0) {
		if err != nil {
			a.t.Fatal(err)
		}
		if sets, _, err := a.Catalog.Sets(a.t.Context(), upstreamtest.By(), repo); err == nil && sets.Built >= index {
			return
		}
		_ = change
	}
}

// A control file that is longer than a summary, and one of a version with a tilde.
func TestLongControl(t *testing.T) {
	a := start(t, catalogtest.Options{})
	long := "X-Long: " + strings.Repeat("word ", 8000) + "end\n"
	a.expect(201, "PUT", "pool/stable/main/hello_1.0~beta_all.deb", debWith(t, "hello", "1.0~beta", "all", long, ""))
	if index := a.index("stable", "main/binary-all/Packages"); !strings.Contains(index, long) {
		t.Error("the long field is not in the index")
	}
}

// A group shows the packages of its hosted members, the first that has a version, and
// takes packages for the member that it writes to.
func TestGroup(t *testing.T) {
	a := start(t, catalogtest.Options{})
	a.put("hello", "1.0", "all", "pool/stable/main/hello_1.0_all.deb")
	second := a.in("acme/second")
	second.expect(201, "PUT", "pool/stable/main/hello_1.0_all.deb", debOf(t, "hello", "1.0", "all", "of the second"))
	second.put("extra", "1.0", "all", "pool/stable/main/extra_1.0_all.deb")
	a.Group(t, "acme/all", apt.Format, "apt", "apt", "second")
	all := a.in("acme/all")
	all.put("through", "1.0", "all", "pool/stable/main/through_1.0_all.deb")
	all.lists("stable", "main/binary-all/Packages", "extra 1.0", "hello 1.0", "through 1.0")
	if got, want := all.get("pool/stable/main/hello_1.0_all.deb"), a.get("pool/stable/main/hello_1.0_all.deb"); !bytes.Equal(got, want) {
		t.Error("the group serves the second member's package under the first one's name")
	}
	a.lists("stable", "main/binary-all/Packages", "hello 1.0", "through 1.0")
	if key := all.get("key.asc"); bytes.Equal(key, a.get("key.asc")) {
		t.Error("the group signs with a member's key")
	}
}

// A proxy hands on another archive byte for byte, also when that is away.
func TestProxy(t *testing.T) {
	a := start(t, catalogtest.Options{})
	above := a.in("acme/above")
	deb := above.put("hello", "1.0", "amd64", "pool/stable/main/hello_1.0_amd64.deb")
	registry := upstreamtest.NewRegistry(t)
	paths := []string{"dists/stable/InRelease", "dists/stable/Release", "dists/stable/Release.gpg", "dists/stable/main/binary-amd64/Packages.xz", "key.asc"}
	for _, path := range paths {
		registry.Put("debian/"+path, above.get(path), `ETag: "`+path+`"`)
	}
	hash := digest.FromBytes(above.get("dists/stable/main/binary-amd64/Packages.gz")).Encoded()
	paths = append(paths, "dists/stable/main/binary-amd64/by-hash/SHA256/"+hash)
	registry.Put("debian/"+paths[len(paths)-1], above.get("dists/stable/main/binary-amd64/Packages.gz"))
	paths = append(paths, "pool/stable/main/hello_1.0_amd64.deb", "pool/main/h/hello/hello_1.0.orig.tar.gz")
	registry.Put("debian/"+paths[len(paths)-2], deb)
	registry.Put("debian/"+paths[len(paths)-1], []byte("source"))
	a.Proxy(t, "acme/proxy", apt.Format, registry.URL+"/debian")
	proxy := a.in("acme/proxy")
	want := map[string][]byte{}
	for _, path := range paths {
		want[path] = proxy.get(path)
	}
	if !bytes.Equal(want["dists/stable/InRelease"], above.get("dists/stable/InRelease")) || !bytes.Equal(want["pool/stable/main/hello_1.0_amd64.deb"], deb) {
		t.Error("the proxy changed what it handed on")
	}
	proxy.expect(404, "GET", "pool/stable/main/none_1.0_amd64.deb", nil)
	proxy.expect(405, "PUT", "pool/stable/main/hello_1.0_amd64.deb", deb)
	registry.Cut(true)
	for _, path := range paths {
		if got := proxy.get(path); !bytes.Equal(got, want[path]) {
			t.Errorf("%s is another without the upstream", path)
		}
	}
	// Bytes that are not what a hash names are kept from readers.
	registry.Cut(false)
	wrong := "dists/stable/main/binary-amd64/by-hash/SHA256/" + digest.FromBytes([]byte("right")).Encoded()
	registry.Put("debian/"+wrong, []byte("wrong"))
	proxy.expect(502, "GET", wrong, nil)
}

// Of those who publish one package at once exactly one is acknowledged.
func TestRace(t *testing.T) {
	a := start(t, catalogtest.Options{})
	a.put("hello", "1.0", "all", "pool/stable/main/hello_1.0_all.deb")
	catalogtest.Race(t, 20, 201, 409, func(i int) func() catalogtest.Answer {
		body := debOf(t, "hello", "2.0", "all", fmt.Sprint("seed ", i))
		return func() catalogtest.Answer { return a.do("PUT", "pool/stable/main/hello_2.0_all.deb", body) }
	})
	a.lists("stable", "main/binary-all/Packages", "hello 1.0", "hello 2.0")
}

func TestProtocol(t *testing.T) {
	a := start(t, catalogtest.Options{})
	a.put("hello", "1.0", "all", "pool/stable/main/hello_1.0_all.deb")
	const name = "/apt/acme/apt"
	hash := digest.FromBytes(a.get("dists/stable/main/binary-all/Packages")).Encoded()
	protocoltest.Run(t, protocoltest.Case{
		Protocol: a.apt, Metadata: access.Records{Asker: a.Metadata},
		Repo: meta.RepoRef{Tenant: "acme", Name: "apt"}, Absent: meta.RepoRef{Tenant: "acme", Name: "apx"},
		Reads: []protocoltest.Request{
			{Method: "GET", Path: name + "/dists/stable/InRelease"},
			{Method: "GET", Path: name + "/dists/stable/main/binary-all/Packages.gz"},
			{Method: "GET", Path: name + "/dists/stable/main/binary-all/by-hash/SHA256/" + hash},
			{Method: "GET", Path: name + "/pool/stable/main/hello_1.0_all.deb"},
			{Method: "GET", Path: name + "/key.asc"},
		},
		Writes: []protocoltest.Request{{Method: "PUT", Path: name + "/pool/stable/main/hello_2.0_all.deb", Body: []byte("x")}},
		CheckError: func(_ int, h http.Header, body []byte) error {
			if !strings.HasPrefix(h.Get("Content-Type"), "text/plain") || !bytes.HasSuffix(body, []byte("\n")) {
				return fmt.Errorf("no line of text: %q", body)
			}
			return nil
		},
	})
}

func TestConversations(t *testing.T) {
	a := start(t, catalogtest.Options{})
	a.expect(201, "PUT", "pool/stable/main/hello_1.0_all.deb", []byte(mustRead(t, "testdata/hello_1.0_all.deb")))
	catalogtest.Converse(t, a.Stack.Stack, "testdata/refusals.txtar", *update, "")
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && *update {
		b = debOf(t, "hello", "1.0", "all", "")
		err = os.WriteFile(path, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReferences(t *testing.T) {
	p := apt.New(nil, nil, nil)
	if r, err := p.ParseReference("/hello:2.10-3_amd64"); err != nil || r.Package != "hello" || r.Version != "2.10-3_amd64" {
		t.Errorf("%+v, %v", r, err)
	}
	for _, s := range []string{"", "/hello", "hello:1_all", "/hello:1", "/hello:_all", "/Hello:1_all", "/hello:1_A"} {
		if r, err := p.ParseReference(s); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %+v, %v", s, r, err)
		}
	}
}

// The rules of a proxy hold for packages however their files are named.
func TestProxyRules(t *testing.T) {
	a := start(t, catalogtest.Options{})
	registry := upstreamtest.NewRegistry(t)
	files := []string{"pool/e/evil_1.0_amd64.deb", "pool/e/evil_1:1.0_amd64.deb", "pool/e/evil.deb", "pool/e/evil_1.0_amd64.deb;x=1", "pool/e/evil_1.0_amd64.udeb", "evil.DEB"}
	for _, path := range append(files, "pool/e/evil_1.0.debian.tar.xz") {
		registry.Put(path, []byte("evil"))
	}
	a.Proxy(t, "acme/free", apt.Format, registry.URL)
	a.Proxy(t, "acme/ruled", apt.Format, registry.URL, func(u *meta.Upstream) { u.Block = []string{"evil"} })
	for _, path := range files {
		a.in("acme/ruled").expect(403, "GET", path, nil)
	}
	if n := registry.Total(); n != 0 {
		t.Errorf("the upstream was asked %d times for what is blocked", n)
	}
	for _, path := range append(files, "pool/e/evil_1.0.debian.tar.xz") {
		a.in("acme/free").get(path)
	}
	a.in("acme/ruled").get("pool/e/evil_1.0.debian.tar.xz") // a source: nothing is installed of it
}

// A distribution with more components than its indexes can hold stays as it was, and the
// others of the repository do not wait for it.
func TestTooManyComponents(t *testing.T) {
	a := start(t, catalogtest.Options{})
	a.put("first", "1.0", "all", "pool/wide/main/first_1.0_all.deb")
	var all sync.WaitGroup
	for i := range (meta.MaxSetFiles-4)/3 + 1 {
		name := fmt.Sprintf("wide%d", i)
		all.Go(func() {
			path := fmt.Sprintf("pool/wide/c%d/%s_1.0_all.deb", i, name)
			if answer := a.do("PUT", path, debOf(t, name, "1.0", "all", "")); answer.StatusCode != 201 {
				t.Errorf("%s: %d %s", path, answer.StatusCode, answer.Text)
			}
		})
	}
	all.Wait()
	a.put("hello", "1.0", "all", "pool/stable/main/hello_1.0_all.deb")
	sets, _, err := a.Catalog.Sets(t.Context(), upstreamtest.By(), upstreamtest.Ref(a.repo))
	if err != nil {
		t.Fatal(err)
	}
	a.await(upstreamtest.Ref(a.repo), sets.Changed)
	a.lists("stable", "main/binary-all/Packages", "hello 1.0")
	a.lists("wide", "main/binary-all/Packages", "first 1.0")
}
