package maven

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const poms = `<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
  <groupId> org.example </groupId><artifactId>demo</artifactId><version>1.0</version><!-- a comment -->
  <name>J&ouml;rg &amp; Co</name>
  <dependencies><dependency><groupId>other</groupId><artifactId>other</artifactId><version>9</version></dependency></dependencies>
</project>`

func demo() *gav {
	return &gav{group: "org.example", artifact: "demo", base: "1.0", version: "1.0", extension: "pom"}
}

func TestParsePom(t *testing.T) {
	p, err := parsePom([]byte(poms))
	if err != nil || p.group != "org.example" || p.artifact != "demo" || p.version != "1.0" || p.name != "Jörg & Co" {
		t.Fatalf("%+v, %v", p, err)
	}
	if err := p.check(demo()); err != nil {
		t.Error(err)
	}
	build := &gav{group: "org.example", artifact: "demo", base: "1.1-SNAPSHOT", version: "1.1-20261122.133443-1"}
	project := func(inner string) string { return "<project>" + inner + "</project>" }
	for text, g := range map[string]*gav{
		project("<parent><groupId>org.example</groupId><version>1.0</version></parent><artifactId>demo</artifactId>"):                                                    demo(),
		project("<groupId>org.example</groupId><artifactId>demo</artifactId><version>${revision}</version>"):                                                             demo(),
		project("<groupId>${g}</groupId><artifactId>demo</artifactId><version>1.0</version>"):                                                                            demo(),
		project("<groupId>org.example</groupId><artifactId>demo</artifactId><version>1.1-SNAPSHOT</version>"):                                                            build,
		project("<groupId>org.example</groupId><artifactId>demo</artifactId><version>1.1-20261122.133443-1</version>"):                                                   build,
		"<?xml version='1.0' encoding='ISO-8859-1'?>" + project("<groupId>org.example</groupId><artifactId>demo</artifactId><version>1.0</version><name>J\xf6rg</name>"): demo(),
	} {
		p, err := parsePom([]byte(text))
		if err == nil {
			err = p.check(g)
		}
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for name, text := range map[string]string{
		"another group":           project("<groupId>org.other</groupId><artifactId>demo</artifactId><version>1.0</version>"),
		"another artifact":        project("<groupId>org.example</groupId><artifactId>other</artifactId><version>1.0</version>"),
		"another version":         project("<groupId>org.example</groupId><artifactId>demo</artifactId><version>2.0</version>"),
		"another parent":          project("<parent><groupId>org.other</groupId><version>1.0</version></parent><artifactId>demo</artifactId>"),
		"nothing":                 "",
		"no XML":                  "hello",
		"another document":        "<metadata/>",
		"half of it":              poms[:200],
		"two roots":               "<project/><project/>",
		"an entity of its own":    `<!DOCTYPE project [<!ENTITY a "aaaa">]><project><name>&a;</name></project>`,
		"an entity from outside":  `<!DOCTYPE project [<!ENTITY x SYSTEM "file:///etc/passwd">]><project><groupId>&x;</groupId></project>`,
		"a billion laughs":        `<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">]><project><name>&c;</name></project>`,
		"depth":                   strings.Repeat("<project>", 1000) + strings.Repeat("</project>", 1000),
		"one long text":           project("<name>" + strings.Repeat("x", 1<<20) + "</name>"),
		"one long attribute":      `<project a="` + strings.Repeat("x", 1<<20) + `"/>`,
		"an encoding of its kind": `<?xml version="1.0" encoding="UTF-16"?><project/>`,
	} {
		p, err := parsePom([]byte(text))
		if err == nil {
			err = p.check(demo())
		}
		if !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestPluginPrefix(t *testing.T) {
	for artifact, want := range map[string]string{
		"maven-clean-plugin": "clean", "versions-maven-plugin": "versions", "maven-plugin-plugin": "plugin", "antlr4-maven-plugin": "antlr4", "my-plugin": "my",
	} {
		if got := (&pom{packaging: "maven-plugin"}).prefix(artifact); got != want {
			t.Errorf("%s: %q", artifact, got)
		}
	}
	p, err := parsePom([]byte(`<project><packaging>maven-plugin</packaging><build><plugins>
<plugin><artifactId>other</artifactId><configuration><goalPrefix>wrong</goalPrefix></configuration></plugin>
<plugin><artifactId>maven-plugin-plugin</artifactId><configuration><goalPrefix>mine</goalPrefix></configuration></plugin></plugins></build></project>`))
	if err != nil || p.prefix("x-maven-plugin") != "mine" {
		t.Errorf("%+v, %v", p, err)
	}
	if got := (&pom{packaging: "jar"}).prefix("x-maven-plugin"); got != "" {
		t.Errorf("a jar has prefix %q", got)
	}
}

func TestParseMetadata(t *testing.T) {
	n, err := parseMetadata(strings.NewReader(`<metadata><groupId>org.example</groupId><artifactId>demo</artifactId><versioning>
<latest>1.1</latest><release>1.0</release><versions><version>0.9</version><version>1.0</version></versions></versioning></metadata>`))
	if err != nil || fmt.Sprint(n.deployed("")) != "[1.0 1.1]" || n.group != "org.example" || n.artifact != "demo" {
		t.Errorf("%+v, %v", n, err)
	}
	n, err = parseMetadata(strings.NewReader(`<metadata><version>1.1-SNAPSHOT</version><versioning><snapshot><timestamp>20261122.133443</timestamp><buildNumber>7</buildNumber></snapshot></versioning></metadata>`))
	if err != nil || fmt.Sprint(n.deployed("1.1-SNAPSHOT")) != "[1.1-20261122.133443-7]" {
		t.Errorf("%+v, %v", n, err)
	}
	if _, err := parseMetadata(strings.NewReader("<project/>")); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("a project: %v", err)
	}
	broken := io.MultiReader(strings.NewReader("<metadata>"), errReader{})
	if _, err := parseMetadata(broken); !errors.Is(err, errBroken) {
		t.Errorf("a body that breaks off: %v", err)
	}
}

var errBroken = errors.New("broken off")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

// No document makes the parser fail but with ErrInvalid, or hold more than it has.
func FuzzParsePom(f *testing.F) {
	f.Add([]byte(poms))
	f.Add([]byte(`<?xml version='1.0' encoding='latin1'?><!DOCTYPE project [<!ENTITY a "b">]><project><name>&a;&ouml;</name></project>`))
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := parsePom(body)
		if err != nil {
			if !errors.Is(err, meta.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		_ = p.check(demo())
		_ = p.prefix("demo")
	})
}

func FuzzParseMetadata(f *testing.F) {
	f.Add([]byte(`<metadata><versioning><release>1</release><versions><version>1</version></versions></versioning></metadata>`))
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := parseMetadata(strings.NewReader(string(body)))
		if err != nil {
			if !errors.Is(err, meta.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		for _, v := range append(n.deployed(""), n.deployed("1-SNAPSHOT")...) {
			if !isVersion(v) {
				t.Fatalf("deployed %q", v)
			}
		}
	})
}

func FuzzParseSum(f *testing.F) {
	f.Add([]byte("DA39A3EE5E6B4B0D3255BFEF95601890AFD80709  demo.jar"))
	f.Fuzz(func(t *testing.T, body []byte) {
		for algorithm, n := range sumBytes {
			if s, err := parseSum(body, algorithm); err == nil && len(s) != n {
				t.Fatalf("%s %q", algorithm, s)
			}
		}
	})
}
