package maven

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// maxPomBytes bounds a POM. The largest in Maven Central have some 100 KiB.
const maxPomBytes = 4 << 20

// pom is what is read of a project's description.
type pom struct {
	group, artifact, version string
	packaging, name          string
	// parentGroup and parentVersion are what a project without its own has.
	parentGroup, parentVersion string
	// goalPrefix is what a plugin sets it to, "" when nothing does.
	goalPrefix string
}

// parsePom reads a POM.
//
// Errors: meta.ErrInvalid.
func parsePom(body []byte) (*pom, error) {
	var p pom
	root, plugin, prefix := "", "", ""
	err := walkXML(bytes.NewReader(body), func(path, text string) error {
		const plugins = "project/build/plugins/plugin"
		switch path {
		case "project/groupId":
			p.group = text
		case "project/artifactId":
			p.artifact = text
		case "project/version":
			p.version = text
		case "project/packaging":
			p.packaging = text
		case "project/name":
			p.name = text
		case "project/parent/groupId":
			p.parentGroup = text
		case "project/parent/version":
			p.parentVersion = text
		case plugins + "/artifactId":
			plugin = text
		case plugins + "/configuration/goalPrefix":
			prefix = text
		case plugins:
			if plugin == "maven-plugin-plugin" {
				p.goalPrefix = prefix
			}
			plugin, prefix = "", ""
		}
		root, _, _ = strings.Cut(path, "/")
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("POM: %w", err)
	}
	if root != "project" {
		return nil, fmt.Errorf("POM: the document is a %s, not a project: %w", root, meta.ErrInvalid)
	}
	return &p, nil
}

// check compares with the path that the POM was sent to. What it leaves to its parent is
// the parent's; what is an expression (${revision}) says nothing.
//
// Errors: meta.ErrInvalid.
func (p *pom) check(g *gav) error {
	for _, f := range []struct{ what, own, inherited, want string }{
		{"groupId", p.group, p.parentGroup, g.group},
		{"artifactId", p.artifact, "", g.artifact},
		{"version", p.version, p.parentVersion, g.base},
	} {
		have := f.own
		if have == "" {
			have = f.inherited
		}
		if strings.Contains(have, "${") || have == f.want || f.what == "version" && g.snapshot() && have == g.version {
			continue
		}
		return fmt.Errorf("POM: its %s is %q and the path says %q: %w", f.what, have, f.want, meta.ErrInvalid)
	}
	return nil
}

// prefix returns what people call the plugin, `mvn PREFIX:goal`: what it says itself, or
// what follows from its name by Maven's convention; "" when it is no plugin.
func (p *pom) prefix(artifact string) string {
	if p.packaging != "maven-plugin" {
		return ""
	}
	if p.goalPrefix != "" && isTail(p.goalPrefix) {
		return p.goalPrefix
	}
	return conventionalPrefix(artifact)
}

// conventionalPrefix is PluginDescriptor.getGoalPrefixFromArtifactId of Maven.
func conventionalPrefix(artifact string) string {
	if artifact == "maven-plugin-plugin" {
		return "plugin"
	}
	return pluginWord.ReplaceAllString(mavenWord.ReplaceAllString(artifact, ""), "")
}

var mavenWord, pluginWord = regexp.MustCompile(`-?maven-?`), regexp.MustCompile(`-?plugin-?`)
