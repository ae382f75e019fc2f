package rpm_test

import (
	"bytes"
	"compress/gzip"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/gateway/protocols/rpm"
	"github.com/shoal-registry/shoal/gateway/protocols/rpm/rpmtest"
	"github.com/shoal-registry/shoal/gateway/publication/publicationtest"
	"github.com/shoal-registry/shoal/gateway/upstream"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

var update = flag.Bool("update", false, "write the answers of the conversations anew")

// repository is a node that serves rpm.
type repository struct {
	*upstreamtest.Stack
	t    *testing.T
	rpm  *rpm.Protocol
	repo string
}

func start(t *testing.T, o catalogtest.Options) *repository {
	r := &repository{t: t, repo: "acme/rpm"}
	r.Stack = upstreamtest.New(t, o, func(s *catalogtest.Stack, e *upstream.Engine) []protocol.Protocol {
		r.rpm = rpm.New(s.Catalog, e, publicationtest.Start(t, s, rpm.Metadata{}))
		return []protocol.Protocol{r.rpm}
	})
	return r
}

func (r repository) in(repo string) *repository {
	r.repo = repo
	return &r
}

func (r *repository) do(method, path string, body []byte) catalogtest.Answer {
	r.t.Helper()
	return r.Ask(r.t, method, "/rpm/"+r.repo+"/"+path, bytes.NewReader(body))
}

func (r *repository) expect(status int, method, path string, body []byte) []byte {
	r.t.Helper()
	return []byte(r.do(method, path, body).Expect(r.t, status).Text)
}

func (r *repository) get(path string) []byte {
	r.t.Helper()
	return r.expect(200, "GET", path, nil)
}

func named(name, version string, change ...func(*rpmtest.Package)) rpmtest.Package {
	p := rpmtest.Package{
		Name: name, Version: version, Release: "1", Arch: "noarch", Summary: "greets", Requires: []string{"libc = 2.36", "/bin/sh"},
		Provides: []string{"greeting = 1:2-3"}, Files: map[string][]byte{"/usr/bin/" + name: []byte("x"), "/usr/share/doc/y": nil}, Log: []string{"newest", "older"},
	}
	for _, c := range change {
		c(&p)
	}
	return p
}

func (r *repository) put(p rpmtest.Package) []byte {
	r.t.Helper()
	b := p.Bytes()
	r.expect(201, "PUT", "Packages/"+p.File(), b)
	return b
}

// document returns one of the three, unpacked, as the signed repomd.xml names it.
func (r *repository) document(kind string) string {
	r.t.Helper()
	keys, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(r.get("key.asc")))
	if err != nil {
		r.t.Fatal(err)
	}
	repomd := r.get("repodata/repomd.xml")
	if _, err := openpgp.CheckArmoredDetachedSignature(keys, bytes.NewReader(repomd), bytes.NewReader(r.get("repodata/repomd.xml.asc")), nil); err != nil {
		r.t.Errorf("repomd.xml.asc: %v", err)
	}
	var index struct {
		Data []struct {
			Kind     string `xml:"type,attr"`
			Checksum string `xml:"checksum"`
			Open     string `xml:"open-checksum"`
			Size     int    `xml:"size"`
			OpenSize int    `xml:"open-size"`
			Location struct {
				Href string `xml:"href,attr"`
			} `xml:"location"`
		} `xml:"data"`
	}
	if err := xml.Unmarshal(repomd, &index); err != nil {
		r.t.Fatal(err)
	}
	for _, d := range index.Data {
		if d.Kind != kind {
			continue
		}
		packed := r.get(d.Location.Href)
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			r.t.Fatal(err)
		}
		plain, err := io.ReadAll(z)
		if err != nil {
			r.t.Fatal(err)
		}
		if digest.FromBytes(packed).Encoded() != d.Checksum || len(packed) != d.Size || digest.FromBytes(plain).Encoded() != d.Open || len(plain) != d.OpenSize {
			r.t.Errorf("%s is not what repomd.xml says: %+v", kind, d)
		}
		return string(plain)
	}
	r.t.Fatalf("no %s in %s", kind, repomd)
	return ""
}

