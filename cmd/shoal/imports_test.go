package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var updateImports = flag.Bool("update-imports", false,
	"rewrite imports.txt to what the packages import today; the room rules in it still apply")

const (
	modulePath  = "github.com/shoal-registry/shoal"
	moduleRoot  = "../.."
	importsFile = "imports.txt"
)

// goPackage is a folder with Go files, named by its path from the module root.
type goPackage struct {
	imports     []string // packages of this module that non-test files import, sorted
	testImports []string // the same of _test.go files
	doc         string   // the package comment
	onlyTests   bool
}

// importLaw is what imports.txt says.
type importLaw struct {
	// rooms maps a folder to the prefixes that packages beneath it may import at
	// all; the longest matching folder decides.
	rooms map[string][]string
	// packages maps each package to exactly what it imports.
	packages map[string][]string
}

func TestImportLaw(t *testing.T) {
	tree, err := readTree(os.DirFS(moduleRoot))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(importsFile)
	if err != nil {
		t.Fatal(err)
	}
	law, err := parseImportLaw(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if *updateImports {
		text = []byte(renderImportLaw(string(text), tree))
		if err := os.WriteFile(importsFile, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if law, err = parseImportLaw(string(text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, finding := range law.check(tree) {
		t.Error(finding)
	}
	if t.Failed() {
		t.Log("the law is cmd/shoal/imports.txt; after a deliberate change run: go test ./cmd/shoal -run ImportLaw -update-imports")
	}
}

func TestEveryPackageHasADoc(t *testing.T) {
	tree, err := readTree(os.DirFS(moduleRoot))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		if problem := docProblem(name, tree[name]); problem != "" {
			t.Errorf("%s: %s", name, problem)
		}
	}
}

// docProblem says what a package comment lacks, "" when it is in order. A package
// that holds nothing but tests needs one too: it says what is tested.
func docProblem(name string, p goPackage) string {
	doc := strings.TrimSpace(p.doc)
	switch first, _, _ := strings.Cut(doc, "\n"); {
	case doc == "":
		return "no package comment: say what it does, where to start reading, who owns its goroutines"
	case !strings.HasPrefix(doc, "Package ") && !strings.HasPrefix(doc, "Command ") && name != ".":
		return fmt.Sprintf("the package comment begins %q, not with Package or Command", first)
	case len(doc) < 60:
		return fmt.Sprintf("the package comment is only %q", doc)
	}
	return ""
}

// readTree parses package clauses, comments and imports of every Go file of the
// module; nested modules, testdata and hidden folders are not part of it.
func readTree(root fs.FS) (map[string]goPackage, error) {
	tree := make(map[string]goPackage)
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name == "." {
				return nil
			}
			base := path.Base(name)
			if base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
				return fs.SkipDir
			}
			if _, err := fs.Stat(root, path.Join(name, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		source, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		isTest := strings.HasSuffix(name, "_test.go")
		folder := path.Dir(name)
		p, seen := tree[folder]
		p.onlyTests = isTest && (!seen || p.onlyTests)
		if file.Doc != nil && !strings.HasSuffix(file.Name.Name, "_test") {
			p.doc += file.Doc.Text()
		}
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			inside, ok := strings.CutPrefix(imported, modulePath+"/")
			switch {
			case !ok || inside == folder:
			case isTest:
				p.testImports = append(p.testImports, inside)
			default:
				p.imports = append(p.imports, inside)
			}
		}
		tree[folder] = p
		return nil
	})
	for name, p := range tree {
		slices.Sort(p.imports)
		slices.Sort(p.testImports)
		p.imports, p.testImports = slices.Compact(p.imports), slices.Compact(p.testImports)
		tree[name] = p
	}
	return tree, err
}

// parseImportLaw reads imports.txt: a `[rooms]` and a `[packages]` section of lines
// `name: import import ...`; # begins a comment.
func parseImportLaw(text string) (importLaw, error) {
	law := importLaw{rooms: make(map[string][]string), packages: make(map[string][]string)}
	var section map[string][]string
	scanner := bufio.NewScanner(strings.NewReader(text))
	for number := 1; scanner.Scan(); number++ {
		line, _, _ := strings.Cut(scanner.Text(), "#")
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			continue
		case line == "[rooms]":
			section = law.rooms
			continue
		case line == "[packages]":
			section = law.packages
			continue
		case section == nil:
			return law, fmt.Errorf("%s:%d: a line before any section", importsFile, number)
		}
		name, imports, ok := strings.Cut(line, ":")
		if !ok {
			return law, fmt.Errorf("%s:%d: %q has no colon", importsFile, number, line)
		}
		if _, twice := section[name]; twice {
			return law, fmt.Errorf("%s:%d: %s is listed twice", importsFile, number, name)
		}
		section[name] = strings.Fields(imports)
	}
	if len(law.rooms) == 0 {
		return law, errors.New(importsFile + ": no [rooms]")
	}
	return law, scanner.Err()
}

// renderImportLaw keeps everything up to `[packages]` and lists tree after it.
func renderImportLaw(text string, tree map[string]goPackage) string {
	head, _, _ := strings.Cut(text, "\n[packages]\n")
	var b strings.Builder
	b.WriteString(head + "\n[packages]\n")
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		b.WriteString(strings.TrimSpace(name+": "+strings.Join(tree[name].imports, " ")) + "\n")
	}
	return b.String()
}

