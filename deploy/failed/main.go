// Command failed prints what failed in a run of go test, as the last words of a long log.
//
// Start reading at collect. It takes the events of `go test -json` (cmd/test2json, cmd/go help
// buildjson) from the file it is given, and prints each failed test with its own output, cut
// to what can be read at once, and then the names alone. When nothing failed it prints
// nothing. deploy/tools/gotest calls it.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

const (
	// headLines and tailLines are what is kept of a test's output: it begins with what the
	// test was about, and ends with why it gave up.
	headLines = 30
	tailLines = 70
	// lineBytes is the most of one line that is printed.
	lineBytes = 400
	// eventBytes is the longest event that is read; test2json splits lines long before.
	eventBytes = 16 << 20
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: failed EVENTS, a file that `go test -json` wrote")
		os.Exit(2)
	}
	file, err := os.Open(os.Args[1])
	if err == nil {
		var f []failure
		f, err = collect(file)
		file.Close()
		write(os.Stdout, f)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(os.Stderr, "failed:", err)
		os.Exit(1)
	}
}

// event is one line of go test -json, as far as it matters here.
type event struct {
	Action      string
	Package     string
	Test        string
	Elapsed     float64 // seconds
	Output      string
	ImportPath  string // of an event of a build
	FailedBuild string // of a package's fail event: the ImportPath that did not build
}

// failure is a test that failed, or one that had not ended when its package did, or a
// package that failed without either.
type failure struct {
	pkg, test string // test is "" for a package
	how       string // "1.20s", or why there is no such time
	output    excerpt
}

// collect returns the failures in the order in which they ended. A test whose subtests
// failed comes after them. Lines that are no events are skipped; what was collected before
// an error is returned with it.
func collect(r io.Reader) ([]failure, error) {
	type key struct{ pkg, test string }
	var (
		found   []failure
		outputs = map[key]*excerpt{} // of tests that run, and of packages and builds with test ""
		running = map[string][]string{}
		failed  = map[string]bool{} // packages of which a test failed
	)
	output := func(k key) *excerpt {
		if outputs[k] == nil {
			outputs[k] = &excerpt{}
		}
		return outputs[k]
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, eventBytes)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		k := key{cmp.Or(e.Package, e.ImportPath), e.Test}
		switch e.Action {
		case "run":
			running[e.Package] = append(running[e.Package], e.Test)
		case "output", "build-output":
			if !framing(e) {
				output(k).add(e.Output)
			}
		case "pass", "skip", "fail":
			if e.Test != "" {
				running[e.Package] = slices.DeleteFunc(running[e.Package], func(test string) bool { return test == e.Test })
			} else {
				for _, test := range running[e.Package] { // a panic or a timeout ended them all
					found = append(found, failure{e.Package, test, "it had not ended", *output(key{e.Package, test})})
					delete(outputs, key{e.Package, test})
					failed[e.Package] = true
				}
				delete(running, e.Package)
			}
			if e.Action == "fail" {
				f := failure{e.Package, e.Test, fmt.Sprintf("%.2fs", e.Elapsed), *output(k)}
				if e.FailedBuild != "" {
					f.how, f.output = "it does not build", *output(key{e.FailedBuild, ""})
				}
				if e.Test != "" || !failed[e.Package] {
					found = append(found, f)
				}
				failed[e.Package] = true
			}
			delete(outputs, k)
		}
	}
	// Whoever ended the run before its end wants to know what ran.
	for _, pkg := range slices.Sorted(maps.Keys(running)) {
		for _, test := range running[pkg] {
			found = append(found, failure{pkg, test, "it had not ended", *output(key{pkg, test})})
		}
	}
	return found, lines.Err()
}

// framing reports whether the event only says what other events say.
func framing(e event) bool {
	text := strings.TrimLeft(e.Output, " ")
	for _, prefix := range []string{"=== RUN ", "=== PAUSE ", "=== CONT ", "=== NAME ", "--- FAIL: ", "--- PASS: ", "--- SKIP: "} {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return false
}

// write prints the failures, then their names.
func write(w io.Writer, failures []failure) {
	if len(failures) == 0 {
		return
	}
	for _, f := range failures {
		fmt.Fprintf(w, "\n=== FAILED %s\n", f)
		f.output.write(w)
	}
	fmt.Fprintf(w, "\n=== %d FAILED\n", len(failures))
	for _, f := range failures {
		fmt.Fprintf(w, "--- FAIL: %s\n", f)
	}
}

func (f failure) String() string {
	if f.test == "" {
		return fmt.Sprintf("%s (%s)", f.pkg, f.how)
	}
	return fmt.Sprintf("%s (%s) of %s", f.test, f.how, f.pkg)
}

// excerpt keeps the first and the last lines of a text that comes in parts.
type excerpt struct {
	head, tail []string
	left       int    // lines between them
	rest       string // the beginning of a line
}

func (x *excerpt) add(text string) {
	x.rest += text
	for {
		line, rest, whole := strings.Cut(x.rest, "\n")
		if !whole {
			x.rest = x.rest[:min(len(x.rest), 2*lineBytes)] // more than is printed, so that it shows that it is cut
			return
		}
		x.rest = rest
		x.line(line)
	}
}

func (x *excerpt) line(line string) {
	if len(line) > lineBytes {
		line = strings.ToValidUTF8(line[:lineBytes], "") + " ..."
	}
	if len(x.head) < headLines {
		x.head = append(x.head, line)
		return
	}
	x.tail = append(x.tail, line)
	if len(x.tail) > tailLines {
		x.tail = x.tail[1:]
		x.left++
	}
}

func (x *excerpt) write(w io.Writer) {
	for _, line := range x.head {
		fmt.Fprintln(w, line)
	}
	if x.left > 0 {
		fmt.Fprintf(w, "    ... %d lines, they are above ...\n", x.left)
	}
	for _, line := range x.tail {
		fmt.Fprintln(w, line)
	}
	if x.rest != "" {
		fmt.Fprintln(w, x.rest)
	}
}
