// Package wait has the one pause of the loops below transfer: For ends with the time or
// with the loop, whichever is first. It starts no goroutines.
package wait

import (
	"context"
	"time"
)

// For waits for d and reports whether ctx goes on.
func For(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
