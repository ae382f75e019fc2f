package pypi

import (
	"bufio"
	"encoding/json"
	"html"
	"io"
	"iter"
	"net/url"
	"time"
)

// The forms of the simple index (PEP 503, PEP 691).
const (
	mediaHTML   = "text/html"
	mediaV1HTML = "application/vnd.pypi.simple.v1+html"
	mediaV1JSON = "application/vnd.pypi.simple.v1+json"
	// What clients may also ask for.
	mediaLatestHTML = "application/vnd.pypi.simple.latest+html"
	mediaLatestJSON = "application/vnd.pypi.simple.latest+json"
)

// apiVersion is what the pages are of: sizes, times and versions (PEP 700), core metadata
// (PEP 714), yanks (PEP 592).
const apiVersion = "1.4"

// entry is one file of a project, as its page shows it.
type entry struct {
	version  string // "" when the name does not say
	name     string
	sha256   string // hex, "" for none
	requires string
	size     int64 // -1 for unknown
	uploaded time.Time
	// metadata says that NAME.metadata is there, metadataSum what its sha256 is, "" for
	// unknown.
	metadata    bool
	metadataSum string
	yanked      bool
	reason      string
}

// entries walks the files of a project. It can be walked more than once; the walk ends
// with the first error.
type entries = iter.Seq2[entry, error]

// href is the file's address, relative to the project's page, so that a page is the same
// bytes at every gateway.
func (e *entry) href(project string) string {
	u := "../../files/" + url.PathEscape(project) + "/" + url.PathEscape(e.name)
	if e.sha256 != "" {
		u += "#sha256=" + e.sha256
	}
	return u
}

// writeHTML renders the page of a project (PEP 503).
func writeHTML(w io.Writer, project string, files entries) error {
	b := bufio.NewWriter(w)
	title := html.EscapeString("Links for " + project)
	text(b, "<!DOCTYPE html>\n<html>\n<head>\n<meta name=\"pypi:repository-version\" content=\""+apiVersion+"\">\n<title>"+title+"</title>\n</head>\n<body>\n<h1>"+title+"</h1>\n")
	for e, err := range files {
		if err != nil {
			return err
		}
		text(b, `<a href="`+html.EscapeString(e.href(project))+`"`)
		attribute := func(name, value string) { text(b, " "+name+`="`+html.EscapeString(value)+`"`) }
		if e.requires != "" {
			attribute("data-requires-python", e.requires)
		}
		if e.yanked {
			attribute("data-yanked", e.reason)
		}
		if e.metadata {
			sum := "true"
			if e.metadataSum != "" {
				sum = "sha256=" + e.metadataSum
			}
			attribute("data-core-metadata", sum)
			attribute("data-dist-info-metadata", sum)
		}
		text(b, ">"+html.EscapeString(e.name)+"</a><br>\n")
	}
	text(b, "</body>\n</html>\n")
	return b.Flush()
}

// text writes to a buffer, whose Flush says what failed.
func text(b *bufio.Writer, s string) { _, _ = b.WriteString(s) }

// jsonFile is a file in the JSON form (PEP 691).
type jsonFile struct {
	Filename       string            `json:"filename"`
	URL            string            `json:"url"`
	Hashes         map[string]string `json:"hashes"`
	RequiresPython string            `json:"requires-python,omitempty"`
	Size           *int64            `json:"size,omitempty"`
	UploadTime     string            `json:"upload-time,omitempty"`
	Yanked         any               `json:"yanked"`
	CoreMetadata   any               `json:"core-metadata"`
	DistInfo       any               `json:"dist-info-metadata"`
}

// uploadTime is the form of a time in the index: UTC, with Z, at most microseconds.
const uploadTime = "2006-01-02T15:04:05.000000Z"

// writeJSON renders the page of a project (PEP 691). The versions stand in front of the
// files, so that neither list is held in memory.
//
// sorted says that the files of a version stand together.
func writeJSON(w io.Writer, project string, files entries, sorted bool) error {
	b := bufio.NewWriter(w)
	put := func(v any) error {
		raw, err := json.Marshal(v)
		if err == nil {
			_, err = b.Write(raw)
		}
		return err
	}
	text(b, `{"meta":{"api-version":"`+apiVersion+`"},"name":`)
	if err := put(project); err != nil {
		return err
	}
	text(b, `,"versions":[`)
	last, comma := "", ""
	seen := map[string]bool{} // of an upstream's page, which is a document of bounded size
	for e, err := range files {
		if err != nil {
			return err
		}
		if e.version == "" || e.version == last || seen[e.version] {
			continue
		}
		text(b, comma)
		if err := put(e.version); err != nil {
			return err
		}
		last, comma = e.version, ","
		if !sorted {
			seen[e.version] = true
		}
	}
	text(b, `],"files":[`)
	comma = ""
	for e, err := range files {
		if err != nil {
			return err
		}
		f := jsonFile{
			Filename: e.name, Hashes: map[string]string{}, RequiresPython: e.requires, Yanked: e.yanked, CoreMetadata: e.metadata,
		}
		if e.sha256 != "" {
			f.Hashes["sha256"] = e.sha256
		}
		bare := e
		bare.sha256 = ""
		f.URL = bare.href(project)
		if e.size >= 0 {
			f.Size = &e.size
		}
		if !e.uploaded.IsZero() {
			f.UploadTime = e.uploaded.UTC().Format(uploadTime)
		}
		if e.yanked && e.reason != "" {
			f.Yanked = e.reason
		}
		if e.metadata && e.metadataSum != "" {
			f.CoreMetadata = map[string]string{"sha256": e.metadataSum}
		}
		f.DistInfo = f.CoreMetadata
		text(b, comma)
		if err := put(f); err != nil {
			return err
		}
		comma = ",\n"
	}
	text(b, "]}\n")
	return b.Flush()
}

// project names a project in the root index.
type project struct {
	name     string // normalized
	spelling string // as its first publisher wrote it
}

func writeProjectsHTML(w io.Writer, projects iter.Seq2[project, error]) error {
	b := bufio.NewWriter(w)
	text(b, "<!DOCTYPE html>\n<html>\n<head>\n<meta name=\"pypi:repository-version\" content=\""+apiVersion+"\">\n<title>Simple index</title>\n</head>\n<body>\n")
	for p, err := range projects {
		if err != nil {
			return err
		}
		text(b, `<a href="`+url.PathEscape(p.name)+`/">`+html.EscapeString(p.spelling)+"</a><br>\n")
	}
	text(b, "</body>\n</html>\n")
	return b.Flush()
}

func writeProjectsJSON(w io.Writer, projects iter.Seq2[project, error]) error {
	b := bufio.NewWriter(w)
	text(b, `{"meta":{"api-version":"`+apiVersion+`"},"projects":[`)
	comma := ""
	for p, err := range projects {
		if err != nil {
			return err
		}
		raw, err := json.Marshal(map[string]string{"name": p.spelling})
		if err != nil {
			return err
		}
		text(b, comma+string(raw))
		comma = ",\n"
	}
	text(b, "]}\n")
	return b.Flush()
}
