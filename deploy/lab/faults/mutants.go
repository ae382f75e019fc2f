package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shoal-registry/shoal/deploy/lab/faults/mutant"
	"github.com/shoal-registry/shoal/deploy/lab/faults/round"
	"github.com/shoal-registry/shoal/deploy/proc"
)

// runMutants builds mutants one after another, runs a round against each until
// something is wrong, and prints what saw which. It fails when one was not caught.
func runMutants(ctx context.Context, c round.Config, names string) (err error) {
	chosen := mutant.All()
	if names != "all" {
		chosen = nil
		for name := range strings.SplitSeq(names, ",") {
			m, err := mutant.Find(name)
			if err != nil {
				return err
			}
			chosen = append(chosen, m)
		}
	}
	root, err := proc.ModuleRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "shoal-mutants-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	table := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	var alive []string
	for _, m := range chosen {
		began := time.Now()
		caught, err := runMutant(ctx, c, m, root, dir)
		if err != nil {
			return err
		}
		if caught == "" {
			alive = append(alive, m.Name)
			caught = "NOT CAUGHT"
		}
		c.Say("%s: %s", m.Name, caught)
		fmt.Fprintf(table, "%s\t%s\t%.0f s\t%s\n", m.Name, caught, time.Since(began).Seconds(), m.What)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(alive) > 0 {
		return fmt.Errorf("not caught: %s", strings.Join(alive, ", "))
	}
	return nil
}

// runMutant returns what caught the mutant, "" when nothing did.
func runMutant(ctx context.Context, c round.Config, m mutant.Mutant, root, dir string) (caught string, err error) {
	c.Say("%s: %s", m.Name, m.What)
	if c.Bin, err = m.Build(ctx, root, dir); err != nil {
		return "", err
	}
	c.Only, c.Keys, c.UntilWrong = m.Only, m.Keys, true
	if m.LargeEvery > 0 {
		c.LargeEvery = m.LargeEvery
	}
	c.Profile.Patience = time.Minute // a mutant may well not come back at all
	c.Dir = filepath.Join(dir, m.Name)
	if err := os.Mkdir(c.Dir, 0o755); err != nil {
		return "", err
	}
	r, err := round.Run(ctx, c)
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if r == nil {
		return "", err
	}
	var by []string
	for _, v := range r.Verdicts() {
		if v.Must && v.Count > 0 {
			by = append(by, fmt.Sprintf("%s: %d", v.What, v.Count))
		}
	}
	if err != nil {
		c.Say("%s: the round broke off: %v", m.Name, err)
		by = append(by, "the cluster does not come back")
	}
	return strings.Join(by, "; "), nil
}
