// Package clients says how the stock clients of each ecosystem are configured for a
// repository of a gateway: which files, and what in them.
//
// Start reading at Plans, then For. A Plan is a list of edits of files; an Edit is a pure
// function from what is in a file to what should be, which keeps what is there otherwise
// and does nothing the second time (edit.go has the editors of lines, sections, XML, JSON
// and YAML). The package reads and writes no file and starts no goroutines; the verb
// `shoal setup` does the former.
//
// Sources: the clients' own documentation of npmrc, pip.conf, .pypirc, settings.xml,
// NuGet.Config, cargo's config.toml, go env, hosts.toml, registries.conf, apt_auth.conf and
// dnf.conf.
package clients

import (
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// Place is what a client is to be configured for.
type Place struct {
	// Agent is the gateway's URL, http or https, without a path.
	Agent *url.URL
	Repo  meta.RepoRef
	// Name is what clients call the repository; "" is shoal.
	Name string
	// Token is the credential, "" for none.
	Token trust.Secret
	// Home is the user's home, Config where his programs keep their configuration; slashes
	// part them.
	Home, Config string
	// Mirror is the registry of images that the repository is a mirror of, "" for none.
	Mirror string
	// Suite and Component are of apt.
	Suite, Component string
	// Key is apt's and dnf's signing key, as the repository serves it.
	Key []byte
}

// Edit is one file.
type Edit struct {
	Path string
	// Secret says that the file holds the credential: nobody else may read it.
	Secret bool
	// Apply returns what the file has to have, from what it has; nil has nothing.
	//
	// Errors: meta.ErrInvalid for a file that is not what its name says; meta.ErrConflict
	// when it has something in the way.
	Apply func(old []byte) ([]byte, error)
}

// Mode returns the mode of a new file.
func (e Edit) Mode() fs.FileMode {
	if e.Secret {
		return 0o600
	}
	return 0o644
}

// Plan is how a client is configured.
type Plan struct {
	Edits []Edit
	// Notes are what else there is to know or to do.
	Notes []string
}

// Client is one that can be configured.
type Client struct {
	// Name, and the format of repositories that it reads.
	Name, Format string
	// Key is the path of a signing key below the repository, "" for none.
	Key  string
	plan func(Place) Plan
}

// Plans are all clients.
var Plans = []Client{
	{Name: "docker", Format: "oci", plan: docker},
	{Name: "containerd", Format: "oci", plan: containerd},
	{Name: "podman", Format: "oci", plan: podman},
	{Name: "npm", Format: "npm", plan: npm},
	{Name: "pip", Format: "pypi", plan: pip},
	{Name: "maven", Format: "maven", plan: maven},
	{Name: "gradle", Format: "maven", plan: gradle},
	{Name: "nuget", Format: "nuget", plan: nuget},
	{Name: "helm", Format: "helm", plan: helm},
	{Name: "go", Format: "go", plan: gocmd},
	{Name: "cargo", Format: "cargo", plan: cargo},
	{Name: "apt", Format: "apt", Key: "key.asc", plan: apt},
	{Name: "dnf", Format: "rpm", Key: "key.asc", plan: dnf},
}

// Names lists them.
func Names() (names []string) {
	for _, c := range Plans {
		names = append(names, c.Name)
	}
	return names
}

// Find returns a client by its name.
//
// Errors: meta.ErrNotFound with the names that there are.
func Find(name string) (Client, error) {
	i := slices.IndexFunc(Plans, func(c Client) bool { return c.Name == name })
	if i < 0 {
		return Client{}, fmt.Errorf("client %q, use one of %s: %w", name, strings.Join(Names(), ", "), meta.ErrNotFound)
	}
	return Plans[i], nil
}

// For returns the plan of a client.
//
// Errors: meta.ErrInvalid for a place that is none.
func (c Client) For(p Place) (Plan, error) {
	if p.Agent == nil || p.Agent.Scheme != "http" && p.Agent.Scheme != "https" || p.Agent.Host == "" || strings.Trim(p.Agent.Path, "/") != "" || p.Agent.User != nil {
		return Plan{}, fmt.Errorf("agent: write http://HOST:PORT or https://HOST:PORT: %w", meta.ErrInvalid)
	}
	if err := p.Repo.Check(); err != nil {
		return Plan{}, err
	}
	if p.Name == "" {
		p.Name = "shoal"
	}
	if err := (meta.RepoRef{Tenant: "t", Name: p.Name}).Check(); err != nil || p.Name[0] < 'a' {
		return Plan{}, fmt.Errorf("name %q: use a letter, then letters, digits and inner hyphens: %w", p.Name, meta.ErrInvalid)
	}
	for _, s := range []string{p.Mirror, p.Suite, p.Component, string(p.Token.Reveal())} {
		if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"'<>&\\{}", r) }) {
			return Plan{}, fmt.Errorf("a name or the token has blanks, quotes or brackets: %w", meta.ErrInvalid)
		}
	}
	return c.plan(p), nil
}

