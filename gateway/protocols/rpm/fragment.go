package rpm

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/verify/digest"
)

// fragments are what the three documents show of a package: its element in each.
type fragments struct {
	Primary   []byte `cbor:"1,keyasint,omitempty"`
	Filelists []byte `cbor:"2,keyasint,omitempty"`
	Other     []byte `cbor:"3,keyasint,omitempty"`
}

// maxFragments bounds each fragment of a package, and outgrown how many times as long as
// the header it may be: an element for a relation of two letters is longest for what it
// says. A few long folders under many names must not come to more.
const (
	maxFragments = 32 << 20
	outgrown     = 8
)

// logEntries is how many entries of a changelog are shown, as createrepo_c does.
const logEntries = 10

// primaryFile are the files that primary.xml lists too: what packages require by path.
var primaryFile = regexp.MustCompile(`^(/etc/|/usr/lib/sendmail$|(.*/)?s?bin/)`)

// out writes XML. It keeps the size within most; err is of the first that failed.
type out struct {
	bytes.Buffer
	most int
	err  error
}

// add writes format, in which each %s is escaped.
func (o *out) add(format string, args ...string) {
	for {
		before, after, more := strings.Cut(format, "%s")
		o.WriteString(before)
		if !more || len(args) == 0 {
			break
		}
		// EscapeText writes U+FFFD for what XML cannot have, and never fails into a buffer.
		_ = xml.EscapeText(&o.Buffer, []byte(args[0]))
		format, args = after, args[1:]
	}
	if o.Len() > o.most && o.err == nil {
		o.err = refuse("its file list, relations or changelog are too long to show")
		o.Reset()
	}
}

// relation is a kind of relation to other packages, with its tags.
type relation struct {
	element              string
	name, flags, version uint32
}

var relations = []relation{
	{"provides", 1047, 1112, 1113}, {"requires", 1049, 1048, 1050}, {"conflicts", 1054, 1053, 1055}, {"obsoletes", 1090, 1114, 1115},
	{"suggests", 5049, 5051, 5050}, {"enhances", 5055, 5057, 5056}, {"recommends", 5046, 5048, 5047}, {"supplements", 5052, 5054, 5053},
}

// Flags of a relation (rpmds.h).
const (
	senseLess    = 1 << 1
	senseGreater = 1 << 2
	senseEqual   = 1 << 3
	sensePre     = 1<<6 | 1<<9 | 1<<10 // prereq, script pre and post
	senseRPMLib  = 1 << 24
)

var senses = map[uint64]string{
	senseLess: "LT", senseGreater: "GT", senseEqual: "EQ", senseLess | senseEqual: "LE", senseGreater | senseEqual: "GE",
}

// entry of a file in a package.
type entryOf struct{ path, kind string }

// most is how long a fragment of the package may be.
func (f *file) most() int { return min(outgrown*len(f.store)+16<<10, maxFragments) }

// render makes the fragments of a package of that digest, at that path of the repository.
// They follow from the package alone: who uploads it again uploads the same.
//
// Errors: meta.ErrInvalid.
func (f *file) render(n nevra, d digest.Digest, path string) (fragments, error) {
	files, err := f.files()
	if err != nil {
		return fragments{}, err
	}
	num := func(v uint64) string { return strconv.FormatUint(v, 10) }
	either := func(tags ...uint32) string {
		for _, t := range tags {
			if v, ok := f.number(t); ok {
				return num(v)
			}
		}
		return "0"
	}
	archive := either(tagLongArchive, tagArchiveSize)
	if archive == "0" {
		archive = num(f.payload)
	}
	id, version := d.Encoded(), []string{num(n.Epoch), n.Version, n.Release}

	p, l, o := out{most: f.most()}, out{most: f.most()}, out{most: f.most()}
	p.add("<package type=\"rpm\"><name>%s</name><arch>%s</arch><version epoch=\"%s\" ver=\"%s\" rel=\"%s\"/>", append([]string{n.Name, n.Arch}, version...)...)
	p.add("<checksum type=\"sha256\" pkgid=\"YES\">%s</checksum><summary>%s</summary><description>%s</description>", id, f.text(tagSummary), f.text(tagDescription))
	p.add("<packager>%s</packager><url>%s</url><time file=\"%s\" build=\"%s\"/>", f.text(tagPackager), f.text(tagURL), either(tagBuildTime), either(tagBuildTime))
	p.add("<size package=\"%s\" installed=\"%s\" archive=\"%s\"/><location href=\"%s\"/>", strconv.FormatInt(f.size, 10), either(tagLongSize, tagSize), archive, path)
	p.add("<format><rpm:license>%s</rpm:license><rpm:vendor>%s</rpm:vendor><rpm:group>%s</rpm:group>", f.text(tagLicense), f.text(tagVendor), f.text(tagGroup))
	p.add("<rpm:buildhost>%s</rpm:buildhost><rpm:sourcerpm>%s</rpm:sourcerpm><rpm:header-range start=\"%s\" end=\"%s\"/>",
		f.text(tagBuildHost), f.text(tagSourceRPM), strconv.FormatInt(f.start, 10), strconv.FormatInt(f.end, 10))
	for _, r := range relations {
		if err := f.relate(&p, r); err != nil {
			return fragments{}, err
		}
	}
	for _, e := range files {
		if primaryFile.MatchString(e.path) {
			p.file(e)
		}
	}
	p.add("</format></package>\n")

	head := append([]string{id, n.Name, n.Arch}, version...)
	const start = "<package pkgid=\"%s\" name=\"%s\" arch=\"%s\"><version epoch=\"%s\" ver=\"%s\" rel=\"%s\"/>"
	l.add(start, head...)
	for _, e := range files {
		l.file(e)
	}
	l.add("</package>\n")

	o.add(start, head...)
	if err := f.changelog(&o); err != nil {
		return fragments{}, err
	}
	o.add("</package>\n")
	for _, part := range []*out{&p, &l, &o} {
		if part.err != nil {
			return fragments{}, part.err
		}
	}
	return fragments{p.Bytes(), l.Bytes(), o.Bytes()}, nil
}

