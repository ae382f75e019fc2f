package main

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// TestMain is the process of the noisy clients when it is started as such.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "--generate" {
		if err := generate(context.Background(), os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestNoisy runs one short turn: that there are figures, and that the noisy tenant is
// held back while nobody else is.
func TestNoisy(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts the binary")
	}
	bin, err := proc.Binary(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o := options{bin: bin, data: t.TempDir(), turns: 1, times: 10, base: rates{Publishes: 5, Pulls: 5}, turn: 3e9}
	before, during, calm, loud, err := run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range kindsOfCalls {
		if before.at(kind, .5) == 0 || during.at(kind, .99) == 0 {
			t.Errorf("%s has no figures: %v, %v", kind, before.took, during.took)
		}
	}
	if calm.Served == 0 || loud.Refused == 0 {
		t.Errorf("the noisy tenant: %+v, then %+v", calm, loud)
	}
}