// user is whom clients log in as: a gateway looks at the token alone.
const user = "shoal"

// url returns the address of the repository in a format, without a slash at its end.
func (p Place) url(format string) string {
	return p.Agent.Scheme + "://" + p.Agent.Host + "/" + format + "/" + p.Repo.String()
}

// host is without the port.
func (p Place) host() string { return p.Agent.Hostname() }

// insecure reports whether clients ask for leave to use the gateway: it speaks plain HTTP,
// and not on loopback.
func (p Place) insecure() bool {
	if p.Agent.Scheme == "https" || p.host() == "localhost" {
		return false
	}
	addr, err := netip.ParseAddr(p.host())
	return err != nil || !addr.IsLoopback()
}

func (p Place) home(parts ...string) string { return path.Join(append([]string{p.Home}, parts...)...) }

func (p Place) config(parts ...string) string {
	return path.Join(append([]string{p.Config}, parts...)...)
}

// basic is the credential as docker's and podman's files have it.
func (p Place) basic() string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + p.Token.Reveal()))
}

// secretly returns the edits that need a token, none without one.
func (p Place) secretly(edits ...Edit) []Edit {
	if p.Token == "" {
		return nil
	}
	for i := range edits {
		edits[i].Secret = true
	}
	return edits
}

// netrc has the credential for clients that look it up by host.
func (p Place) netrc() []Edit {
	return p.secretly(Edit{Path: p.home(".netrc"), Apply: netrc(p.host(), user, p.Token.Reveal())})
}

func docker(p Place) Plan {
	plan := Plan{Notes: []string{"docker pull " + p.Agent.Host + "/" + p.Repo.String() + "/IMAGE:TAG"}}
	plan.Edits = p.secretly(Edit{Path: p.home(".docker", "config.json"), Apply: inJSON([]string{"auths", p.Agent.Host}, map[string]any{"auth": p.basic()})})
	if p.insecure() {
		plan.Edits = append(plan.Edits, Edit{Path: "/etc/docker/daemon.json", Apply: listJSON("insecure-registries", p.Agent.Host)})
		plan.Notes = append(plan.Notes, "restart dockerd: it reads daemon.json when it starts")
	}
	if p.Mirror != "" {
		plan.Notes = append(plan.Notes, "docker mirrors the Hub alone, and no other repository than the one at the root of a registry: use containerd or podman, or pull by "+p.Agent.Host+"/"+p.Repo.String())
	}
	return plan
}

func containerd(p Place) Plan {
	at := p.Agent.Scheme + "://" + p.Agent.Host
	name, server, capabilities := p.Agent.Host, at, `["pull", "resolve", "push"]`
	if p.Mirror != "" {
		name, server, capabilities = p.Mirror, "https://"+p.Mirror, `["pull", "resolve"]`
		if p.Mirror == "docker.io" {
			server = "https://registry-1.docker.io"
		}
	}
	text := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = %s\n", server, at, capabilities)
	if p.Token != "" {
		text += fmt.Sprintf("  [host.%q.header]\n    Authorization = \"Basic %s\"\n", at, p.basic())
	}
	return Plan{
		Edits: []Edit{{Path: path.Join("/etc/containerd/certs.d", name, "hosts.toml"), Secret: p.Token != "", Apply: own(text)}},
		Notes: []string{`config_path = "/etc/containerd/certs.d" has to stand in /etc/containerd/config.toml, below the registry of the CRI plugin`},
	}
}

func podman(p Place) Plan {
	plan := Plan{Edits: p.secretly(Edit{Path: p.config("containers", "auth.json"), Apply: inJSON([]string{"auths", p.Agent.Host}, map[string]any{"auth": p.basic()})})}
	text := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = %t\n", p.Agent.Host, p.Agent.Scheme == "http")
	if p.Mirror != "" {
		text += fmt.Sprintf("\n[[registry]]\nprefix = %q\nlocation = %q\n\n[[registry.mirror]]\nlocation = %q\ninsecure = %t\n",
			p.Mirror, p.Mirror, p.Agent.Host+"/"+p.Repo.String(), p.Agent.Scheme == "http")
	}
	plan.Edits = append(plan.Edits, Edit{Path: p.config("containers", "registries.conf.d", p.Name+".conf"), Apply: own(text)})
	plan.Notes = []string{"podman pull " + p.Agent.Host + "/" + p.Repo.String() + "/IMAGE:TAG"}
	return plan
}

