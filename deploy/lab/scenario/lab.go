package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

// Lab is what a scenario works with.
type Lab struct {
	Plan  wave.Plan // of the scenario, with the options' changes; Start uses it as it is then
	Quick bool

	options  Options
	dir      string
	clusters []*wave.Cluster
	figures  []Figure
}

// Say prints a step.
func (l *Lab) Say(format string, args ...any) { l.options.Say(format, args...) }

// Start starts a cluster of Plan; it ends with the scenario, or by Stop.
func (l *Lab) Start(ctx context.Context) (*wave.Cluster, error) {
	plan := l.Plan
	plan.Dir = filepath.Join(l.dir, fmt.Sprintf("cluster-%d", len(l.clusters)))
	if err := os.Mkdir(plan.Dir, 0o700); err != nil {
		return nil, err
	}
	c, err := wave.Start(ctx, plan)
	if err != nil {
		return nil, err
	}
	l.clusters = append(l.clusters, c)
	return c, nil
}

// close ends all clusters and removes the folder.
func (l *Lab) close() error {
	var errs []error
	for _, c := range l.clusters {
		errs = append(errs, c.Close())
	}
	if l.dir != "" {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

// AtMost adds a figure with an upper goal. format prints both, such as "%.2f".
func (l *Lab) AtMost(name, format string, got, goal float64) {
	l.figures = append(l.figures, Figure{Name: name, Got: fmt.Sprintf(format, got), Goal: "<= " + fmt.Sprintf(format, goal), Kept: got <= goal})
}

// AtLeast adds a figure with a lower goal.
func (l *Lab) AtLeast(name, format string, got, goal float64) {
	l.figures = append(l.figures, Figure{Name: name, Got: fmt.Sprintf(format, got), Goal: ">= " + fmt.Sprintf(format, goal), Kept: got >= goal})
}

// Must adds a figure that holds on any machine or is a fault of the product.
func (l *Lab) Must(name, goal string, kept bool, got string, args ...any) {
	l.figures = append(l.figures, Figure{Name: name, Got: fmt.Sprintf(got, args...), Goal: goal, Kept: kept, Must: true})
}

// Note adds a figure that has no goal.
func (l *Lab) Note(name, got string, args ...any) {
	l.figures = append(l.figures, Figure{Name: name, Got: fmt.Sprintf(got, args...), Kept: true})
}

// wave starts the cluster of Plan and runs a wave in it, with an event on the way or
// none, prints its report as steps and adds that every host has the right bytes.
func (l *Lab) wave(ctx context.Context, event func(*wave.Cluster) *wave.Event) (wave.Report, error) {
	c, err := l.Start(ctx)
	if err != nil {
		return wave.Report{}, err
	}
	var e *wave.Event
	if event != nil {
		e = event(c)
	}
	r, err := c.Wave(ctx, e)
	if err != nil {
		return r, err
	}
	l.Say("%s", &reportText{r})
	l.rightBytes(r.Results)
	return r, nil
}

// rightBytes adds whether all hosts that were not held up have what they asked for.
func (l *Lab) rightBytes(results []wave.Result) {
	right, judged := 0, 0
	for _, result := range results {
		if result.Excused {
			continue
		}
		judged++
		if result.Error == "" {
			right++
		} else {
			l.Say("%s: %s", result.Name, result.Error)
		}
	}
	l.Must("hosts with the right bytes", fmt.Sprint(judged), right == judged, "%d", right)
}

// last adds the last host's time as a multiple of the bound.
func (l *Lab) last(r wave.Report, goal float64) {
	times := r.Finishes()
	if len(times) == 0 {
		l.Must("last host / bound", fmt.Sprintf("<= %.2f", goal), false, "nobody finished")
		return
	}
	l.AtMost("last host / bound", "%.2f", r.Ratio(times[len(times)-1]), goal)
	l.Note("median host / bound", "%.2f", r.Ratio(wave.Quantile(times, 0.5)))
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

func maximum(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)-1]
}
