package nuget

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog/catalogtest"
	"github.com/shoal-registry/shoal/gateway/upstream/upstreamtest"
	"github.com/shoal-registry/shoal/verify/digest"
)

func squeezed(t *testing.T, text []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestHostileDocuments: what an upstream says in gzip, in lists without end, or in one huge
// leaf takes no memory beyond its bounds, and is refused or left out.
func TestHostileDocuments(t *testing.T) {
	g := newGallery(t)
	f := start(t, catalogtest.Options{})
	f.Proxy(t, "acme/up", Format, g.URL)
	f = f.at("acme/up")
	leaf := func(version, more string) string {
		return fmt.Sprintf(`{"catalogEntry":{"id":"Odd","version":%q,"x":1.50%s},"y":"<&>"}`, version, more)
	}
	index := func(items ...string) []byte {
		return fmt.Appendf(nil, `{"items":[{"lower":"1.0.0","upper":"9.0.0","count":%d,"items":[%s]}]}`, len(items), strings.Join(items, ","))
	}
	at := "registrations/gz-semver2/odd/index.json"
	for name, text := range map[string][]byte{
		"a bomb":         squeezed(t, make([]byte, maxRegistrationBytes+1)),
		"cut off":        squeezed(t, index(leaf("1.0.0", "")))[:40],
		"too many pages": []byte(`{"items":[` + strings.Repeat(`{},`, maxListed) + `{}]}`),
		"no JSON":        []byte(`{"items":[{`),
	} {
		g.Put("reg/odd/index.json", text)
		if a := f.do("GET", at, nil); a.StatusCode != http.StatusBadGateway {
			t.Errorf("%s: %d %.200s", name, a.StatusCode, a.Text)
		}
		f.Later(1000 * indexTTL)
	}
	good := index(leaf("1.0.0", ""), `1`, `null`, `"x"`, leaf("2.0.0", `,"z":"`+strings.Repeat("z", maxLeafBytes)+`"`), leaf("3.0.0", ""))
	for _, text := range [][]byte{good, squeezed(t, good)} {
		g.Put("reg/odd/index.json", text)
		f.Later(1000 * indexTTL)
		for range 2 {
			a := f.expect(f.do("GET", at, nil), 200)
			if !strings.Contains(a.Text, `"version":"1.0.0"`) || !strings.Contains(a.Text, `"version":"3.0.0"`) || strings.Contains(a.Text, `"version":"2.0.0"`) ||
				!strings.Contains(a.Text, `"x":1.50`) {
				t.Errorf("the index is %.500s", a.Text)
			}
		}
	}
}

// TestDecodingTakesNoMoreThanText: however many elements a document has, decoding it makes
// few things in memory.
func TestDecodingTakesNoMoreThanText(t *testing.T) {
	text := []byte(`{"items":[{"lower":"1.0.0","upper":"2.0.0","items":[` + strings.Repeat(`{},`, 1<<18) + `{}]}]}`)
	made := testing.AllocsPerRun(1, func() {
		var index foreignIndex
		if err := json.Unmarshal(text, &index); err != nil || len(index.Items) != 1 || len(index.Items[0].Items) < 1<<18 {
			t.Error(err)
		}
	})
	if made > 1000 {
		t.Errorf("%v allocations", made)
	}
}

// TestDecodedDocumentsAreKept: the last documents are decoded once, within their bound, and
// what is made of them changes none.
func TestDecodedDocumentsAreKept(t *testing.T) {
	d := newDecoded()
	key := func(i int) decodedKey { return decodedKey{digest.FromBytes(fmt.Append(nil, i)), "x"} }
	const each = maxDecodedBytes / 8
	for i := range 20 {
		d.add(key(i), i, each)
		d.add(key(i), -1, each)
		if d.bytes > maxDecodedBytes || d.bytes != int64(d.docs.Len())*each {
			t.Fatalf("%d bytes in %d documents", d.bytes, d.docs.Len())
		}
	}
	if v, ok := d.get(key(19)); !ok || v != 19 {
		t.Errorf("%v, %v", v, ok)
	}
	if _, ok := d.get(key(0)); ok {
		t.Error("the oldest is kept")
	}
	d.add(key(21), 21, maxDecodedBytes)
	if _, ok := d.get(key(21)); ok || d.docs.Len() != 8 {
		t.Errorf("a huge one took the place of others, %d are left", d.docs.Len())
	}

	registry := upstreamtest.NewRegistry(t)
	above := start(t, catalogtest.Options{})
	above.push("Acme.Up", "1.0.0", "", 201)
	registry.Handle(above.Handler)
	f := start(t, catalogtest.Options{})
	f.Proxy(t, "acme/up", Format, registry.URL+"/nuget/acme/nuget")
	f = f.at("acme/up")
	paths := []string{"registrations/gz-semver2/acme.up/index.json", "registrations/plain/acme.up/index.json", "registrations/plain/acme.up/1.0.0.json"}
	first := map[string]string{}
	for range 3 {
		for _, path := range paths {
			a := f.expect(f.do("GET", path, nil), 200)
			if was, ok := first[path]; ok && was != a.Text {
				t.Errorf("%s was %s, is %s", path, was, a.Text)
			}
			first[path] = a.Text
		}
	}
}
