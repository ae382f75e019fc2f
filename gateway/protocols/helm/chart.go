package helm

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/shoal-registry/shoal/gateway/archive"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Bounds of charts, in bytes.
const (
	maxChartYAML  = 256 << 10
	maxProvenance = 1 << 20
	// maxChartBytes bounds what a chart says once it is read: in YAML one text can stand
	// for many.
	maxChartBytes = 4 << 20
)

// chartLimits bound what a chart unpacks to: helm itself stops at 100 MiB.
var chartLimits = archive.Limits{Entries: 20_000, DirectoryBytes: 1 << 20, PlainBytes: 512 << 20, Ratio: 200, FreeBytes: 64 << 20}

// chart is what the index says of a version, in the order that helm writes it: the fields
// of Chart.yaml, and where and what the file is.
type chart struct {
	APIVersion   string            `yaml:"apiVersion" json:"apiVersion,omitempty"`
	Name         string            `yaml:"name" json:"name"`
	Version      string            `yaml:"version" json:"version"`
	KubeVersion  string            `yaml:"kubeVersion" json:"kubeVersion,omitempty"`
	Description  string            `yaml:"description" json:"description,omitempty"`
	Type         string            `yaml:"type" json:"type,omitempty"`
	AppVersion   string            `yaml:"appVersion" json:"appVersion,omitempty"`
	Deprecated   bool              `yaml:"deprecated" json:"deprecated,omitempty"`
	Home         string            `yaml:"home" json:"home,omitempty"`
	Icon         string            `yaml:"icon" json:"icon,omitempty"`
	Condition    string            `yaml:"condition" json:"condition,omitempty"`
	Tags         string            `yaml:"tags" json:"tags,omitempty"`
	Sources      []string          `yaml:"sources" json:"sources,omitempty"`
	Keywords     []string          `yaml:"keywords" json:"keywords,omitempty"`
	Maintainers  []maintainer      `yaml:"maintainers" json:"maintainers,omitempty"`
	Dependencies []dependency      `yaml:"dependencies" json:"dependencies,omitempty"`
	Annotations  map[string]string `yaml:"annotations" json:"annotations,omitempty"`

	URLs    []string `yaml:"urls" json:"urls,omitempty"`
	Created string   `yaml:"created" json:"created,omitempty"`
	Digest  string   `yaml:"digest" json:"digest,omitempty"`
}

type maintainer struct {
	Name  string `yaml:"name" json:"name,omitempty"`
	Email string `yaml:"email" json:"email,omitempty"`
	URL   string `yaml:"url" json:"url,omitempty"`
}

type dependency struct {
	Name       string   `yaml:"name" json:"name"`
	Version    string   `yaml:"version" json:"version,omitempty"`
	Repository string   `yaml:"repository" json:"repository,omitempty"`
	Condition  string   `yaml:"condition" json:"condition,omitempty"`
	Tags       []string `yaml:"tags" json:"tags,omitempty"`
	Alias      string   `yaml:"alias" json:"alias,omitempty"`
}

var (
	nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,249}$`)
	// versionForm is what helm takes for a semantic version: it need not be whole.
	versionForm = regexp.MustCompile(`^v?(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){0,2}(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)
)

func checkName(name string) error {
	if !nameForm.MatchString(name) || strings.Contains(name, "..") {
		return fmt.Errorf("%.100q is no name of a chart: letters, digits and . _ - behind the first: %w", name, meta.ErrInvalid)
	}
	return nil
}

func checkVersion(version string) error {
	if len(version) > meta.MaxVersionBytes || !versionForm.MatchString(version) {
		return fmt.Errorf("%.100q is no version of a chart (semantic version): %w", version, meta.ErrInvalid)
	}
	return nil
}