// lists checks what primary.xml lists: `name version-release`.
func (r *repository) lists(want ...string) {
	r.t.Helper()
	var doc struct {
		Count    int `xml:"packages,attr"`
		Packages []struct {
			Name    string `xml:"name"`
			Version struct {
				Ver string `xml:"ver,attr"`
				Rel string `xml:"rel,attr"`
			} `xml:"version"`
		} `xml:"package"`
	}
	if err := xml.Unmarshal([]byte(r.document("primary")), &doc); err != nil {
		r.t.Fatal(err)
	}
	var got []string
	for _, p := range doc.Packages {
		got = append(got, p.Name+" "+p.Version.Ver+"-"+p.Version.Rel)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) || doc.Count != len(want) {
		r.t.Errorf("%d are listed: %q, want %q", doc.Count, got, want)
	}
}

func TestRepository(t *testing.T) {
	r := start(t, catalogtest.Options{})
	b := r.put(named("hello", "1.0"))
	old := r.get("repodata/repomd.xml")
	r.put(named("hello", "2.0"))
	r.put(named("other", "1.0", func(p *rpmtest.Package) { p.Epoch, p.Arch = 3, "x86_64" }))
	r.lists("hello 1.0-1", "hello 2.0-1", "other 1.0-1")
	if got := r.get("Packages/hello-1.0-1.noarch.rpm"); !bytes.Equal(got, b) {
		t.Error("the package came back as another")
	}
	if !strings.Contains(r.document("filelists"), "<file>/usr/share/doc/y</file>") || !strings.Contains(r.document("other"), ">newest</changelog>") {
		t.Error("filelists or other lack what the package has")
	}
	// Who holds an older repomd.xml finds what that names.
	for _, part := range strings.Split(string(old), `href="`)[1:] {
		href, _, _ := strings.Cut(part, `"`)
		r.get(href)
	}
	r.expect(404, "GET", "repodata/none.xml", nil)
	r.expect(404, "GET", "Packages/none-1-1.noarch.rpm", nil)
	r.expect(404, "GET", "other", nil)
}

func TestRefusals(t *testing.T) {
	r := start(t, catalogtest.Options{})
	p := named("hello", "1.0")
	b := r.put(p)
	r.expect(200, "PUT", p.File(), b)
	other := named("hello", "1.0", func(p *rpmtest.Package) { p.Summary = "other bytes" })
	r.expect(409, "PUT", "Packages/"+p.File(), other.Bytes())
	epoch := named("hello", "1.0", func(p *rpmtest.Package) { p.Epoch = 7 })
	r.expect(409, "PUT", "Packages/"+p.File(), epoch.Bytes())
	for path, body := range map[string][]byte{
		"Packages/hello-1.1-1.noarch.rpm":   b,
		"Packages/hello-1.0-1.x86_64.rpm":   b,
		"Packages/hello.rpm":                b,
		"Packages/x/hello-1.0-1.noarch.rpm": b,
		"Packages/cut-1.0-1.noarch.rpm":     b[:500],
		"Packages/none-1.0-1.noarch.rpm":    nil,
		"repodata/repomd.xml":               b,
	} {
		r.expect(400, "PUT", path, body)
	}
	r.lists("hello 1.0-1")
}

// A file list that is too long for a summary.
func TestLongFileList(t *testing.T) {
	r := start(t, catalogtest.Options{})
	p := named("hello", "1.0", func(p *rpmtest.Package) {
		for i := range 3000 {
			p.Files["/usr/share/"+digest.FromBytes(fmt.Append(nil, i)).Encoded()] = nil
		}
	})
	b := r.put(p)
	if n := strings.Count(r.document("filelists"), "<file>"); n != 3002 {
		t.Errorf("%d files are listed", n)
	}
	// Who did not hear the answer uploads it again.
	r.expect(200, "PUT", "Packages/"+p.File(), b)
}

