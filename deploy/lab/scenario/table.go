package scenario

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/shoal-registry/shoal/deploy/lab/wave"
)

// Print writes one result for people.
func (r Result) Print(w io.Writer) error { return Table(w, []Result{r}) }

// Table writes results as one markdown table, a row a figure, and what went wrong.
func Table(w io.Writer, results []Result) error {
	table := tabwriter.NewWriter(w, 0, 4, 1, ' ', 0)
	fmt.Fprintln(table, "| scenario\t| figure\t| got\t| goal\t| verdict\t| load before, after\t| seed\t|")
	fmt.Fprintln(table, "| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t|")
	var trouble []string
	for _, r := range results {
		name := r.Scenario
		if r.Quick {
			name += " (quick)"
		}
		for _, f := range r.Figures {
			verdict := "kept"
			switch {
			case f.Goal == "":
				verdict = ""
			case !f.Kept:
				verdict = "SHORT"
			}
			fmt.Fprintf(table, "| %s\t| %s\t| %s\t| %s\t| %s\t| %s; %s\t| %d\t|\n",
				name, f.Name, f.Got, f.Goal, verdict, r.LoadBefore, r.LoadAfter, r.Seed)
		}
		if r.Error != "" {
			fmt.Fprintf(table, "| %s\t| did not run to its end\t| \t| \t| ERROR\t| %s; %s\t| %d\t|\n", name, r.LoadBefore, r.LoadAfter, r.Seed)
			trouble = append(trouble, fmt.Sprintf("%s: %s", name, r.Error))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(trouble) > 0 {
		_, err := fmt.Fprintf(w, "\n%s\n", strings.Join(trouble, "\n"))
		return err
	}
	return nil
}

// reportText is a wave's own report, computed when it is printed.
type reportText struct{ wave.Report }

func (t *reportText) String() string {
	var b strings.Builder
	t.Print(&b)
	return b.String()
}
