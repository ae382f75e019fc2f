package cargo

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

func known(err error) bool {
	return errors.Is(err, meta.ErrInvalid) || errors.Is(err, meta.ErrTooLarge)
}

// What a publish makes of a body is a line that cargo reads, or a refusal.
func FuzzPublish(f *testing.F) {
	about := `{"name":"demo","vers":"1.0.0","deps":[{"name":"a","version_req":"^1","kind":"normal","target":"cfg(unix)","explicit_name_in_toml":"b"}],"features":{"x":["dep:b"],"y":[]}}`
	f.Add([]byte("\xa3\x00\x00\x00" + about + "\x01\x00\x00\x00x"))
	f.Add([]byte("\x02\x00\x00\x00{}\x00\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		r := bytes.NewReader(body)
		n, err := frame(r, "metadata", maxMetadataBytes)
		if err != nil {
			if !known(err) {
				t.Fatalf("refused as %v", err)
			}
			return
		}
		about, err := io.ReadAll(io.LimitReader(r, n))
		if err != nil {
			t.Fatal(err)
		}
		m, err := parseMetadata(about)
		if err != nil {
			if !known(err) {
				t.Fatalf("refused as %v", err)
			}
			return
		}
		if c, err := readCrate(r); err == nil {
			if _, err := io.Copy(io.Discard, c); err != nil && !known(err) {
				t.Fatalf("a crate is refused as %v", err)
			}
		} else if !known(err) {
			t.Fatalf("a crate is refused as %v", err)
		}
		if checkName(m.Name) != nil {
			return
		}
		version, err := versionName(m.Vers)
		if err != nil {
			return
		}
		if err := errors.Join(meta.CheckPackage(normalize(m.Name)), meta.CheckVersion(version)); err != nil {
			t.Errorf("%q %q: %v", m.Name, version, err)
		}
		l, err := newLine(m, strings.Repeat("0", 64))
		if err != nil {
			if !known(err) {
				t.Errorf("refused as %v", err)
			}
			return
		}
		kept, err := l.encode()
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := withYanked(&out, kept, true); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(out.Bytes(), []byte("\n")) != 1 {
			t.Errorf("%d lines of one version", bytes.Count(out.Bytes(), []byte("\n")))
		}
		var back struct {
			Name, Vers string
			Yanked     bool
		}
		if err := json.Unmarshal(out.Bytes(), &back); err != nil || back.Name != m.Name || back.Vers != m.Vers || !back.Yanked {
			t.Errorf("%s: %+v, %v", out.Bytes(), back, err)
		}
		for k, v := range annotations(m) {
			if len(v) > maxAnnotationBytes {
				t.Errorf("%s has %d bytes", k, len(v))
			}
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte("[package]\nname = \"demo\"\nversion = \"1.0.0\"\n[dependencies]\na = \"1\"\n[target.'cfg(unix)'.dev-dependencies.b]\nversion = \"2\"\n"))
	f.Add([]byte("package = 1\n"))
	f.Add([]byte("a.a.a.a = [[[[[{x=1}]]]]]"))
	f.Add([]byte("[dependencies]\na = 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			if !known(err) {
				t.Fatalf("refused as %v", err)
			}
			return
		}
		if err := (&metadata{Name: "demo", Vers: "1.0.0"}).check(m); err != nil && !known(err) {
			t.Errorf("compared as %v", err)
		}
	})
}

func FuzzCrate(f *testing.F) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	text := "[package]\nname = \"demo\"\nversion = \"1.0.0\"\n"
	if err := w.WriteHeader(&tar.Header{Name: "demo-1.0.0/Cargo.toml", Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
		f.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()/2])
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := checkCrate("demo", "1.0.0", bytes.NewReader(b), int64(len(b))); err != nil && !known(err) || err == nil && m == nil {
			t.Errorf("%+v, %v", m, err)
		}
	})
}

// What an upstream says leads to an address or to a refusal, never out of it.
func FuzzUpstream(f *testing.F) {
	f.Add([]byte(`{"dl":"https://example.com/{prefix}/{crate}-{version}.crate"}`), []byte(`{"name":"demo","vers":"1.0.0","cksum":"00"}`))
	f.Add([]byte(`{"dl":"x"}`), []byte("\n\n{}"))
	f.Add([]byte(`{}`), []byte("{"))
	f.Fuzz(func(t *testing.T, config, lines []byte) {
		err := scan(bytes.NewReader(lines), func(text []byte) (bool, error) {
			var e entry
			if json.Unmarshal(text, &e) != nil {
				return false, nil
			}
			at, err := expand(config, &e)
			if err != nil && !errors.Is(err, protocol.ErrUpstream) || err == nil && at == "" {
				t.Errorf("%q leads to %q, %v", text, at, err)
			}
			return false, nil
		})
		if err != nil && len(lines) < maxLineBytes {
			t.Errorf("%v", err)
		}
	})
}

func TestNames(t *testing.T) {
	for version, want := range map[string]string{"1.2.3": "1.2.3", "1.2.3-rc.1": "1.2.3-rc.1", "1.2.3+b": "1.2.3", "1.2.3-a+b.c": "1.2.3-a", "0.0.0": "0.0.0"} {
		if got, err := versionName(version); err != nil || got != want {
			t.Errorf("%s is %s, %v", version, got, err)
		}
	}
	for _, version := range []string{"", "1", "1.2", "v1.2.3", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3+", "1.2.3-01", " 1.2.3", "1.2.3\n"} {
		if got, err := versionName(version); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q is %s, %v", version, got, err)
		}
	}
	for name, want := range map[string]string{"a": "1/a", "Ab": "2/ab", "a_b": "3/a/a_b", "Cargo": "ca/rg/cargo", "serde-json": "se/rd/serde-json"} {
		if got := indexPath(name); got != want || checkName(name) != nil {
			t.Errorf("%s is at %s, %v", name, got, checkName(name))
		}
	}
	if higher("1.0.0-rc.1", "0.9.0") || !higher("1.0.0", "1.0.0-rc.1") || !higher("1.10.0", "1.9.0") || !higher("0.1.0-a", "") {
		t.Error("the wrong version is the higher one")
	}
}
