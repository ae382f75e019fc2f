package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

func init() {
	formats = append(formats, format{
		name: "maven", tools: []string{"mvn"}, pkg: "demo",
		publish: publishMaven, install: installMaven, upload: uploadMaven,
		reference: func(pkg, version string) string { return "/org.example.e2e:" + pkg + ":" + version },
		says:      []string{"409"},
	})
	configurations["maven"] = configured{"maven", getMaven}
}

// mavenOffline is Debian's repository of plugins: nothing is asked of the network.
const mavenOffline = "/usr/share/maven-repo"

// mavenCommand is mvn with a local repository of its own; repository is where it reads,
// "" for nowhere. The mirror of the repository itself is there because mvn refuses plain
// HTTP to what is not called localhost.
func mavenCommand(t *testing.T, home, repository, token string, args ...string) []string {
	t.Helper()
	for _, plugin := range []string{"deploy", "dependency"} {
		if _, err := os.Stat(filepath.Join(mavenOffline, "org/apache/maven/plugins/maven-"+plugin+"-plugin")); err != nil {
			skip(t, "no maven-%s-plugin in %s (libmaven-%s-plugin-java)", plugin, mavenOffline, plugin)
		}
	}
	read, mirror := "", ""
	if repository != "" {
		read = fmt.Sprintf(`<profiles><profile><id>shoal</id><repositories><repository><id>shoal</id><url>%s</url></repository></repositories></profile></profiles>
<activeProfiles><activeProfile>shoal</activeProfile></activeProfiles>`, repository)
		mirror = fmt.Sprintf("<mirror><id>shoal</id><mirrorOf>shoal</mirrorOf><url>%s</url></mirror>", repository)
	}
	settings := filepath.Join(home, "settings.xml")
	write(t, settings, fmt.Sprintf(`<settings><localRepository>%s</localRepository>%s
<servers><server><id>shoal</id><username>mvn</username><password>%s</password></server></servers>
<mirrors>%s<mirror><id>debian</id><mirrorOf>central</mirrorOf><url>file://%s</url></mirror></mirrors></settings>`,
		filepath.Join(home, "m2"), read, token, mirror, mavenOffline))
	return append([]string{"-B", "-s", settings, "-Duser.home=" + home}, args...)
}

var mavenEnv = []string{"MAVEN_OPTS=-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"}

func publishMaven(ctx context.Context, t *testing.T, p place, home, pkg, version string, seed uint64) (string, error) {
	file := filepath.Join(home, "payload.bin")
	write(t, file, string(payload(seed)))
	return command(ctx, mavenEnv, "mvn", mavenCommand(t, home, "", p.token, "deploy:deploy-file", "-DrepositoryId=shoal", "-Durl="+p.url("maven"),
		"-DgroupId=org.example.e2e", "-DartifactId="+pkg, "-Dversion="+version, "-Dpackaging=bin", "-Dfile="+file)...)
}

func installMaven(ctx context.Context, t *testing.T, p place, home, pkg, version string) (map[string]string, string, error) {
	if version == "" {
		version = "RELEASE"
	}
	site := filepath.Join(home, "site")
	out, err := command(ctx, mavenEnv, "mvn", mavenCommand(t, home, p.url("maven"), p.token, "dependency:copy",
		"-Dartifact=org.example.e2e:"+pkg+":"+version+":bin", "-DoutputDirectory="+site)...)
	if err != nil {
		return nil, out, err
	}
	files, err := tree(site)
	return files, out, err
}

func uploadMaven(_ *testing.T, pkg, version string, seed uint64) request {
	return request{
		method: http.MethodPut, path: fmt.Sprintf("/org/example/e2e/%s/%s/%s-%s.bin", pkg, version, pkg, version),
		header: http.Header{"Expect": {"100-continue"}}, body: payload(seed),
	}
}

// useMaven deploys a parent, as a release and as a snapshot, with credentials from the first
// request on, and resolves both from empty local repositories, which asks without them
// first.
func useMaven(ctx context.Context, t *testing.T, s *secured, home, token string) (string, error) {
	repository := "https://" + s.addr + "/maven/acme/mvn"
	store := filepath.Join(home, "trust.p12")
	lines := [][]string{
		{"keytool", "-importcert", "-noprompt", "-alias", "shoal", "-file", s.root, "-keystore", store, "-storepass", "changeit", "-storetype", "PKCS12"},
	}
	for _, version := range []string{"1.0", "1.1-SNAPSHOT"} {
		parent, child := filepath.Join(home, version, "parent.xml"), filepath.Join(home, version, "pom.xml")
		write(t, parent, "<project><modelVersion>4.0.0</modelVersion><groupId>org.example</groupId><artifactId>parent</artifactId><version>"+version+"</version><packaging>pom</packaging></project>")
		write(t, child, "<project><modelVersion>4.0.0</modelVersion><parent><groupId>org.example</groupId><artifactId>parent</artifactId><version>"+version+"</version><relativePath/></parent>"+
			"<artifactId>child</artifactId><packaging>pom</packaging></project>")
		mvn := func(of string, args ...string) []string {
			line := mavenCommand(t, filepath.Join(home, version, of), repository, token, args...)
			return append([]string{"mvn", "-Djavax.net.ssl.trustStore=" + store, "-Djavax.net.ssl.trustStorePassword=changeit"}, line...)
		}
		lines = append(lines,
			mvn("deploys", "deploy:deploy-file", "-DrepositoryId=shoal", "-Durl="+repository, "-Dfile="+parent, "-DpomFile="+parent),
			mvn("reads", "-f", child, "validate"))
	}
	return all(ctx, mavenEnv, lines...)
}

// getMaven has mvn find its settings in home. Its plugins come from Debian's repository,
// which takes the place of Central by name; any other repository is what was set up.
func getMaven(ctx context.Context, t *testing.T, home, pkg string) (string, string, error) {
	plugins, site := filepath.Join(home, "plugins.xml"), filepath.Join(home, "site")
	write(t, plugins, `<settings><profiles><profile><id>any</id><repositories><repository><id>any</id><url>http://any.invalid</url></repository></repositories></profile></profiles>
<activeProfiles><activeProfile>any</activeProfile></activeProfiles>
<mirrors><mirror><id>debian</id><mirrorOf>central</mirrorOf><url>file://`+mavenOffline+`</url></mirror></mirrors></settings>`)
	out, err := command(ctx, []string{"MAVEN_OPTS=-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Duser.home=" + home}, "mvn", "-B", "-gs", plugins, "dependency:copy",
		"-Dartifact=org.example.e2e:"+pkg+":1.0.0:bin", "-DoutputDirectory="+site)
	return site, out, err
}
