package consensus

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// A voter that answers slowly gets few questions at a time, each of which ends with
// its answer and not with the round that asked; who comes late shares one that is
// sent after it came.
func TestSlowVoterIsAskedFewTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const trip = 150 * time.Millisecond
		var mu sync.Mutex
		sent, out, most, nudged := 0, 0, 0, 0
		began := map[*answer]time.Time{}
		q := inquiries{
			ask: func(ctx context.Context, _ meta.NodeID, asked question) (*answer, error) {
				mu.Lock()
				sent, out = sent+1, out+1
				most = max(most, out)
				if asked.Nudge {
					nudged++
				}
				a := &answer{}
				began[a] = time.Now()
				mu.Unlock()
				time.Sleep(trip)
				mu.Lock()
				out--
				mu.Unlock()
				return a, ctx.Err()
			},
			spawn: func(f func(context.Context)) bool {
				go f(t.Context())
				return true
			},
		}
		var group sync.WaitGroup
		for round := range 1000 {
			joined := time.Now()
			inquiry := q.join("slow", round == 900)
			group.Go(func() {
				<-inquiry.done
				mu.Lock()
				defer mu.Unlock()
				if inquiry.err != nil || began[inquiry.answer].Before(joined) {
					t.Errorf("a round of %v has the answer to a question of %v, %v", joined, began[inquiry.answer], inquiry.err)
				}
			})
			time.Sleep(time.Millisecond)
		}
		group.Wait()
		synctest.Wait()
		// 1,000 rounds in one second, of which four questions fit into each trip.
		if most > maxInquiries || sent > 40 || nudged != 1 {
			t.Errorf("%d questions, %d at a time, %d with a nudge", sent, most, nudged)
		}
		if len(q.all) != 0 {
			t.Errorf("%d voters are kept", len(q.all))
		}
	})
}

func TestInquiryOfAStoppingNode(t *testing.T) {
	q := inquiries{spawn: func(func(context.Context)) bool { return false }}
	inquiry := q.join("any", false)
	<-inquiry.done
	if inquiry.err == nil || len(q.all) != 0 {
		t.Errorf("%v, %d kept", inquiry.err, len(q.all))
	}
}
