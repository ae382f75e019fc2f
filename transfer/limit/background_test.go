package limit

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// bottleneck is a link with a queue, on which background traffic and other share: a
// fluid model, in steps of 10 ms.
type bottleneck struct {
	capacity float64       // bytes per second
	room     float64       // bytes that the queue holds
	base     time.Duration // of a round trip
	noise    time.Duration

	now    time.Duration
	queue  float64
	b      *Background
	chance *rand.Rand
}

const fluidStep = 10 * time.Millisecond

// share runs until the end and returns what background and other traffic got, in
// bytes, and the mean delay in the queue. demand is what there is to send in the
// background, in capacities. other returns how much comes of it, in bytes per
// second; it hears whether the queue overflows.
func (l *bottleneck) share(until time.Duration, demand float64, other func(now time.Duration, overflow bool) float64) (background, others float64, delay time.Duration) {
	rate, used, lost := 0.0, 0.0, false
	var queued float64
	begin := l.now
	for l.now < until {
		if l.now%(250*time.Millisecond) == 0 {
			for peer := range 4 {
				rtt := l.base + time.Duration(l.queue/l.capacity*float64(time.Second)) + time.Duration(l.chance.Int64N(int64(l.noise)+1))
				l.b.Sample(l.now, fmt.Sprint(peer), rtt)
			}
			rate = float64(l.b.Step(l.now, int64(used)))
			used = 0
		}
		seconds := fluidStep.Seconds()
		mine, theirs := min(rate, demand*l.capacity)*seconds, other(l.now, lost)*seconds
		arriving := mine + theirs
		passes := min(l.queue+arriving, l.capacity*seconds)
		l.queue += arriving - passes
		// What does not fit is lost, of each by what it sends.
		dropped := max(0, l.queue-l.room)
		l.queue -= dropped
		if lost = dropped > 0; arriving > 0 {
			mine -= dropped * mine / arriving
			theirs -= dropped * theirs / arriving
		}
		background, others, used = background+mine, others+theirs, used+mine
		queued += l.queue / l.capacity
		l.now += fluidStep
	}
	steps := float64((l.now - begin) / fluidStep)
	return background, others, time.Duration(queued / steps * float64(time.Second))
}

func newBottleneck(capacity float64, noise time.Duration) *bottleneck {
	return &bottleneck{
		capacity: capacity, room: capacity / 5, base: 5 * time.Millisecond, noise: noise,
		b: NewBackground(), chance: rand.New(rand.NewPCG(1, 2)),
	}
}

func idle(time.Duration, bool) float64 { return 0 }

// greedy is traffic that takes all it gets, as TCP does: it grows until the queue
// overflows, then sends less.
func greedy(capacity float64) func(time.Duration, bool) float64 {
	rate := capacity / 2
	return func(_ time.Duration, overflow bool) float64 {
		if overflow {
			rate *= 0.7
		}
		rate += capacity * 0.1 * fluidStep.Seconds()
		return rate
	}
}

