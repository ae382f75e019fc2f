package main

import (
	"fmt"
	"strings"
	"testing"
)

// run is a run of go test -json in which each way to fail happens.
const run = `{"Action":"start","Package":"a"}
{"Action":"run","Package":"a","Test":"TestGood"}
{"Action":"output","Package":"a","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"output","Package":"a","Test":"TestGood","Output":"    a_test.go:3: a figure\n"}
{"Action":"pass","Package":"a","Test":"TestGood","Elapsed":1}
{"Action":"run","Package":"a","Test":"TestBad"}
{"Action":"output","Package":"a","Test":"TestBad","Output":"    a_test.go:4: what it "}
{"Action":"output","Package":"a","Test":"TestBad","Output":"is about\n"}
{"Action":"run","Package":"a","Test":"TestBad/sub"}
{"Action":"output","Package":"a","Test":"TestBad/sub","Output":"    a_test.go:5: why\n"}
{"Action":"output","Package":"a","Test":"TestBad/sub","Output":"    --- FAIL: TestBad/sub (0.50s)\n"}
{"Action":"fail","Package":"a","Test":"TestBad/sub","Elapsed":0.5}
{"Action":"fail","Package":"a","Test":"TestBad","Elapsed":1.5}
{"Action":"output","Package":"a","Output":"FAIL\ta\t0.006s\n"}
{"Action":"fail","Package":"a","Elapsed":2}
{"ImportPath":"b [b.test]","Action":"build-output","Output":"# b [b.test]\n"}
{"ImportPath":"b [b.test]","Action":"build-output","Output":"./y.go:1:23: undefined: z\n"}
{"ImportPath":"b [b.test]","Action":"build-fail"}
{"Action":"output","Package":"b","Output":"FAIL\tb [build failed]\n"}
{"Action":"fail","Package":"b","Elapsed":0,"FailedBuild":"b [b.test]"}
{"Action":"run","Package":"c","Test":"TestHangs"}
{"Action":"output","Package":"c","Test":"TestHangs","Output":"panic: test timed out after 2s\n"}
{"Action":"fail","Package":"c","Elapsed":2}
FAIL
{"Action":"output","Package":"d","Output":"d: no root\n"}
{"Action":"fail","Package":"d","Elapsed":0.1}
{"Action":"skip","Package":"e","Elapsed":0}
{"Action":"run","Package":"f","Test":"TestWasCutShort"}
`

func TestEachWayToFailIsListed(t *testing.T) {
	failures, err := collect(strings.NewReader(run))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	write(&out, failures)
	const want = `
=== FAILED TestBad/sub (0.50s) of a
    a_test.go:5: why

=== FAILED TestBad (1.50s) of a
    a_test.go:4: what it is about

=== FAILED b (it does not build)
# b [b.test]
./y.go:1:23: undefined: z

=== FAILED TestHangs (it had not ended) of c
panic: test timed out after 2s

=== FAILED d (0.10s)
d: no root

=== FAILED TestWasCutShort (it had not ended) of f

=== 6 FAILED
--- FAIL: TestBad/sub (0.50s) of a
--- FAIL: TestBad (1.50s) of a
--- FAIL: b (it does not build)
--- FAIL: TestHangs (it had not ended) of c
--- FAIL: d (0.10s)
--- FAIL: TestWasCutShort (it had not ended) of f
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestNothingIsSaidOfSuccess(t *testing.T) {
	failures, err := collect(strings.NewReader(`{"Action":"run","Package":"a","Test":"TestGood"}
{"Action":"pass","Package":"a","Test":"TestGood"}
{"Action":"pass","Package":"a"}
`))
	var out strings.Builder
	write(&out, failures)
	if err != nil || out.Len() != 0 {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func TestLongOutputIsCut(t *testing.T) {
	var x excerpt
	for i := range 1000 {
		x.add(fmt.Sprintf("line %d\n", i))
	}
	x.add(strings.Repeat("é", lineBytes) + "\nthe end")
	var out strings.Builder
	x.write(&out)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != headLines+1+tailLines+1 || lines[0] != "line 0" || lines[len(lines)-1] != "the end" {
		t.Fatalf("%d lines, from %q to %q", len(lines), lines[0], lines[len(lines)-1])
	}
	if want := "    ... 901 lines, they are above ..."; lines[headLines] != want {
		t.Errorf("%q, want %q", lines[headLines], want)
	}
	if cut := lines[len(lines)-2]; len(cut) != lineBytes+len(" ...") {
		t.Errorf("a line of %d bytes", len(cut))
	}
}
