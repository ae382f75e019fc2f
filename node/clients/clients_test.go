package clients

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

const token = "shoalp_abc-DEF_123"

func place(t testing.TB, agent string) Place {
	t.Helper()
	u, err := url.Parse(agent)
	if err != nil {
		t.Fatal(err)
	}
	return Place{Agent: u, Repo: meta.RepoRef{Tenant: "acme", Name: "repo"}, Token: token, Home: "/home/ada", Config: "/home/ada/.config", Key: []byte("KEY\n")}
}

func planOf(t testing.TB, name string, p Place) Plan {
	t.Helper()
	c, err := Find(name)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := c.For(p)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return plan
}

// Every client: the second time changes nothing, the credential is in files of the owner
// alone, and not there at all without one.
func TestPlans(t *testing.T) {
	for _, agent := range []string{"http://127.0.0.1:5000", "https://gw.example:5000", "http://gw.example"} {
		for _, c := range Plans {
			p := place(t, agent)
			p.Mirror = "docker.io"
			for _, e := range planOf(t, c.Name, p).Edits {
				first, err := e.Apply(nil)
				if err != nil {
					t.Errorf("%s %s: %v", c.Name, e.Path, err)
					continue
				}
				second, err := e.Apply(first)
				if err != nil || !bytes.Equal(first, second) {
					t.Errorf("%s %s: the second time it is\n%s\nnot\n%s", c.Name, e.Path, second, first)
				}
				if !path.IsAbs(e.Path) {
					t.Errorf("%s: path %s", c.Name, e.Path)
				}
				if secret := bytes.Contains(first, []byte(token)) || bytes.Contains(first, []byte(p.basic())); secret && (!e.Secret || e.Mode() != 0o600) {
					t.Errorf("%s %s: everybody may read the credential", c.Name, e.Path)
				}
				check(t, e.Path, first)
			}
			p.Token = ""
			for _, e := range planOf(t, c.Name, p).Edits {
				if b, err := e.Apply(nil); err != nil || bytes.Contains(b, []byte("password")) || bytes.Contains(b, []byte("Token")) {
					t.Errorf("%s %s without a token: %s, %v", c.Name, e.Path, b, err)
				}
			}
		}
	}
}

// check parses what can be parsed.
func check(t *testing.T, name string, b []byte) {
	t.Helper()
	var err error
	var v any
	switch path.Ext(name) {
	case ".json":
		err = json.Unmarshal(b, &v)
	case ".xml", ".Config":
		err = xml.Unmarshal(b, new(struct{ XMLName xml.Name }))
	case ".yaml":
		err = yaml.Unmarshal(b, &v)
	}
	if err != nil {
		t.Errorf("%s: %v in %s", name, err, b)
	}
}

