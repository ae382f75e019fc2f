package repair

import (
	"context"
	"time"

	"github.com/shoal-registry/shoal/transfer/wait"
	"github.com/shoal-registry/shoal/verify/digest"
)

// damage is the news of a copy that is no longer whole.
type damage struct {
	root   digest.CID
	reason string
}

// Fail is Damaged with a reason, for who has time: it waits until the news is taken, so
// that none is lost however many copies fail at once.
//
// Errors: ctx's.
func (l *Loop) Fail(ctx context.Context, root digest.CID, reason string) error {
	// A report that does not fit is dropped; that of a copy that fails would leave the
	// metadata trusting it.
	for len(l.reports) > reportQueue/2 {
		if !wait.For(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
	select {
	case l.damaged <- damage{root, cut(reason)}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
