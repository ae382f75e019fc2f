// Command sim runs waves of 100 to 100,000 hosts in virtual time: the decision core of
// the product (transfer/swarm/core) over modelled links. Package model is the
// simulator; the scenarios, one a file, are in the folder scenarios.
//
//	go run ./deploy/sim                        all scenarios but the big ones
//	go run ./deploy/sim --scenario wave-2600   one or more, by name or path, with commas
//	go run ./deploy/sim --seed 7               another run; the same seed gives the same run
//	go run ./deploy/sim --list
//	go run ./deploy/sim --study-schedules 2    ways to cut blobs, side by side
//
// Each run prints a report, the whole set ends with a table of goals. The exit code is 1
// when a scenario cannot be run; a missed goal is printed, not punished.
package main

import (
	"embed"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/shoal-registry/shoal/deploy/sim/model"
)

//go:embed scenarios/*.json
var scenarios embed.FS

func main() {
	names := flag.String("scenario", "", "names or paths of scenarios, with commas between; all but the big ones when empty")
	seed := flag.Uint64("seed", 0, "seed of the run; 0 is the scenario's own")
	list := flag.Bool("list", false, "list the scenarios")
	asJSON := flag.Bool("json", false, "print one JSON object a run instead")
	study := flag.Int("study-schedules", 0, "compare ways to cut blobs, by the mean of so many seeds, instead")
	full := flag.Bool("full", false, "with --study-schedules: the largest waves, too (an hour)")
	flag.Parse()
	var err error
	if *study > 0 {
		err = studySchedules(os.Stdout, *study, *full)
	} else {
		err = run(*names, *seed, *list, *asJSON)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

func run(names string, seed uint64, list, asJSON bool) error {
	set, err := load(names)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if list {
		for _, sc := range set {
			fmt.Fprintf(table, "%s\t%s\n", sc.Name, sc.About)
		}
		return table.Flush()
	}
	fmt.Fprintln(table, "scenario\tfigure\tgot\tgoal\t")
	for _, sc := range set {
		if !asJSON {
			fmt.Println(sc.About)
		}
		r := model.Run(sc, seed)
		if asJSON {
			if err := json.NewEncoder(os.Stdout).Encode(figures(r)); err != nil {
				return err
			}
			continue
		}
		fmt.Println(r)
		var goals []string
		for name := range sc.Goals {
			goals = append(goals, name)
		}
		sort.Strings(goals)
		for _, name := range goals {
			got, _ := r.Figure(name)
			verdict := ""
			if got > sc.Goals[name] || r.Unfinished > 0 {
				verdict = "missed"
			}
			fmt.Fprintf(table, "%s\t%s\t%.3f\t%.3g\t%s\n", sc.Name, name, got, sc.Goals[name], verdict)
		}
	}
	if asJSON {
		return nil
	}
	return table.Flush()
}

// figures is a run as JSON: every figure by its name.
func figures(r *model.Result) map[string]any {
	out := map[string]any{
		"scenario": r.Scenario, "seed_used": r.Seed, "bound_s": r.Bound.Seconds(), "hosts": r.Hosts, "enter_each": r.EnterCopies,
		"zone_share": r.ZoneShare, "trace": fmt.Sprintf("%016x", r.Trace), "chunks": r.Deliveries, "took_s": r.Took.Seconds(),
	}
	for _, name := range model.Figures {
		out[name], _ = r.Figure(name)
	}
	return out
}

// load reads the named scenarios, all but the big ones without names.
func load(names string) ([]*model.Scenario, error) {
	var set []*model.Scenario
	add := func(data []byte, err error) error {
		if err != nil {
			return err
		}
		sc, err := model.Parse(data)
		if err != nil {
			return err
		}
		if names != "" || !sc.Big {
			set = append(set, sc)
		}
		return nil
	}
	if names == "" {
		entries, err := scenarios.ReadDir("scenarios")
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if err := add(scenarios.ReadFile("scenarios/" + e.Name())); err != nil {
				return nil, err
			}
		}
		slices.SortFunc(set, func(a, b *model.Scenario) int { return strings.Compare(a.Name, b.Name) })
		return set, nil
	}
	for name := range strings.SplitSeq(names, ",") {
		if strings.ContainsAny(name, "/.") {
			if err := add(os.ReadFile(name)); err != nil {
				return nil, err
			}
		} else if err := add(scenarios.ReadFile("scenarios/" + name + ".json")); err != nil {
			return nil, fmt.Errorf("no scenario %q (--list shows what there is): %w", name, err)
		}
	}
	return set, nil
}