func TestGroup(t *testing.T) {
	r := start(t, catalogtest.Options{})
	b := r.put(named("hello", "1.0"))
	second := r.in("acme/second")
	second.put(named("hello", "1.0", func(p *rpmtest.Package) { p.Summary = "of the second" }))
	second.put(named("hello", "2.0"))
	r.Group(t, "acme/all", rpm.Format, "rpm", "rpm", "second")
	all := r.in("acme/all")
	all.put(named("through", "1.0"))
	all.lists("hello 1.0-1", "hello 2.0-1", "through 1.0-1")
	if got := all.get("Packages/hello-1.0-1.noarch.rpm"); !bytes.Equal(got, b) {
		t.Error("the group serves another package than the first member's")
	}
	r.lists("hello 1.0-1", "through 1.0-1")
}

func TestProxy(t *testing.T) {
	r := start(t, catalogtest.Options{})
	above := r.in("acme/above")
	b := above.put(named("hello", "1.0"))
	registry := upstreamtest.NewRegistry(t)
	paths := []string{"repodata/repomd.xml", "repodata/repomd.xml.asc", "Packages/h/hello-1.0-1.noarch.rpm"}
	registry.Put("os/"+paths[0], above.get(paths[0]), `ETag: "1"`)
	registry.Put("os/"+paths[1], above.get(paths[1]))
	registry.Put("os/"+paths[2], b)
	for _, part := range strings.Split(string(above.get(paths[0])), `href="`)[1:] {
		href, _, _ := strings.Cut(part, `"`)
		paths = append(paths, href)
		registry.Put("os/"+href, above.get(href))
	}
	r.Proxy(t, "acme/proxy", rpm.Format, registry.URL+"/os")
	proxy := r.in("acme/proxy")
	want := map[string][]byte{}
	for _, path := range paths {
		want[path] = proxy.get(path)
	}
	if !bytes.Equal(want[paths[2]], b) || !bytes.Equal(want[paths[0]], above.get(paths[0])) {
		t.Error("the proxy changed what it handed on")
	}
	proxy.expect(405, "PUT", "Packages/hello-1.0-1.noarch.rpm", b)
	proxy.expect(404, "GET", "Packages/none-1.0-1.noarch.rpm", nil)
	registry.Cut(true)
	for _, path := range paths {
		if got := proxy.get(path); !bytes.Equal(got, want[path]) {
			t.Errorf("%s is another without the upstream", path)
		}
	}
	registry.Cut(false)
	wrong := "repodata/" + digest.FromBytes([]byte("right")).Encoded() + "-primary.xml.gz"
	registry.Put("os/"+wrong, []byte("wrong"))
	proxy.expect(502, "GET", wrong, nil)
}

func TestRace(t *testing.T) {
	r := start(t, catalogtest.Options{})
	r.put(named("hello", "1.0"))
	catalogtest.Race(t, 20, 201, 409, func(i int) func() catalogtest.Answer {
		p := named("hello", "2.0", func(p *rpmtest.Package) { p.Summary = fmt.Sprint("seed ", i) })
		body := p.Bytes()
		return func() catalogtest.Answer { return r.do("PUT", "Packages/"+p.File(), body) }
	})
	r.lists("hello 1.0-1", "hello 2.0-1")
}

func TestProtocol(t *testing.T) {
	r := start(t, catalogtest.Options{})
	r.put(named("hello", "1.0"))
	const name = "/rpm/acme/rpm"
	protocoltest.Run(t, protocoltest.Case{
		Protocol: r.rpm, Metadata: access.Records{Asker: r.Metadata},
		Repo: meta.RepoRef{Tenant: "acme", Name: "rpm"}, Absent: meta.RepoRef{Tenant: "acme", Name: "rpx"},
		Reads: []protocoltest.Request{
			{Method: "GET", Path: name + "/repodata/repomd.xml"},
			{Method: "GET", Path: name + "/Packages/hello-1.0-1.noarch.rpm"},
			{Method: "GET", Path: name + "/key.asc"},
		},
		Writes: []protocoltest.Request{{Method: "PUT", Path: name + "/Packages/hello-2.0-1.noarch.rpm", Body: []byte("x")}},
		CheckError: func(_ int, h http.Header, body []byte) error {
			if !strings.HasPrefix(h.Get("Content-Type"), "text/plain") || !bytes.HasSuffix(body, []byte("\n")) {
				return fmt.Errorf("no line of text: %q", body)
			}
			return nil
		},
	})
}