func npm(p Place) Plan {
	lines := [][2]string{{"registry", p.url("npm") + "/"}}
	if p.Token != "" {
		lines = append(lines, [2]string{strings.TrimPrefix(p.url("npm"), p.Agent.Scheme+":") + "/:_authToken", p.Token.Reveal()})
	}
	return Plan{Edits: []Edit{{Path: p.home(".npmrc"), Secret: p.Token != "", Apply: inLines(lines...)}}, Notes: []string{"pnpm and yarn 1 read the same file"}}
}

func pip(p Place) Plan {
	settings := [][2]string{{"index-url", p.url("pypi") + "/simple/"}}
	if p.insecure() {
		settings = append(settings, [2]string{"trusted-host", p.Agent.Host})
	}
	plan := Plan{Edits: []Edit{{Path: p.config("pip", "pip.conf"), Apply: inSection("global", settings...)}}}
	plan.Edits = append(plan.Edits, p.netrc()...)
	upload := inSection(p.Name, [2]string{"repository", p.url("pypi") + "/legacy/"})
	if p.Token != "" {
		upload = inSection(p.Name, [2]string{"repository", p.url("pypi") + "/legacy/"}, [2]string{"username", user}, [2]string{"password", p.Token.Reveal()})
	}
	plan.Edits = append(plan.Edits, Edit{Path: p.home(".pypirc"), Secret: true, Apply: both(inSectionList("distutils", "index-servers", p.Name), upload)})
	plan.Notes = []string{"twine upload -r " + p.Name + " dist/*"}
	return plan
}

func maven(p Place) Plan {
	mirror := fmt.Sprintf("<mirror><id>%s</id><mirrorOf>*</mirrorOf><url>%s</url></mirror>", p.Name, p.url("maven"))
	apply := inXML("settings", `<settings xmlns="http://maven.apache.org/SETTINGS/1.0.0">`, "mirrors", byChild("id", p.Name), mirror)
	if p.Token != "" {
		server := fmt.Sprintf("<server><id>%s</id><username>%s</username><password>%s</password></server>", p.Name, user, p.Token.Reveal())
		apply = both(apply, inXML("settings", `<settings>`, "servers", byChild("id", p.Name), server))
	}
	return Plan{
		Edits: []Edit{{Path: p.home(".m2", "settings.xml"), Secret: p.Token != "", Apply: apply}},
		Notes: []string{"mvn deploy -DaltDeploymentRepository=" + p.Name + "::default::" + p.url("maven")},
	}
}

func gradle(p Place) Plan {
	var b strings.Builder
	b.WriteString("// Written by `shoal setup gradle`.\n")
	if p.Token != "" {
		fmt.Fprintf(&b, "def properties = new Properties()\nfile(\"${gradle.gradleUserHomeDir}/gradle.properties\").withInputStream { properties.load(it) }\n")
	}
	b.WriteString("def repository = {\n    maven {\n")
	fmt.Fprintf(&b, "        name = '%s'\n        url = uri('%s')\n", p.Name, p.url("maven"))
	if p.Agent.Scheme == "http" {
		b.WriteString("        allowInsecureProtocol = true\n")
	}
	if p.Token != "" {
		fmt.Fprintf(&b, "        credentials {\n            username = '%s'\n            password = properties['%sToken']\n        }\n", user, p.Name)
	}
	b.WriteString("    }\n}\nallprojects {\n    buildscript { repositories repository }\n    repositories repository\n}\n")
	plan := Plan{Edits: []Edit{{Path: p.home(".gradle", "init.d", p.Name+".gradle"), Apply: own(b.String())}}}
	plan.Edits = append(plan.Edits, p.secretly(Edit{Path: p.home(".gradle", "gradle.properties"), Apply: inLines([2]string{p.Name + "Token", p.Token.Reveal()})})...)
	return plan
}

