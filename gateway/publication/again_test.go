package publication

import (
	"testing"
	"time"
)

// What fails for ever is tried less and less often, but within a minute.
func TestRetries(t *testing.T) {
	before := time.Duration(0)
	for failures := 1; failures < 100; failures++ {
		d := again(failures)
		if d < before || d < retryEvery || d > retryMost {
			t.Errorf("after %d failures in %s, before that in %s", failures, d, before)
		}
		before = d
	}
	if again(1) != retryEvery || before != retryMost {
		t.Errorf("from %s to %s", again(1), before)
	}
}