// Alone it uses the link, without a queue to speak of; beside a steady load it takes the
// rest; beside traffic that wants all it keeps away; and it comes back.
func TestBackgroundGivesWay(t *testing.T) {
	for _, mbit := range []float64{100, 1000, 10_000} {
		for _, noise := range []time.Duration{0, 10 * time.Millisecond} {
			capacity := mbit * 1e6 / 8
			l := newBottleneck(capacity, noise)
			second := func(n float64) time.Duration { return l.now + time.Duration(n*float64(time.Second)) }
			part := func(bytes, seconds float64) float64 { return bytes / seconds / capacity }
			l.share(second(20), 2, idle)
			mine, _, delay := l.share(second(20), 2, idle)
			alone := part(mine, 20)

			steady := func(time.Duration, bool) float64 { return 0.7 * capacity }
			l.share(second(20), 2, steady)
			mine, theirs, steadyDelay := l.share(second(20), 2, steady)
			beside, kept := part(mine, 20), part(theirs, 20)

			all := greedy(capacity)
			l.share(second(20), 2, all)
			mine, theirs, _ = l.share(second(20), 2, all)
			left, taken := part(mine, 20), part(theirs, 20)

			l.share(second(40), 2, idle) // it gains a quarter a second
			mine, _, _ = l.share(second(10), 2, idle)
			again := part(mine, 10)
			t.Logf("%5.0f Mbit/s, noise %v: alone %.2f (queue %v); beside 70 %% %.2f (queue %v); beside TCP %.3f, which has %.2f; alone again %.2f",
				mbit, noise, alone, delay.Round(time.Millisecond), beside, steadyDelay.Round(time.Millisecond), left, taken, again)
			if alone < 0.85 || delay > backgroundTarget*3/2 {
				t.Errorf("alone it uses %.2f of the link, with a delay of %v", alone, delay)
			}
			if kept < 0.69 || beside < 0.2 || steadyDelay > backgroundTarget*3/2 {
				t.Errorf("a steady load of 0.70 keeps %.2f, beside it are %.2f, delay %v", kept, beside, steadyDelay)
			}
			if floor := float64(MinRate) / capacity; left > floor+0.1 || taken < 0.85 {
				t.Errorf("TCP has %.2f beside %.2f", taken, left)
			}
			if again < 0.8 {
				t.Errorf("long after the other has ended it uses %.2f", again)
			}
		}
	}
}

// A rate that nobody uses does not grow, so that nothing bursts out later.
func TestBackgroundDoesNotGrowUnused(t *testing.T) {
	l := newBottleneck(125e6, 0)
	l.share(30*time.Second, 0.04, idle) // 5 MB/s are wanted
	if rate := l.b.Step(l.now, 0); rate > 4*5_000_000 {
		t.Errorf("the rate is %d at a demand of 5 MB/s", rate)
	}
}

// A queue at one peer's end is not ours; a way that became longer for all is believed in
// when the better times are forgotten; and silence is congestion.
func TestBackgroundJudgesDelays(t *testing.T) {
	b := NewBackground()
	now := time.Duration(0)
	rates := func(times int, used int64, rtt ...time.Duration) (rate int64) {
		for range times {
			now += 250 * time.Millisecond
			for peer, d := range rtt {
				b.Sample(now, fmt.Sprint(peer), d)
			}
			rate = b.Step(now, used)
		}
		return rate
	}
	ms := time.Millisecond
	first := rates(10, 1<<40, 10*ms, 20*ms, 30*ms)
	if second := rates(10, 1<<40, 10*ms, 500*ms, 30*ms); second <= first {
		t.Errorf("one peer's queue: %d after %d", second, first)
	}
	// One late answer of all of them is chance.
	before := rates(4, 0, 10*ms, 20*ms, 30*ms)
	if after := rates(1, 0, 300*ms, 300*ms, 300*ms); after < before {
		t.Errorf("one late answer: %d after %d", after, before)
	}
	if low := rates(40, 1<<40, 210*ms, 220*ms, 230*ms); low != MinRate {
		t.Errorf("a queue of ours: %d", low)
	}
	if high := rates(4*60*11, 1<<40, 210*ms, 220*ms, 230*ms); high < 10*MinRate {
		t.Errorf("eleven minutes after all ways became longer: %d", high)
	}
	if low := rates(400, 1<<40); low != MinRate {
		t.Errorf("silence: %d", low)
	}
	now += 11 * time.Minute
	if high := rates(40, 1<<40, 400*ms, 400*ms, 400*ms); high < 10*MinRate {
		t.Errorf("eleven minutes without a sample, then longer ways: %d", high)
	}
	for peer := range 3 {
		b.Forget(fmt.Sprint(peer))
	}
	if len(b.peers) != 0 {
		t.Error("peers are not forgotten")
	}
}
