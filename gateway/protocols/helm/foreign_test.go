package helm

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzIndex(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nentries:\n  a:\n  - name: a\n    version: 1.0.0\n    urls:\n    - x\n"))
	f.Add([]byte(`{"entries":{"a":[{"name":"a","version":"1","urls":["x"]}]}}`))
	f.Add([]byte("entries: {}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var all []chart
		err := readIndex(bytes.NewReader(b), every, func(ch chart) bool {
			if checkName(ch.Name) != nil || checkVersion(ch.Version) != nil || len(ch.URLs) == 0 {
				t.Errorf("%+v", ch)
			}
			all = append(all, ch.here())
			return true
		})
		if err != nil {
			return
		}
		var out bytes.Buffer
		err = writeIndex(&out, func(yield func(chart, error) bool) {
			for _, ch := range all {
				if !yield(ch, nil) {
					return
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := readIndex(&out, every, func(chart) bool { n++; return true }); err != nil || n != len(all) {
			t.Errorf("%d of %d are read back: %v", n, len(all), err)
		}
	})
}

func FuzzChart(f *testing.F) {
	f.Add([]byte("apiVersion: v2\nname: a\nversion: 1.0.0\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ch, err := parseChart(b)
		if err != nil {
			return
		}
		if raw, err := ch.summarize(); err == nil && len(raw) > 24<<10 {
			t.Errorf("%d bytes", len(raw))
		}
	})
}

// A chart that says one text many times, in a few bytes of YAML, is left out.
func TestIndexAliases(t *testing.T) {
	index := "entries:\n  a:\n  - name: a\n    version: 1.0.0\n    urls: [x]\n    sources:\n    - &s " + strings.Repeat("x", 50<<10) +
		strings.Repeat("\n    - *s", 400) + "\n  - name: a\n    version: 2.0.0\n    urls: [x]\n    sources: [&s y, *s]\n"
	var got []string
	if err := readIndex(strings.NewReader(index), every, func(ch chart) bool {
		got = append(got, ch.Version)
		return true
	}); err != nil || strings.Join(got, " ") != "2.0.0" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCoordinates(t *testing.T) {
	for stem, want := range map[string]string{
		"app-1.0.0": "app@1.0.0", "my-app-1.0.0-rc-1": "my-app@1.0.0-rc-1 my-app-1.0.0-rc@1", "app-2-1.0.0": "app@2-1.0.0 app-2@1.0.0", "app": "", "-1": "", "app-v1.2": "app@v1.2",
		"a" + strings.Repeat("-1", 20): "a@1-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1-1",
	} {
		var got []string
		for _, c := range coordinates(stem) {
			got = append(got, c.name+"@"+c.version)
		}
		if s := strings.Join(got, " "); s != want && (len(got) < maxCoordinates || !strings.HasPrefix(s, want)) {
			t.Errorf("%s: %s", stem, s)
		}
	}
}
