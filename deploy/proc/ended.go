package proc

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// UntilEnded returns a context that ends when somebody wants the program to end, so that
// it can take its processes and folders away first; stop frees it. A closed pager does
// not end the program half-way: what is written to it is lost. Signals of broken pipes
// are taken and dropped, since each connection that breaks under a write sends one, too.
func UntilEnded() (ctx context.Context, stop context.CancelFunc) {
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	ctx, end := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	return ctx, func() {
		end()
		signal.Stop(broken)
	}
}