func nuget(p Place) Plan {
	source := fmt.Sprintf(`<add key="%s" value="%s/v3/index.json" protocolVersion="3"`, p.Name, p.url("nuget"))
	if p.Agent.Scheme == "http" {
		source += ` allowInsecureConnections="true"`
	}
	apply := inXML("configuration", "<configuration>", "packageSources", byAttribute("key", p.Name), source+" />")
	if p.Token != "" {
		credentials := fmt.Sprintf(`<%s><add key="Username" value="%s" /><add key="ClearTextPassword" value="%s" /></%s>`, p.Name, user, p.Token.Reveal(), p.Name)
		apply = both(apply, inXML("configuration", "<configuration>", "packageSourceCredentials", byName(p.Name), credentials))
	}
	secret := p.Token != ""
	return Plan{
		// dotnet reads the first, nuget.exe on mono the second.
		Edits: []Edit{{Path: p.home(".nuget", "NuGet", "NuGet.Config"), Secret: secret, Apply: apply}, {Path: p.config("NuGet", "NuGet.Config"), Secret: secret, Apply: apply}},
		Notes: []string{"nuget push PACKAGE.nupkg -Source " + p.Name + " -ApiKey TOKEN; dotnet nuget push does the same"},
	}
}

func helm(p Place) Plan {
	entry := map[string]any{"name": p.Name, "url": p.url("helm")}
	if p.Token != "" {
		entry["username"], entry["password"] = user, p.Token.Reveal()
	}
	return Plan{
		Edits: []Edit{{Path: p.config("helm", "repositories.yaml"), Secret: true, Apply: inYAML("repositories", "name", p.Name, entry)}},
		Notes: []string{"helm repo update " + p.Name + " && helm search repo " + p.Name},
	}
}

func gocmd(p Place) Plan {
	plan := Plan{Edits: []Edit{{Path: p.config("go", "env"), Apply: inLines([2]string{"GOPROXY", p.url("go")})}}}
	plan.Notes = []string{"modules that the checksum database does not know need `go env -w GONOSUMDB=your.domain/*`"}
	if p.Agent.Scheme == "https" {
		plan.Edits = append(plan.Edits, p.netrc()...)
	} else {
		plan.Notes = append(plan.Notes, "go sends no credentials over plain HTTP: the repository is public, or the gateway one of https")
	}
	return plan
}

func cargo(p Place) Plan {
	section := "registries." + p.Name
	settings := [][2]string{{"index", fmt.Sprintf("%q", "sparse+"+p.url("cargo")+"/")}}
	if p.Token != "" {
		settings = append(settings, [2]string{"credential-provider", `"cargo:token"`})
	}
	plan := Plan{Edits: []Edit{{Path: p.home(".cargo", "config.toml"), Apply: inSection(section, settings...)}}}
	plan.Edits = append(plan.Edits, p.secretly(Edit{Path: p.home(".cargo", "credentials.toml"), Apply: inSection(section, [2]string{"token", fmt.Sprintf("%q", p.Token.Reveal())})})...)
	plan.Notes = []string{"cargo add CRATE --registry " + p.Name + ", cargo publish --registry " + p.Name}
	return plan
}

// file names what apt and dnf keep of a repository.
func (p Place) file() string { return p.Name + "-" + string(p.Repo.Tenant) + "-" + p.Repo.Name }

func apt(p Place) Plan {
	key := "/etc/apt/keyrings/" + p.file() + ".asc"
	suite, component := p.Suite, p.Component
	if suite == "" {
		suite = "stable"
	}
	if component == "" {
		component = "main"
	}
	plan := Plan{Edits: []Edit{
		{Path: key, Apply: own(string(p.Key))},
		{Path: "/etc/apt/sources.list.d/" + p.file() + ".list", Apply: own(fmt.Sprintf("deb [signed-by=%s] %s %s %s\n", key, p.url("apt"), suite, component))},
	}}
	plan.Edits = append(plan.Edits, p.secretly(Edit{
		Path:  "/etc/apt/auth.conf.d/" + p.file() + ".conf",
		Apply: own(fmt.Sprintf("machine %s login %s password %s\n", p.url("apt"), user, p.Token.Reveal())),
	})...)
	plan.Notes = []string{"apt-get update"}
	return plan
}

func dnf(p Place) Plan {
	text := fmt.Sprintf("[%s]\nname=%s of %s\nbaseurl=%s\nenabled=1\nrepo_gpgcheck=1\ngpgcheck=0\ngpgkey=%s/key.asc\n", p.file(), p.Repo, p.Agent.Host, p.url("rpm"), p.url("rpm"))
	if p.Token != "" {
		text += fmt.Sprintf("username=%s\npassword=%s\n", user, p.Token.Reveal())
	}
	return Plan{
		Edits: []Edit{{Path: "/etc/yum.repos.d/" + p.file() + ".repo", Secret: p.Token != "", Apply: own(text)}},
		Notes: []string{"dnf makecache --repo " + p.file(), "gpgcheck=1 for packages that are signed themselves"},
	}
}
