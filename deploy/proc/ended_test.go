package proc

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

// A connection or pager that breaks under a write ends no program that has processes to
// take away; being asked to end does.
func TestUntilEnded(t *testing.T) {
	ctx, stop := UntilEnded()
	defer stop()
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	defer signal.Stop(broken)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	if _, err := w.WriteString("x"); !errors.Is(err, syscall.EPIPE) {
		t.Fatalf("a write to nobody: %v", err)
	}
	<-broken
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if cause := context.Cause(ctx); !strings.Contains(cause.Error(), syscall.SIGHUP.String()) {
		t.Errorf("it was ended by %v", cause)
	}
}
