package npm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// recorded notes what a receiver gets.
type recorded struct {
	versions map[string]string
	data     map[string]string
}

func (r *recorded) receiver() receiver {
	r.versions, r.data = map[string]string{}, map[string]string{}
	return receiver{
		version: func(v string, m []byte) error { r.versions[v] = string(m); return nil },
		attachment: func(name string, data io.Reader) error {
			b, err := io.ReadAll(data)
			r.data[name] = string(b)
			return err
		},
	}
}

const sample = `{
	"_id": "demo", "name": "demo", "_rev": "7", "readme": "a \"quoted\" { [ \\",
	"_attachments": {"demo-1.0.0.tgz": {"content_type": "application/octet-stream", "data": "QUJD\/w==", "length": 4}},
	"dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {"name": "demo", "n": [1, {"a": null}], "t": true}}, "access": null, "x": -1.5e3 }
`

func TestReadDocument(t *testing.T) {
	// In one piece, and byte by byte.
	for _, r := range []io.Reader{strings.NewReader(sample), iotest.OneByteReader(strings.NewReader(sample))} {
		var got recorded
		d, err := readDocument(r, got.receiver())
		if err != nil {
			t.Fatal(err)
		}
		if d.ID != "demo" || d.Name != "demo" || d.Rev != "7" || d.Tags["latest"] != "1.0.0" || d.Versions != 1 || d.Attachments != 1 {
			t.Errorf("%+v", d)
		}
		if got.data["demo-1.0.0.tgz"] != "QUJD/w==" || got.versions["1.0.0"] != `{"name": "demo", "n": [1, {"a": null}], "t": true}` {
			t.Errorf("%+v", got)
		}
	}
}

func TestReadDocumentRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": "", "no object": `[]`, "a number": `1`, "cut off": sample[:len(sample)-10], "cut off in the data": sample[:160], "more behind": sample + "{}",
		"names twice": `{"name":"a","name":"b"}`, "versions twice": `{"versions":{},"versions":{}}`, "tags of numbers": `{"dist-tags":{"a":1}}`,
		"no names": `{1:2}`, "a comma too many": `{"a":1,}`, "no comma": `{"a":1 "b":2}`, "no value": `{"a":}`, "a word": `{"name":nope}`,
		"an escaped tarball": `{"_attachments":{"x":{"data":"A\u0041"}}}`, "data twice": `{"_attachments":{"x":{"data":"","data":""}}}`, "data that is no text": `{"_attachments":{"x":{"data":1}}}`,
		"deep": `{"x":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `}`, "closed too often": `{"x":]}`,
		"no UTF-8": "{\"versions\":{\"1.0.0\":{\"a\":\"\xff\"}}}",
	} {
		var got recorded
		if _, err := readDocument(strings.NewReader(text), got.receiver()); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"a large manifest": `{"versions":{"1.0.0":{"a":"` + strings.Repeat("x", maxManifestBytes) + `"}}}`,
		"many tags":        `{"dist-tags":{"a":"` + strings.Repeat("x", maxTagsBytes) + `"}}`,
		"a long name":      `{"` + strings.Repeat("x", maxKeyBytes) + `":1}`,
	} {
		var got recorded
		if _, err := readDocument(strings.NewReader(text), got.receiver()); !errors.Is(err, meta.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("the line is cut")
	if _, err := readDocument(io.MultiReader(strings.NewReader(sample[:100]), iotest.ErrReader(broken)), (&recorded{}).receiver()); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}

// What a large document holds beside manifests is not held: 32 MiB pass a scanner that
// has 64 KiB.
func TestReadDocumentStreams(t *testing.T) {
	const bytes = 16 << 20
	r := io.MultiReader(strings.NewReader(`{"readme":"`), io.LimitReader(&repeated{text: "0123456789abcdef"}, bytes),
		strings.NewReader(`","_attachments":{"x":{"data":"`), io.LimitReader(&repeated{text: "0123456789abcdef"}, bytes), strings.NewReader(`"}}}`))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got := int64(0)
	_, err := readDocument(r, receiver{attachment: func(_ string, data io.Reader) (err error) {
		got, err = io.Copy(io.Discard, data)
		return err
	}})
	runtime.ReadMemStats(&after)
	if err != nil || got != bytes {
		t.Errorf("%d bytes came: %v", got, err)
	}
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 4<<20 {
		t.Errorf("%d bytes were allocated on the way", allocated)
	}
}

type repeated struct {
	text string
	at   int
}

func (r *repeated) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = r.text[r.at%len(r.text)]
		r.at++
	}
	return len(p), nil
}

