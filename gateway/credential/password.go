package credential

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/trust"
)

// cost is what one Argon2id takes.
type cost struct {
	memoryKiB, passes uint32
	lanes             uint8
}

// standard is OWASP's second choice for Argon2id (Password Storage Cheat Sheet): 19 MiB
// and two passes cost as much as 46 MiB and one, and four at a time fit a small server.
var standard = cost{memoryKiB: 19 << 10, passes: 2, lanes: 1}

// limit bounds what a stored hash may ask of us.
var limit = cost{memoryKiB: 256 << 10, passes: 16, lanes: 8}

const (
	saltBytes = 16
	hashBytes = 32

	// MinPassword and MaxPassword are the lengths that a password may have: 8 characters
	// is NIST SP 800-63B's least, more bytes than 1,024 are no password.
	MinPassword = 8
	MaxPassword = 1024

	// workers compute hashes at a time (76 MiB); maxWaiting wait for them.
	workers    = 4
	maxWaiting = 64

	// A password that was right is not computed again for so long: clients without a
	// token of their own send it with each request for one.
	rememberFor   = 5 * time.Minute
	maxRemembered = 1024
)

// Hasher hashes and checks passwords, a few at a time. It is safe for concurrent use.
type Hasher struct {
	slots   chan struct{}
	waiting chan struct{}
	key     [32]byte // of what is remembered
	dummy   string

	mu         sync.Mutex
	remembered map[[sha256.Size]byte]time.Time // until when
}

// NewHasher makes a Hasher.
func NewHasher() *Hasher {
	h := &Hasher{
		slots:      make(chan struct{}, workers),
		waiting:    make(chan struct{}, maxWaiting),
		remembered: map[[sha256.Size]byte]time.Time{},
	}
	// It ends the process when the system has no randomness.
	_, _ = rand.Read(h.key[:])
	h.dummy = encode(standard, make([]byte, saltBytes), make([]byte, hashBytes))
	return h
}

// CheckPassword refuses what is too short or too long to be a password.
//
// Errors: meta.ErrInvalid.
func CheckPassword(password trust.Secret) error {
	text := password.Reveal()
	switch n := utf8.RuneCountInString(text); {
	case !utf8.ValidString(text):
		return fmt.Errorf("the password is not UTF-8: %w", meta.ErrInvalid)
	case n < MinPassword:
		return fmt.Errorf("the password has %d characters, use %d or more: %w", n, MinPassword, meta.ErrInvalid)
	case len(text) > MaxPassword:
		return fmt.Errorf("the password has %d bytes, use at most %d: %w", len(text), MaxPassword, meta.ErrInvalid)
	}
	return nil
}

// Hash returns the PHC string under which a password is kept:
// `$argon2id$v=19$m=19456,t=2,p=1$salt$hash`.
//
// Errors: of CheckPassword; *meta.UnavailableError when too many are at it; of ctx.
func (h *Hasher) Hash(ctx context.Context, password trust.Secret) ([]byte, error) {
	if err := CheckPassword(password); err != nil {
		return nil, err
	}
	free, err := h.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer free()
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt)
	return []byte(encode(standard, salt, derive(standard, password, salt, hashBytes))), nil
}

// Check reports whether password is the one with that hash. Without a hash, for an
// account that is not there or has none, it takes as long and is false, so that time
// does not tell which accounts there are.
//
// Errors: meta.ErrCorrupt for a hash that is none; *meta.UnavailableError when too
// many are at it; of ctx.
func (h *Hasher) Check(ctx context.Context, account string, hash []byte, password trust.Secret) (bool, error) {
	text, known := string(hash), len(hash) > 0
	if !known {
		text = h.dummy
	}
	c, salt, want, err := parse(text)
	if err != nil {
		return false, fmt.Errorf("password of %s: %w", account, err)
	}
	if len(password.Reveal()) > MaxPassword {
		return false, nil
	}
	memory := h.memory(account, text, password)
	if known && h.remembers(memory) {
		return true, nil
	}
	free, err := h.enter(ctx)
	if err != nil {
		return false, err
	}
	defer free()
	right := subtle.ConstantTimeCompare(derive(c, password, salt, len(want)), want) == 1 && known
	if right {
		h.remember(memory)
	}
	return right, nil
}

// Remembered reports whether password was found to be the one with that hash a few
// minutes ago; it costs nothing.
func (h *Hasher) Remembered(account string, hash []byte, password trust.Secret) bool {
	return len(hash) > 0 && h.remembers(h.memory(account, string(hash), password))
}

// enter waits for a slot.
func (h *Hasher) enter(ctx context.Context) (free func(), err error) {
	select {
	case h.waiting <- struct{}{}:
		defer func() { <-h.waiting }()
	default:
		return nil, &meta.UnavailableError{Reason: "logins_busy", RetryAfter: 2 * time.Second}
	}
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// memory names a password that was right without holding it: an HMAC under a key of
// this process, which another hash of the account changes.
func (h *Hasher) memory(account, hash string, password trust.Secret) (m [sha256.Size]byte) {
	mac := hmac.New(sha256.New, h.key[:])
	for _, part := range []string{account, hash, password.Reveal()} {
		fmt.Fprintf(mac, "%d:%s", len(part), part)
	}
	return [sha256.Size]byte(mac.Sum(nil))
}

func (h *Hasher) remembers(m [sha256.Size]byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	until, ok := h.remembered[m]
	return ok && time.Now().Before(until)
}

func (h *Hasher) remember(m [sha256.Size]byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if len(h.remembered) >= maxRemembered {
		for old, until := range h.remembered {
			if !now.Before(until) {
				delete(h.remembered, old)
			}
		}
		if len(h.remembered) >= maxRemembered {
			clear(h.remembered)
		}
	}
	h.remembered[m] = now.Add(rememberFor)
}

func derive(c cost, password trust.Secret, salt []byte, length int) []byte {
	return argon2.IDKey([]byte(password.Reveal()), salt, c.passes, c.memoryKiB, c.lanes, uint32(length))
}

var plain64 = base64.RawStdEncoding.Strict()

func encode(c cost, salt, hash []byte) string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, c.memoryKiB, c.passes, c.lanes,
		plain64.EncodeToString(salt), plain64.EncodeToString(hash))
}

// parse reads a PHC string, and refuses one that would take too much to check.
//
// Errors: meta.ErrCorrupt.
func parse(text string) (c cost, salt, hash []byte, err error) {
	bad := fmt.Errorf("what is kept is no Argon2id hash, set the password anew: %w", meta.ErrCorrupt)
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return c, nil, nil, bad
	}
	numbers := strings.Split(parts[3], ",")
	if len(numbers) != 3 {
		return c, nil, nil, bad
	}
	values := [3]uint64{}
	for i, name := range []string{"m=", "t=", "p="} {
		digits, ok := strings.CutPrefix(numbers[i], name)
		if values[i], err = strconv.ParseUint(digits, 10, 32); !ok || err != nil || values[i] == 0 {
			return c, nil, nil, bad
		}
	}
	if values[0] > uint64(limit.memoryKiB) || values[1] > uint64(limit.passes) || values[2] > uint64(limit.lanes) {
		return c, nil, nil, bad
	}
	c = cost{memoryKiB: uint32(values[0]), passes: uint32(values[1]), lanes: uint8(values[2])}
	salt, err1 := plain64.DecodeString(parts[4])
	hash, err2 := plain64.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(salt) < 8 || len(salt) > 64 || len(hash) < 16 || len(hash) > 64 {
		return c, nil, nil, bad
	}
	return c, salt, hash, nil
}