func TestForRefuses(t *testing.T) {
	npm, _ := Find("npm")
	for name, change := range map[string]func(*Place){
		"a path":               func(p *Place) { p.Agent.Path = "/x" },
		"another scheme":       func(p *Place) { p.Agent.Scheme = "ftp" },
		"a user":               func(p *Place) { p.Agent.User = url.User("x") },
		"no agent":             func(p *Place) { p.Agent = nil },
		"a bad name":           func(p *Place) { p.Name = "a b" },
		"a digit":              func(p *Place) { p.Name = "1a" },
		"no repository":        func(p *Place) { p.Repo.Name = "" },
		"a token of two lines": func(p *Place) { p.Token = "a\nb" },
		"a token of XML":       func(p *Place) { p.Token = "a<b" },
		"a suite of two words": func(p *Place) { p.Suite = "a b" },
	} {
		p := place(t, "http://127.0.0.1:5000")
		change(&p)
		if _, err := npm.For(p); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Find("nope"); !errors.Is(err, meta.ErrNotFound) || !strings.Contains(err.Error(), "containerd") {
		t.Error(err)
	}
}

// What files have otherwise stays.
func TestKeeps(t *testing.T) {
	for name, test := range map[string]struct{ client, file, old, want string }{
		"npm": {"npm", ".npmrc", "; mine\nregistry = https://old.example/\n@own:registry=https://own.example/\n//old.example/:_authToken=x\n",
			"; mine\nregistry=http://127.0.0.1:5000/npm/acme/repo/\n@own:registry=https://own.example/\n//old.example/:_authToken=x\n//127.0.0.1:5000/npm/acme/repo/:_authToken=" + token + "\n"},
		"pip": {"pip", "pip.conf", "[install]\nno-deps = true\n\n[global]\ntimeout = 3\nindex-url=https://old.example\n\n[list]\nformat = json\n",
			"[install]\nno-deps = true\n\n[global]\ntimeout = 3\nindex-url = http://127.0.0.1:5000/pypi/acme/repo/simple/\n\n[list]\nformat = json\n"},
		"pypirc": {"pip", ".pypirc", "[distutils]\nindex-servers =\n    pypi\n\n[pypi]\nusername = a\n",
			"[distutils]\nindex-servers =\n    pypi\n    shoal\n\n[pypi]\nusername = a\n\n[shoal]\nrepository = http://127.0.0.1:5000/pypi/acme/repo/legacy/\nusername = shoal\npassword = " + token + "\n"},
		"netrc": {"pip", ".netrc", "machine other.example login a password b\ndefault login c password d",
			"machine other.example login a password b\nmachine 127.0.0.1 login shoal password " + token + "\ndefault login c password d\n"},
		"docker": {"docker", "config.json", `{"credsStore":"x","auths":{"other":{"auth":"y"}},"n":1.50}`,
			"{\n\t\"auths\": {\n\t\t\"127.0.0.1:5000\": {\n\t\t\t\"auth\": \"" + place(t, "http://x").basic() + "\"\n\t\t},\n\t\t\"other\": {\n\t\t\t\"auth\": \"y\"\n\t\t}\n\t},\n\t\"credsStore\": \"x\",\n\t\"n\": 1.50\n}\n"},
		"cargo": {"cargo", "config.toml", "# mine\n[build]\njobs = 2\n",
			"# mine\n[build]\njobs = 2\n\n[registries.shoal]\nindex = \"sparse+http://127.0.0.1:5000/cargo/acme/repo/\"\ncredential-provider = \"cargo:token\"\n"},
		"go": {"go", "env", "GOFLAGS=-v\nGOPROXY=direct\n", "GOFLAGS=-v\nGOPROXY=http://127.0.0.1:5000/go/acme/repo\n"},
		"maven": {"maven", "settings.xml", "<settings>\n  <!-- mine -->\n  <servers>\n    <server><id>other</id></server>\n    <server>\n <id> shoal </id><password>old</password></server>\n  </servers>\n</settings>\n",
			"<settings>\n  <!-- mine -->\n  <servers>\n    <server><id>other</id></server>\n    <server><id>shoal</id><username>shoal</username><password>" + token + "</password></server>\n  </servers>\n  <mirrors>\n    <mirror><id>shoal</id><mirrorOf>*</mirrorOf><url>http://127.0.0.1:5000/maven/acme/repo</url></mirror>\n  </mirrors>\n</settings>\n"},
		"nuget": {"nuget", "NuGet.Config", "<configuration>\n  <packageSources />\n  <packageSourceCredentials><other/></packageSourceCredentials>\n</configuration>",
			"<configuration>\n  <packageSources>\n    <add key=\"shoal\" value=\"http://127.0.0.1:5000/nuget/acme/repo/v3/index.json\" protocolVersion=\"3\" allowInsecureConnections=\"true\" />\n  </packageSources>\n  <packageSourceCredentials><other/>  <shoal><add key=\"Username\" value=\"shoal\" /><add key=\"ClearTextPassword\" value=\"" + token + "\" /></shoal>\n  </packageSourceCredentials>\n</configuration>"},
		"helm": {"helm", "repositories.yaml", "# mine\napiVersion: \"\"\nrepositories:\n  - name: other\n    url: https://other.example\n  - name: shoal\n    url: old\n",
			"# mine\napiVersion: \"\"\nrepositories:\n  - name: other\n    url: https://other.example\n  - name: shoal\n    password: " + token + "\n    url: http://127.0.0.1:5000/helm/acme/repo\n    username: shoal\n"},
	} {
		found := false
		for _, e := range planOf(t, test.client, place(t, "http://127.0.0.1:5000")).Edits {
			if path.Base(e.Path) != test.file {
				continue
			}
			found = true
			got, err := e.Apply([]byte(test.old))
			if err != nil || string(got) != test.want {
				t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, test.want)
			}
			if again, err := e.Apply(got); err != nil || !bytes.Equal(again, got) {
				t.Errorf("%s: the second time it is\n%s", name, again)
			}
		}
		if !found {
			t.Errorf("%s: no file %s", name, test.file)
		}
	}
}

// A file that is not what its name says is left alone.
func TestMalformed(t *testing.T) {
	for _, test := range []struct{ client, file, old string }{
		{"docker", "config.json", "{"}, {"docker", "config.json", `{"auths":[]}`}, {"docker", "config.json", "[]"},
		{"maven", "settings.xml", "<project/>"}, {"maven", "settings.xml", "<settings>"}, {"maven", "settings.xml", "x"}, {"maven", "settings.xml", "<settings/>"},
		{"nuget", "NuGet.Config", "<configuration><a></configuration>"},
		{"helm", "repositories.yaml", "a: ["}, {"helm", "repositories.yaml", "- a"},
	} {
		for _, e := range planOf(t, test.client, place(t, "http://127.0.0.1:5000")).Edits {
			if path.Base(e.Path) != test.file {
				continue
			}
			if b, err := e.Apply([]byte(test.old)); !errors.Is(err, meta.ErrInvalid) {
				t.Errorf("%s with %q: %v\n%s", test.file, test.old, err, b)
			}
		}
	}
	for _, e := range planOf(t, "pip", place(t, "http://127.0.0.1:5000")).Edits {
		if path.Base(e.Path) == ".netrc" {
			if _, err := e.Apply([]byte("machine 127.0.0.1 login other password x\n")); !errors.Is(err, meta.ErrConflict) {
				t.Errorf("another's credential: %v", err)
			}
		}
	}
}

func FuzzEdits(f *testing.F) {
	f.Add([]byte("<settings><servers/><mirrors><mirror><id>shoal</id></mirror></mirrors></settings>"))
	f.Add([]byte("[global]\nindex-url = x\n[distutils]\nindex-servers =\n  a\n"))
	f.Add([]byte("repositories:\n- name: shoal\n"))
	f.Add([]byte(`{"auths":{}}`))
	p := place(f, "http://127.0.0.1:5000")
	f.Fuzz(func(t *testing.T, old []byte) {
		for _, c := range Plans {
			for _, e := range planOf(t, c.Name, p).Edits {
				next, err := e.Apply(old)
				if err != nil {
					continue
				}
				again, err := e.Apply(next)
				if err != nil || !bytes.Equal(again, next) {
					t.Errorf("%s of %q: %q, then %q: %v", e.Path, old, next, again, err)
				}
			}
		}
	})
}