// check returns one sentence for each import that the law forbids, each package or
// permission that it lacks, and each that nothing uses; sorted by package.
func (l importLaw) check(tree map[string]goPackage) []string {
	var findings []string
	say := func(format string, args ...any) { findings = append(findings, fmt.Sprintf(format, args...)) }
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		p := tree[name]
		room, allowed := l.room(name)
		if room == "" {
			say("missing: %s belongs to no room of imports.txt", name)
		}
		listed, ok := l.packages[name]
		if !ok {
			say("missing: %s is not listed in imports.txt", name)
		}
		for _, imported := range p.imports {
			if room != "" && !covers(allowed, imported) {
				say("forbidden: %s imports %s, which room %s may not", name, imported, room)
			}
			if ok && !slices.Contains(listed, imported) {
				say("missing: %s imports %s without permission", name, imported)
			}
		}
		for _, permitted := range listed {
			if !slices.Contains(p.imports, permitted) {
				say("unused: %s may import %s but does not", name, permitted)
			}
		}
		// Tests keep the room's law too; the shared suites and the test nodes are open to all of them.
		for _, imported := range p.testImports {
			if room != "" && !covers(allowed, imported) && !strings.HasSuffix(imported, "test") {
				say("forbidden: tests of %s import %s, which room %s may not", name, imported, room)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.packages)) {
		if _, ok := tree[name]; !ok {
			say("unused: imports.txt lists %s, which does not exist", name)
		}
	}
	return findings
}

// room returns the longest folder of the rooms that holds name, and what it may import.
func (l importLaw) room(name string) (string, []string) {
	for folder := name; ; folder = path.Dir(folder) {
		if allowed, ok := l.rooms[folder]; ok {
			return folder, allowed
		}
		if folder == "." || folder == "/" {
			return "", nil
		}
	}
}

// covers reports whether imported is one of prefixes or, for a prefix that ends in
// `/...`, lies in or beneath it.
func covers(prefixes []string, imported string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool {
		folder, tree := strings.CutSuffix(prefix, "/...")
		return imported == folder || tree && strings.HasPrefix(imported, folder+"/")
	})
}

// The law itself is tested: each kind of breach must be found.
func TestImportLawFindsEachBreach(t *testing.T) {
	law, err := parseImportLaw("[rooms]\na: leaf b/...\nleaf:\n[packages]\na: leaf gone\nleaf:\nghost:\n")
	if err != nil {
		t.Fatal(err)
	}
	tree := map[string]goPackage{
		"a":     {imports: []string{"b/c", "leaf", "z"}, testImports: []string{"y", "ytest"}},
		"leaf":  {},
		"other": {},
	}
	want := []string{
		"missing: a imports b/c without permission",
		"forbidden: a imports z, which room a may not",
		"missing: a imports z without permission",
		"unused: a may import gone but does not",
		"forbidden: tests of a import y, which room a may not",
		"missing: other belongs to no room of imports.txt",
		"missing: other is not listed in imports.txt",
		"unused: imports.txt lists ghost, which does not exist",
	}
	if got := law.check(tree); !slices.Equal(got, want) {
		t.Errorf("findings:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The four capabilities stay strangers: no room rule may let one import another.
func TestCapabilitiesAreStrangers(t *testing.T) {
	text, err := os.ReadFile(filepath.FromSlash(importsFile))
	if err != nil {
		t.Fatal(err)
	}
	law, err := parseImportLaw(string(text))
	if err != nil {
		t.Fatal(err)
	}
	leaves := law.rooms["leaves"]
	if len(leaves) == 0 {
		t.Fatal("imports.txt has no line for the leaves")
	}
	capabilities := []string{"raftmeta", "transfer", "dht", "verify"}
	top := func(name string) string { first, _, _ := strings.Cut(name, "/"); return first }
	for room, allowed := range law.rooms {
		if !slices.Contains(capabilities, top(room)) {
			continue
		}
		for _, permitted := range allowed {
			if top(permitted) != top(room) && !slices.Contains(leaves, permitted) {
				t.Errorf("room %s may import %s, which is neither its own nor a leaf", room, permitted)
			}
		}
	}
}