func (o *out) file(e entryOf) {
	if e.kind == "" {
		o.add("<file>%s</file>", e.path)
	} else {
		o.add("<file type=\"%s\">%s</file>", e.kind, e.path)
	}
}

// relate writes the relations of a kind, without those to rpm itself.
func (f *file) relate(o *out, r relation) error {
	names, err := f.texts(r.name, maxRelations)
	if err != nil || len(names) == 0 {
		return err
	}
	flags, err := f.numbers(r.flags, maxRelations)
	if err != nil {
		return err
	}
	versions, err := f.texts(r.version, maxRelations)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	begun := false
	for i, name := range names {
		flag, version := uint64(0), ""
		if i < len(flags) {
			flag = flags[i]
		}
		if i < len(versions) {
			version = versions[i]
		}
		if flag&senseRPMLib != 0 || strings.HasPrefix(name, "rpmlib(") {
			continue
		}
		key := fmt.Sprint(name, "\x00", flag&(senseLess|senseGreater|senseEqual), "\x00", version, "\x00", flag&sensePre != 0)
		if seen[key] {
			continue
		}
		seen[key] = true
		if !begun {
			o.WriteString("<rpm:" + r.element + ">")
			begun = true
		}
		o.add("<rpm:entry name=\"%s\"", name)
		if sense := senses[flag&(senseLess|senseGreater|senseEqual)]; sense != "" && version != "" {
			epoch, rest, ok := strings.Cut(version, ":")
			if !ok {
				epoch, rest = "0", version
			}
			ver, rel, hasRel := strings.Cut(rest, "-")
			o.add(" flags=\"%s\" epoch=\"%s\" ver=\"%s\"", sense, epoch, ver)
			if hasRel {
				o.add(" rel=\"%s\"", rel)
			}
		}
		if r.element == "requires" && flag&sensePre != 0 {
			o.add(" pre=\"1\"")
		}
		o.add("/>")
	}
	if begun {
		o.WriteString("</rpm:" + r.element + ">")
	}
	return nil
}

// files lists the files of the package.
//
// Errors: meta.ErrInvalid.
func (f *file) files() ([]entryOf, error) {
	modes, err := f.numbers(tagFileModes, maxFiles)
	if err != nil {
		return nil, err
	}
	flags, err := f.numbers(tagFileFlags, maxFiles)
	if err != nil {
		return nil, err
	}
	var paths []string
	bases, err := f.texts(tagBaseNames, maxFiles)
	if err != nil {
		return nil, err
	}
	dirs, err := f.texts(tagDirNames, maxFiles)
	if err != nil {
		return nil, err
	}
	indexes, err := f.numbers(tagDirIndexes, maxFiles)
	if err != nil {
		return nil, err
	}
	if len(bases) != len(indexes) {
		return nil, refuse("it has %d files in %d places", len(bases), len(indexes))
	}
	total := 0
	for i, base := range bases {
		if indexes[i] >= uint64(len(dirs)) {
			return nil, refuse("a file is in folder %d of %d", indexes[i], len(dirs))
		}
		dir := dirs[indexes[i]]
		// A few long folders under many names outgrow the header they come from.
		if total += len(dir) + len(base); total > f.most() {
			return nil, refuse("its file list is too long to show")
		}
		paths = append(paths, dir+base)
	}
	if len(bases) == 0 {
		if paths, err = f.texts(tagOldFiles, maxFiles); err != nil {
			return nil, err
		}
	}
	entries := make([]entryOf, len(paths))
	for i, path := range paths {
		entries[i].path = path
		switch {
		case i < len(modes) && modes[i]&0o170000 == 0o040000:
			entries[i].kind = "dir"
		case i < len(flags) && flags[i]&(1<<6) != 0:
			entries[i].kind = "ghost"
		}
	}
	return entries, nil
}

// changelog writes the newest entries of the changelog, the oldest of them first.
func (f *file) changelog(o *out) error {
	times, err := f.numbers(tagLogTime, maxRelations)
	if err != nil {
		return err
	}
	names, err := f.texts(tagLogName, maxRelations)
	if err != nil {
		return err
	}
	texts, err := f.texts(tagLogText, maxRelations)
	if err != nil {
		return err
	}
	n := min(len(times), len(names), len(texts), logEntries)
	for i := n - 1; i >= 0; i-- {
		o.add("<changelog author=\"%s\" date=\"%s\">%s</changelog>", names[i], strconv.FormatUint(times[i], 10), texts[i])
	}
	return nil
}