// entry is one of a tarball.
type entry struct {
	name, body, link string
	kind             byte
}

func packed(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.body)), Typeflag: tar.TypeReg, Linkname: e.link}
		if e.kind != 0 {
			h.Typeflag, h.Size = e.kind, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(e.body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestScanTarball(t *testing.T) {
	ball := packed(t, entry{name: "package/package.json", body: `{"name":"x"}`}, entry{name: "package/", kind: tar.TypeDir},
		entry{name: "package/binding.gyp", body: "{}"}, entry{name: "package/lib/package.json", body: `{}`}, entry{name: "package/l", kind: tar.TypeSymlink, link: "lib/package.json"})
	c, err := scanTarball(bytes.NewReader(ball), int64(len(ball)))
	if err != nil || string(c.manifest) != `{"name":"x"}` || c.files != 3 || c.bytes != 16 || !c.gyp {
		t.Errorf("%+v, %v", c, err)
	}
	one := entry{name: "package/package.json", body: "{}"}
	whole := packed(t, one)
	for name, bad := range map[string][]byte{
		"nothing": nil, "no gzip": []byte("hello"), "cut off": whole[:len(whole)-9], "no package.json": packed(t, entry{name: "package/x", body: "x"}),
		"package.json outside": packed(t, entry{name: "package.json", body: "{}"}), "two": packed(t, one, entry{name: "other/package.json", body: "{}"}),
		"out of the folder": packed(t, one, entry{name: "package/../../x", body: "x"}), "absolute": packed(t, one, entry{name: "/etc/x", body: "x"}),
		"a link out": packed(t, one, entry{name: "package/l", kind: tar.TypeSymlink, link: "../../etc/passwd"}), "a device": packed(t, one, entry{name: "package/d", kind: tar.TypeChar}),
		"another case": packed(t, one, entry{name: "package/Package.json", body: "{}"}), "a backslash": packed(t, one, entry{name: `package\package.json`, body: "{}"}),
		"a large package.json": packed(t, entry{name: "package/package.json", body: strings.Repeat(" ", maxPackageJSON+1)}),
	} {
		if _, err := scanTarball(bytes.NewReader(bad), int64(len(bad))); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("the line is cut")
	if _, err := scanTarball(io.MultiReader(bytes.NewReader(whole[:20]), iotest.ErrReader(broken)), -1); !errors.Is(err, broken) || errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a reader that fails: %v", err)
	}
}

func TestCompose(t *testing.T) {
	s := sums{sha1: "da39a3ee5e6b4b0d3255bfef95601890afd80709", sha512: "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"}
	integrity := s.integrity()
	inside := `{"name":"demo","version":"v1.0.0+build","dependencies":{"true":"1"},"scripts":{"install":"make"},"main":"x.js"}`
	out, err := compose("demo", "1.0.0", []byte(`{"name":"demo","version":"1.0.0","readme":"long","dependencies":{"false":"1"},"deprecated":"no","bin":{"x":"x"},"scripts":{"test":"t"},"dist":{"integrity":"`+integrity+`"}}`),
		contents{manifest: []byte(inside), files: 2, bytes: 10}, s)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"_id":"demo@1.0.0","dependencies":{"true":"1"},"dist":{"shasum":"` + s.sha1 + `","integrity":"` + integrity + `","fileCount":2,"unpackedSize":10},` +
		`"hasInstallScript":true,"name":"demo","scripts":{"install":"make"},"version":"1.0.0"}`
	if string(out) != want {
		t.Errorf("composed is\n%s\nwant\n%s", out, want)
	}
	// What is linked into the path is what the tarball says; of a folder of programs the
	// client has made a list.
	for inside, want := range map[string]string{
		`"bin":"./x.js"`: `"./x.js"`, `"bin":{"y":"y"}`: `{"y":"y"}`, `"directories":{"bin":"tools"}`: `{"x":"x"}`, `"directories":{"doc":"doc"}`: "", `"main":"x"`: "",
	} {
		out, err := compose("demo", "1.0.0", []byte(`{"name":"demo","version":"1.0.0","bin":{"x":"x"},"directories":{"bin":"other"}}`),
			contents{manifest: []byte(`{"name":"demo","version":"1.0.0",` + inside + `}`)}, s)
		m, bad := parseFields(out)
		if err != nil || bad != nil || string(m["bin"]) != want || strings.Contains(string(m["directories"]), "other") {
			t.Errorf("%s: %s, %v", inside, out, err)
		}
	}
	for name, bad := range map[string][2]string{
		"another name":         {`{"name":"other","version":"1.0.0"}`, inside},
		"another version":      {`{"name":"demo","version":"1.0.1"}`, inside},
		"another name inside":  {`{"name":"demo","version":"1.0.0"}`, `{"name":"evil","version":"1.0.0"}`},
		"another inside":       {`{"name":"demo","version":"1.0.0"}`, `{"name":"demo","version":"2.0.0"}`},
		"another sum":          {`{"name":"demo","version":"1.0.0","dist":{"shasum":"00"}}`, inside},
		"another integrity":    {`{"name":"demo","version":"1.0.0","dist":{"integrity":"sha512-AAAA"}}`, inside},
		"no package.json":      {`{"name":"demo","version":"1.0.0"}`, `[]`},
		"no manifest":          {`null`, inside},
		"dist that is a word":  {`{"name":"demo","version":"1.0.0","dist":"x"}`, inside},
		"package.json no JSON": {`{"name":"demo","version":"1.0.0"}`, `{`},
	} {
		if _, err := compose("demo", "1.0.0", []byte(bad[0]), contents{manifest: []byte(bad[1])}, s); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is kept of a document's versions is bounded, however long its texts are.
func TestClaimsBounded(t *testing.T) {
	long := strings.Repeat("x", 1<<20-200)
	for name, manifest := range map[string]string{
		"integrity": `{"dist":{"integrity":"` + long + `"}}`, "shasum": `{"dist":{"shasum":"` + long + `"}}`,
		"a text": `{"deprecated":"` + long + `"}`,
	} {
		var cs claims
		if err := cs.add("1.0.0", []byte(manifest)); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var cs claims
	if err := cs.add(long, []byte("{}")); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a version of %d bytes: %v", len(long), err)
	}
	var err error
	for i := 0; err == nil && i < 100_000; i++ {
		err = cs.add(fmt.Sprintf("1.0.%d", i), fmt.Appendf(nil, `{"deprecated":"%d%0900d"}`, i, 0))
	}
	if !errors.Is(err, meta.ErrTooLarge) {
		t.Errorf("texts without end: %v", err)
	}
	cs = claims{}
	for i := range 20_000 {
		if err := cs.add(fmt.Sprintf("1.0.%d", i), fmt.Appendf(nil, `{"deprecated":"%0900d"}`, 0)); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`{"versions":{"1":{}},"_attachments":{"x":{"data":"AA=="}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got recorded
		_, err := readDocument(bytes.NewReader(b), got.receiver())
		if err != nil {
			if !errors.Is(err, meta.ErrInvalid) && !errors.Is(err, meta.ErrTooLarge) {
				t.Fatal(err)
			}
			return
		}
		// What is taken encoding/json takes as well, and finds the same in it.
		var doc struct {
			Versions    map[string]json.RawMessage `json:"versions"`
			Attachments map[string]struct {
				Data string `json:"data"`
			} `json:"_attachments"`
		}
		if bytes.Count(b, []byte("versions")) > 1 || bytes.Count(b, []byte("_attachments")) > 1 || bytes.ContainsAny(b, "\\") || bytes.Contains(bytes.ToLower(b), []byte("data")) && bytes.Count(bytes.ToLower(b), []byte("data")) > 1 {
			return // there the two differ on purpose, or in what counts of two
		}
		if json.Unmarshal(b, &doc) != nil {
			return // what is passed over is not judged
		}
		if fmt.Sprint(len(doc.Versions)) != fmt.Sprint(len(got.versions)) {
			t.Fatalf("%q: versions %v, want %v", b, got.versions, doc.Versions)
		}
	})
}

func FuzzTarball(f *testing.F) {
	f.Add(packed(f, entry{name: "package/package.json", body: `{"name":"x"}`}))
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := scanTarball(bytes.NewReader(b), int64(len(b))); err == nil && c.manifest == nil {
			t.Fatal("a tarball without package.json is taken")
		} else if err != nil && !errors.Is(err, meta.ErrInvalid) {
			t.Fatal(err)
		}
	})
}

func FuzzCompose(f *testing.F) {
	f.Add([]byte(`{"name":"demo","version":"1.0.0"}`), []byte(`{"name":"demo","version":"1.0.0","dependencies":{"a":"1"}}`))
	f.Fuzz(func(t *testing.T, manifest, inside []byte) {
		out, err := compose("demo", "1.0.0", manifest, contents{manifest: inside}, sums{sha1: "00"})
		if err != nil {
			return
		}
		m, err := parseFields(out)
		if err != nil || m.text("name") != "demo" || m.text("version") != "1.0.0" {
			t.Fatalf("%s: %v", out, err)
		}
	})
}
