package nuget

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// spec is a manifest with more of metadata in it.
func spec(id, version, more string) string {
	return `<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://schemas.microsoft.com/packaging/2013/05/nuspec.xsd"><metadata>
<id>` + id + `</id><version>` + version + `</version><authors>Ada, Grace</authors><description>A thing.</description>` + more + `</metadata></package>`
}

// part is an entry of an archive.
type part struct {
	name, content string
	mode          fs.FileMode
}

// pack makes a package; the parts come in their order.
func pack(t testing.TB, parts ...part) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, p := range parts {
		h := &zip.FileHeader{Name: p.name}
		if len(p.content) > 1000 {
			h.Method = zip.Deflate
		}
		if p.mode != 0 {
			h.SetMode(p.mode)
		}
		w, err := z.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, p.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(b []byte) (opened, error) { return openPackage(bytes.NewReader(b), int64(len(b))) }

func TestOpenPackage(t *testing.T) {
	nuspec := part{name: "Acme.Demo.nuspec", content: spec("Acme.Demo", "1.02+b.7", `
<title>Demo</title><tags>one two,three</tags><license type="expression">MIT</license><licenseUrl>https://licenses.example/MIT</licenseUrl>
<projectUrl>javascript:alert(1)</projectUrl><iconUrl>https://acme.example/i.png</iconUrl><requireLicenseAcceptance>true</requireLicenseAcceptance>
<packageTypes><packageType name="DotnetTool"/></packageTypes>
<dependencies><group targetFramework="net8.0"><dependency id="Acme.Base" version="1.0"/></group><group targetFramework="net6.0"/></dependencies>`)}
	rels := part{name: "_rels/.rels", content: `<Relationships xmlns="x"><Relationship Type="` + manifestRelation + `" Target="/Acme.Demo.nuspec" Id="R1"/></Relationships>`}
	o, err := read(pack(t, rels, nuspec, part{name: "lib/net8.0/"}, part{name: "lib/net8.0/a%20b.dll", content: "code"}, part{name: "[Content_Types].xml", content: "<Types/>"}))
	if err != nil {
		t.Fatal(err)
	}
	if string(o.nuspec) != nuspec.content {
		t.Errorf("the manifest's bytes are %q", o.nuspec)
	}
	want := manifest{
		ID: "Acme.Demo", Version: "1.2.0+b.7", Title: "Demo", Authors: "Ada, Grace", Description: "A thing.", Tags: []string{"one", "two", "three"},
		IconURL: "https://acme.example/i.png", LicenseURL: "https://licenses.example/MIT", License: "MIT", Accept: true, Types: []string{"DotnetTool"}, SemVer2: true,
		Groups: []group{{Framework: "net8.0", Dependencies: []dependency{{"Acme.Base", "[1.0.0, )"}}}, {Framework: "net6.0"}},
	}
	if got, want := fmt.Sprintf("%+v", o.manifest), fmt.Sprintf("%+v", want); got != want {
		t.Errorf("the manifest is\n%s, want\n%s", got, want)
	}
}

func TestOpenPackageRefuses(t *testing.T) {
	good := part{name: "a.nuspec", content: spec("a", "1.0.0", "")}
	zeros := strings.Repeat("\x00", 80<<20)
	for name, parts := range map[string][]part{
		"no manifest":              {{name: "x.txt", content: "x"}},
		"a manifest in a folder":   {{name: "d/a.nuspec", content: good.content}},
		"two manifests":            {good, {name: "b.nuspec", content: good.content}},
		"another's name":           {{name: "b.nuspec", content: good.content}},
		"no XML":                   {{name: "a.nuspec", content: "a: 1"}},
		"another root":             {{name: "a.nuspec", content: "<project/>"}},
		"two roots":                {{name: "a.nuspec", content: good.content + "<more/>"}},
		"an unknown encoding":      {{name: "a.nuspec", content: `<?xml version="1.0" encoding="big5"?><package/>`}},
		"an entity":                {{name: "a.nuspec", content: `<!DOCTYPE a [<!ENTITY e "x">]>` + strings.Replace(good.content[39:], "A thing", "&e;", 1)}},
		"two ids":                  {{name: "a.nuspec", content: spec("b", "1.0.0", "<id>a</id>")}},
		"two versions":             {{name: "a.nuspec", content: spec("a", "1.0.0", "<version>2.0.0</version>")}},
		"two times metadata":       {{name: "a.nuspec", content: `<package><metadata><id>b</id><version>1.0.0</version></metadata><metadata><id>a</id></metadata></package>`}},
		"no id":                    {{name: "a.nuspec", content: spec("", "1.0.0", "")}},
		"an id that climbs":        {{name: "a.nuspec", content: spec("../a", "1.0.0", "")}},
		"a version that climbs":    {{name: "a.nuspec", content: spec("a", "../1", "")}},
		"a dependency that climbs": {{name: "a.nuspec", content: spec("a", "1.0.0", `<dependencies><dependency id="../b" version="1"/></dependencies>`)}},
		"a bad range":              {{name: "a.nuspec", content: spec("a", "1.0.0", `<dependencies><dependency id="b" version="[2,1]"/></dependencies>`)}},
		"too many dependencies":    {{name: "a.nuspec", content: spec("a", "1.0.0", "<dependencies>"+strings.Repeat(`<dependency id="b"/>`, maxDependencies+1)+"</dependencies>")}},
		"a manifest of 2 MiB":      {{name: "a.nuspec", content: good.content + strings.Repeat(" ", 2<<20)}},
		"a path that climbs":       {good, {name: "../x", content: "x"}},
		"a path that climbs late":  {good, {name: "lib/../../x", content: "x"}},
		"an escaped path":          {good, {name: "lib/%2e%2e/%2e%2e/x", content: "x"}},
		"a backslashed path":       {good, {name: `lib\..\..\x`, content: "x"}},
		"an absolute path":         {good, {name: "/etc/x", content: "x"}},
		"a drive":                  {good, {name: "c:/x", content: "x"}},
		"a link":                   {good, {name: "lib/l", content: "/etc/passwd", mode: fs.ModeSymlink | 0o777}},
		"a name twice":             {good, {name: "x", content: "1"}, {name: "x", content: "2"}},
		"a name in two cases":      {good, {name: "lib/X", content: "1"}, {name: "LIB/x", content: "2"}},
		"a name with a dot":        {good, {name: "./a.nuspec", content: spec("b", "1.0.0", "")}},
		"a name with two slashes":  {good, {name: "lib//x", content: "x"}},
		"a name escaped again":     {good, {name: "lib/a b", content: "1"}, {name: "lib/a%20b", content: "2"}},
		"relations to another":     {good, {name: "_rels/.rels", content: `<r><Relationship Type="` + manifestRelation + `" Target="/lib/b.nuspec"/></r>`}},
		"relations of no XML":      {good, {name: "_rels/.rels", content: "<r"}},
		"a bomb":                   {good, {name: "lib/z", content: zeros}},
	} {
		if o, err := read(pack(t, parts...)); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v, %+v", name, err, o.manifest)
		}
	}
	whole := pack(t, good, part{name: "lib/x", content: strings.Repeat("0123456789", 100)})
	for name, b := range map[string][]byte{"nothing": nil, "no zip": []byte("hello"), "half": whole[:len(whole)/2], "no front": whole[10:], "a wrong sum": wrongSum(whole), "overlapping entries": overlapping(t)} {
		if _, err := read(b); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// wrongSum changes the bytes of the last entry's sum in the directory.
func wrongSum(b []byte) []byte {
	b = bytes.Clone(b)
	at := bytes.LastIndex(b, []byte("PK\x01\x02"))
	b[at+16] ^= 1
	return b
}

// overlapping makes an archive whose directory names one entry's bytes many times.
func overlapping(t *testing.T) []byte {
	t.Helper()
	nuspec := spec("a", "1.0.0", "")
	body := strings.Repeat("x", 5000)
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, p := range []part{{name: "a.nuspec", content: nuspec}, {name: "0000", content: body}} {
		w, err := z.CreateRaw(&zip.FileHeader{Name: p.name, CRC32: crc32.ChecksumIEEE([]byte(p.content)), CompressedSize64: uint64(len(p.content)), UncompressedSize64: uint64(len(p.content))})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, p.content)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	raw := b.Bytes()
	first := bytes.Index(raw, []byte("PK\x01\x02"))
	last, end := bytes.LastIndex(raw, []byte("PK\x01\x02")), bytes.LastIndex(raw, []byte("PK\x05\x06"))
	record := raw[last:end]
	out := bytes.Clone(raw[:end])
	for i := 1; i <= 8; i++ {
		again := bytes.Clone(record)
		copy(again[46:], fmt.Sprintf("%04d", i))
		out = append(out, again...)
	}
	tail := bytes.Clone(raw[end:])
	binary.LittleEndian.PutUint16(tail[8:], 10)
	binary.LittleEndian.PutUint16(tail[10:], 10)
	binary.LittleEndian.PutUint32(tail[12:], uint32(len(out)-first))
	return append(out, tail...)
}

// A disk that fails is no fault of the package.
func TestOpenPackageDisk(t *testing.T) {
	b := pack(t, part{name: "a.nuspec", content: spec("a", "1.0.0", "")})
	broken := errors.New("broken disk")
	for at := range int64(3) {
		r := &failingReader{b: b, left: at, err: broken}
		if _, err := openPackage(r, int64(len(b))); !errors.Is(err, broken) || errors.Is(err, meta.ErrInvalid) {
			t.Errorf("after %d reads: %v", at, err)
		}
	}
}

type failingReader struct {
	b    []byte
	left int64
	err  error
}

func (r *failingReader) ReadAt(p []byte, off int64) (int, error) {
	if r.left--; r.left < 0 {
		return 0, r.err
	}
	return bytes.NewReader(r.b).ReadAt(p, off)
}

func TestManifestEncodings(t *testing.T) {
	text := strings.Replace(spec("Acme.Ümlaut", "1.0.0", ""), "utf-8", "utf-16", 1)
	text = strings.Replace(text, "Acme.Ümlaut", "Acme.Demo", 1)
	text = strings.Replace(text, "A thing.", "Ein Ding für alle 🐟", 1)
	units := utf16.Encode([]rune(text))
	little, big := []byte{0xFF, 0xFE}, []byte{0xFE, 0xFF}
	for _, u := range units {
		little = binary.LittleEndian.AppendUint16(little, u)
		big = binary.BigEndian.AppendUint16(big, u)
	}
	for name, b := range map[string][]byte{"UTF-16LE": little, "UTF-16BE": big, "UTF-8 with a mark": append([]byte{0xEF, 0xBB, 0xBF}, strings.Replace(text, "utf-16", "utf-8", 1)...)} {
		if m, err := parseManifest(b); err != nil || m.Description != "Ein Ding für alle 🐟" {
			t.Errorf("%s: %q, %v", name, m.Description, err)
		}
	}
	if _, err := parseManifest(little[:len(little)-1]); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("half a unit: %v", err)
	}
	m, err := parseManifest([]byte(strings.Replace(spec("a", "1", ""), "A thing.", strings.Repeat("é", 10_000), 1)))
	if err != nil || len(m.Description) > maxTextBytes || strings.Trim(m.Description, "é") != "" {
		t.Errorf("a long text is cut to %d bytes: %v", len(m.Description), err)
	}
}

func TestSummary(t *testing.T) {
	m, err := parseManifest([]byte(spec("a", "1.0.0", "<summary>"+strings.Repeat("s", 5000)+"</summary><dependencies>"+strings.Repeat(`<dependency id="Some.Long.Dependency" version="[1.0,2.0)"/>`, 1000)+"</dependencies>")))
	if err != nil {
		t.Fatal(err)
	}
	b, err := summarize(m)
	if err != nil || len(b) > meta.MaxSummaryBytes || !bytes.Contains(b, []byte(`"long":true`)) || bytes.Contains(b, []byte("Some.Long")) {
		t.Errorf("%d bytes: %v", len(b), err)
	}
	// Escapes make texts six times as long.
	long := strings.Repeat("\x01", maxTextBytes)
	if b, err := summarize(manifest{ID: "a", Version: "1.0.0", Description: long, Summary: long}); err != nil || len(b) > meta.MaxSummaryBytes {
		t.Errorf("%d bytes: %v", len(b), err)
	}
	if b, err := summarize(manifest{ID: "a", Version: "1.0.0", Title: long, Authors: long}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("%d bytes: %v", len(b), err)
	}
}

func FuzzOpenPackage(f *testing.F) {
	good := part{name: "a.nuspec", content: spec("a", "1.0.0", "")}
	f.Add(pack(f, good))
	f.Add(pack(f, good, part{name: "../x", content: "x"}))
	f.Add(wrongSum(pack(f, good, part{name: "x", content: "x"})))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := read(b)
		if err == nil && o.manifest.ID == "" || err != nil && !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%+v, %v", o.manifest, err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(spec("Acme.Demo", "1.0.0-beta.1", `<dependencies><group><dependency id="b" version="[1,2)"/></group></dependencies>`)))
	f.Add([]byte{0xFF, 0xFE, '<', 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			if !errors.Is(err, meta.ErrInvalid) {
				t.Error(err)
			}
			return
		}
		if _, err := parseID(m.ID); err != nil {
			t.Error(err)
		}
		if _, err := parseVersion(m.Version); err != nil && len(m.Version) <= maxVersionBytes {
			t.Error(err)
		}
		if s, err := summarize(m); err == nil && len(s) > meta.MaxSummaryBytes {
			t.Errorf("a summary of %d bytes", len(s))
		}
	})
}
