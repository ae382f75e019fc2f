package credential

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

func TestPassword(t *testing.T) {
	h := NewHasher()
	ctx := t.Context()
	hash, err := h.Hash(ctx, "correct horse")
	if err != nil || !strings.HasPrefix(string(hash), "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Fatalf("%s %v", hash, err)
	}
	again, err := h.Hash(ctx, "correct horse")
	if err != nil || string(again) == string(hash) {
		t.Errorf("the same salt twice: %s %v", again, err)
	}
	for _, test := range []struct {
		hash     []byte
		password trust.Secret
		want     bool
	}{
		{hash, "correct horse", true}, {hash, "correct horse", true}, {again, "correct horse", true},
		{hash, "correct horsf", false}, {hash, "", false}, {hash, trust.Secret(strings.Repeat("x", MaxPassword+1)), false},
		{nil, "correct horse", false}, {nil, "", false},
	} {
		if got, err := h.Check(ctx, "user:ada", test.hash, test.password); err != nil || got != test.want {
			t.Errorf("%.20s %d characters: %v %v", test.hash, len(test.password.Reveal()), got, err)
		}
	}
	for _, password := range []trust.Secret{"short", "", trust.Secret(strings.Repeat("x", MaxPassword+1)), "\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8"} {
		if _, err := h.Hash(ctx, password); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%q: %v", password.Reveal(), err)
		}
	}
}

// What the first hash remembers, another hash of the account does not know: a changed
// password ends at once.
func TestRememberedPassword(t *testing.T) {
	h := NewHasher()
	hash, err := h.Hash(t.Context(), "the first one")
	if err != nil {
		t.Fatal(err)
	}
	if h.Remembered("user:ada", hash, "the first one") {
		t.Error("remembered before it was checked")
	}
	if right, err := h.Check(t.Context(), "user:ada", hash, "the first one"); err != nil || !right {
		t.Fatal(right, err)
	}
	other, err := h.Hash(t.Context(), "the second")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		account  string
		hash     []byte
		password trust.Secret
		want     bool
	}{{"user:ada", hash, "the first one", true}, {"user:ada", other, "the first one", false}, {"user:eve", hash, "the first one", false}, {"user:ada", hash, "the second", false}, {"user:ada", nil, "the first one", false}} {
		if got := h.Remembered(test.account, test.hash, test.password); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

// However many attempts come, at most workers compute, and further ones are refused
// when too many wait.
func TestHasherIsBounded(t *testing.T) {
	h := NewHasher()
	for range workers {
		h.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	results := make(chan error, maxWaiting)
	for range maxWaiting {
		group.Go(func() {
			_, err := h.Check(ctx, "user:ada", nil, "whatever it is")
			results <- err
		})
	}
	// Only when all of them wait is the next one turned away.
	deadline := time.Now().Add(2 * time.Minute)
	for len(h.waiting) < maxWaiting && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if _, err := h.Check(t.Context(), "user:ada", nil, "whatever it is"); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	group.Wait()
	close(results)
	for err := range results {
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

func FuzzPasswordHash(f *testing.F) {
	f.Add("$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$argon2id$v=19$m=4294967295,t=4294967295,p=255$AAAAAAAAAAAAAAAAAAAAAA$AAAA")
	f.Add("$argon2i$v=19$m=1,t=1,p=1$$")
	f.Fuzz(func(t *testing.T, text string) {
		c, salt, hash, err := parse(text)
		if err != nil {
			if !errors.Is(err, meta.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if c.memoryKiB > limit.memoryKiB || c.passes > limit.passes || c.lanes > limit.lanes || c.passes == 0 || c.lanes == 0 {
			t.Fatalf("%q costs %+v", text, c)
		}
		if again := encode(c, salt, hash); again != text && !strings.Contains(text, "=0") && !strings.Contains(text, "+") {
			t.Fatalf("%q comes back as %q", text, again)
		}
	})
}

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := NewThrottle()
		try := func(source, account string, right bool) time.Duration {
			err := th.Begin(time.Now(), source, account)
			var slow *SlowError
			if errors.As(err, &slow) {
				return slow.RetryAfter
			}
			if err != nil {
				t.Fatal(err)
			}
			if right {
				th.Succeed(time.Now(), source, account)
			}
			return 0
		}
		// Ada knows her machine; Eve guesses at Ada's account from ever new addresses.
		if wait := try("ada's", "user:ada", true); wait != 0 {
			t.Fatal(wait)
		}
		for range freeOfAccount {
			if wait := try(time.Now().String(), "user:ada", false); wait != 0 {
				t.Fatal(wait)
			}
			time.Sleep(time.Millisecond)
		}
		waits := []time.Duration{}
		for len(waits) < 9 {
			wait := try(time.Now().String(), "user:ada", false)
			if wait == 0 {
				t.Fatal("a guess that did not wait")
			}
			waits = append(waits, wait)
			time.Sleep(wait)
			if again := try(time.Now().String(), "user:ada", false); again != 0 {
				t.Fatal(again)
			}
			time.Sleep(time.Millisecond)
		}
		if waits[0] > firstWait || waits[1] <= waits[0] || waits[8] > longestWait || waits[8] < longestWait-time.Second {
			t.Errorf("waits %v", waits)
		}
		if wait := try("ada's", "user:ada", true); wait != 0 {
			t.Errorf("Ada waits %v for Eve", wait)
		}
		// One source that tries many accounts.
		slowed := 0
		for i := range 100 {
			if try("eve's", "user:"+string(rune('a'+i%26)), false) > 0 {
				slowed++
			}
		}
		if slowed < 100-freeOfSource {
			t.Errorf("%d of 100 attempts were slowed", slowed)
		}
		// A right password in between buys nothing.
		if wait := try("eve's", "user:eve", true); wait == 0 {
			t.Error("a source on hold logs in")
		}
		time.Sleep(forgetAfter)
		if wait := try("eve's", "user:eve", true); wait != 0 {
			t.Errorf("not forgotten: %v", wait)
		}
	})
}

// Attempts that run side by side count as they begin.
func TestThrottleSideBySide(t *testing.T) {
	th := NewThrottle()
	now := time.Now()
	passed := 0
	for range 50 {
		if th.Begin(now, "s", "user:ada") == nil {
			passed++
		}
	}
	if passed != freeOfAccount {
		t.Errorf("%d of 50 attempts at one time passed", passed)
	}
}