// inspect opens a chart of size bytes and returns what its Chart.yaml says.
//
// Errors: meta.ErrInvalid; of r.
func inspect(r io.Reader, size int64) (chart, error) {
	var top string
	var raw []byte
	err := archive.TarGz(r, size, chartLimits, func(h *tar.Header, r io.Reader) error {
		if strings.Contains(h.Name, `\`) {
			return fmt.Errorf("the name %.80q has a backslash, which helm takes for a folder: %w", h.Name, meta.ErrInvalid)
		}
		dir, rest, ok := strings.Cut(strings.TrimPrefix(h.Name, "./"), "/")
		if !ok || top != "" && dir != top {
			return fmt.Errorf("a chart is one folder, %.80q is beside it: %w", h.Name, meta.ErrInvalid)
		}
		top = dir
		if path.Clean(rest) != "Chart.yaml" { // as helm reads names
			return nil
		}
		if raw != nil || h.Size > maxChartYAML {
			return fmt.Errorf("its Chart.yaml comes twice or is over %d bytes: %w", maxChartYAML, meta.ErrInvalid)
		}
		var err error
		raw, err = io.ReadAll(r)
		return err
	})
	if err != nil {
		return chart{}, err
	}
	if raw == nil {
		return chart{}, fmt.Errorf("it has no Chart.yaml in its folder: %w", meta.ErrInvalid)
	}
	ch, err := parseChart(raw)
	if err == nil && ch.Name != top {
		err = fmt.Errorf("its folder is %.80q and its name %q: helm wants them the same: %w", top, ch.Name, meta.ErrInvalid)
	}
	return ch, err
}

// parseChart reads a Chart.yaml.
//
// Errors: meta.ErrInvalid.
func parseChart(raw []byte) (chart, error) {
	var ch chart
	if err := yaml.Unmarshal(raw, &ch); err != nil {
		return ch, fmt.Errorf("its Chart.yaml cannot be read: %v: %w", err, meta.ErrInvalid)
	}
	if ch.bytes() > maxChartBytes {
		return ch, fmt.Errorf("its Chart.yaml says more than %d bytes, one text many times: %w", maxChartBytes, meta.ErrInvalid)
	}
	if ch.APIVersion == "" {
		return ch, fmt.Errorf("its Chart.yaml has no apiVersion: %w", meta.ErrInvalid)
	}
	if err := checkName(ch.Name); err != nil {
		return ch, err
	}
	return ch, checkVersion(ch.Version)
}

// bytes is about what a chart takes when it is written out.
func (ch *chart) bytes() (n int) {
	add := func(texts ...string) {
		for _, text := range texts {
			n += len(text) + 8 // with its quotes, and the name of its field
		}
	}
	add(ch.APIVersion, ch.Name, ch.Version, ch.KubeVersion, ch.Description, ch.Type, ch.AppVersion, ch.Home, ch.Icon, ch.Condition, ch.Tags, ch.Created, ch.Digest)
	add(ch.Sources...)
	add(ch.Keywords...)
	add(ch.URLs...)
	for _, m := range ch.Maintainers {
		add(m.Name, m.Email, m.URL)
	}
	for _, d := range ch.Dependencies {
		add(d.Name, d.Version, d.Repository, d.Condition, d.Alias)
		add(d.Tags...)
	}
	for name, text := range ch.Annotations {
		add(name, text)
	}
	return n
}

// summarize is the chart as its version keeps it: what is long goes first when it is more
// than fits.
//
// Errors: meta.ErrInvalid.
func (ch chart) summarize() ([]byte, error) {
	ch.URLs, ch.Created, ch.Digest = nil, "", ""
	for _, drop := range []func(){
		func() {}, func() { ch.Annotations = nil }, func() { ch.Sources, ch.Keywords, ch.Icon = nil, nil, "" },
		func() { ch.Maintainers = nil }, func() { ch.Description = "" },
	} {
		drop()
		raw, err := json.Marshal(ch)
		if err != nil {
			return nil, fmt.Errorf("summary of chart %s: %w", ch.Name, err)
		}
		if len(raw) <= meta.MaxSummaryBytes {
			return raw, nil
		}
	}
	return nil, fmt.Errorf("chart %s has dependencies of more than %d bytes: %w", ch.Name, meta.MaxSummaryBytes, meta.ErrInvalid)
}