func TestConversations(t *testing.T) {
	r := start(t, catalogtest.Options{})
	r.put(named("hello", "1.0"))
	catalogtest.Converse(t, r.Stack.Stack, "testdata/refusals.txtar", *update, "")
}

// The three documents say what createrepo_c says.
func TestOracle(t *testing.T) {
	if _, err := exec.LookPath("createrepo_c"); err != nil {
		t.Skip("no createrepo_c on this machine")
	}
	r := start(t, catalogtest.Options{})
	dir := t.TempDir()
	for _, p := range []rpmtest.Package{
		named("hello", "1.0"),
		named("odd", "1.0~rc1", func(p *rpmtest.Package) { p.Epoch, p.Arch, p.Summary = 4, "x86_64", "<b>&\"'" }),
		named("plain", "1", func(p *rpmtest.Package) { p.Files, p.Requires, p.Provides, p.Log = nil, nil, nil, nil }),
	} {
		if err := os.WriteFile(filepath.Join(dir, p.File()), r.put(p), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := exec.CommandContext(t.Context(), "createrepo_c", "--quiet", dir).CombinedOutput(); err != nil {
		t.Fatalf("createrepo_c: %v\n%s", err, b)
	}
	for _, kind := range []string{"primary", "filelists", "other"} {
		paths, err := filepath.Glob(filepath.Join(dir, "repodata", "*-"+kind+".xml.gz"))
		if err != nil || len(paths) != 1 {
			t.Fatalf("createrepo_c made %v: %v", paths, err)
		}
		f, err := os.Open(paths[0])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		want, got := elements(t, z), elements(t, strings.NewReader(r.document(kind)))
		if !slices.Equal(got, want) {
			t.Errorf("%s: %s\nwant %s", kind, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// elements lists the packages of a document, in order, each as one text of its elements
// but for what differs by where and when it was made.
func elements(t *testing.T, r io.Reader) (packages []string) {
	t.Helper()
	d := xml.NewDecoder(r)
	var b strings.Builder
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			slices.Sort(packages)
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if token.Name.Local == "package" {
				b.Reset()
			}
			b.WriteString("<" + token.Name.Local)
			for _, a := range token.Attr {
				if token.Name.Local != "location" && a.Name.Local != "file" && a.Name.Local != "archive" {
					b.WriteString(" " + a.Name.Local + "=" + a.Value)
				}
			}
			b.WriteString(">")
		case xml.CharData:
			b.WriteString(strings.TrimSpace(string(token)))
		case xml.EndElement:
			if token.Name.Local == "package" {
				packages = append(packages, b.String())
			}
		}
	}
}

// The rules of a proxy hold for packages however their files are named.
func TestProxyRules(t *testing.T) {
	r := start(t, catalogtest.Options{})
	registry := upstreamtest.NewRegistry(t)
	files := []string{
		"Packages/evil-1.0-1.noarch.rpm", "Packages/evil.rpm", "Packages/evil-1:1.0-1.noarch.rpm", "evil-1.0-1.noarch.rpm;x=1", "evil.RPM",
		strings.Repeat("0", 64) + "-evil.rpm", "drpms/evil-1.0-1_1.0-2.noarch.drpm",
	}
	for _, path := range files {
		registry.Put(path, []byte("evil"))
	}
	r.Proxy(t, "acme/ruled", rpm.Format, registry.URL, func(u *meta.Upstream) { u.Block = []string{"evil"} })
	for _, path := range files {
		r.in("acme/ruled").expect(403, "GET", path, nil)
	}
	if n := registry.Total(); n != 0 {
		t.Errorf("the upstream was asked %d times for what is blocked", n)
	}
	r.Proxy(t, "acme/free", rpm.Format, registry.URL)
	r.in("acme/free").get("Packages/evil.rpm")
}
