package wave

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/shoal-registry/shoal/deploy/proc"
)

// Metric returns the sum of a metric's series that have all the given labels, each
// written like place="zone", as the member itself counts. 0 when there is none.
func (m *Member) Metric(ctx context.Context, name string, labels ...string) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.Host.Addr.String()+":"+proc.OpsPort+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := m.http.Do(request)
	if err != nil {
		return 0, fmt.Errorf("metrics of %s: %w", m.Name(), err)
	}
	defer response.Body.Close()
	var sum float64
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		sum += seriesValue(lines.Text(), name, labels)
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("metrics of %s: %w", m.Name(), err)
	}
	return sum, nil
}

// seriesValue returns the value of a line of the Prometheus text format when it is of
// the metric and has the labels, else 0.
func seriesValue(line, name string, labels []string) float64 {
	rest, ok := strings.CutPrefix(line, name)
	if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
		return 0
	}
	for _, label := range labels {
		if !strings.Contains(rest, label) {
			return 0
		}
	}
	value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
	if err != nil {
		return 0
	}
	return value
}
