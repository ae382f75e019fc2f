package wait_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/transfer/wait"
)

func TestFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		if !wait.For(ctx, time.Minute) || time.Since(began) != time.Minute {
			t.Errorf("it waits %v", time.Since(began))
		}
		time.AfterFunc(time.Second, cancel)
		if wait.For(ctx, time.Minute) || time.Since(began) != time.Minute+time.Second {
			t.Errorf("what ends after a second waits until %v", time.Since(began))
		}
	})
}
