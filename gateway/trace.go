package gateway

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
)

// headerTrace is W3C Trace Context's (w3.org/TR/trace-context, version 00).
const headerTrace = "Traceparent"

// traceparent returns this request's place in its trace: the client's trace, with
// a span of our own, or a new one that is not sampled.
func traceparent(header string) string {
	trace, flags, ok := parseTraceparent(header)
	if !ok {
		trace, flags = randomHex(16), "00"
	}
	return "00-" + trace + "-" + randomHex(8) + "-" + flags
}

func parseTraceparent(s string) (trace, flags string, ok bool) {
	parts := strings.Split(s, "-")
	// Later versions may add fields; ff is forbidden.
	if len(parts) < 4 || len(s) > 256 || parts[0] == "00" && len(parts) != 4 || parts[0] == "ff" {
		return "", "", false
	}
	for i, length := range []int{2, 32, 16, 2} {
		if len(parts[i]) != length || strings.Trim(parts[i], "0123456789abcdef") != "" {
			return "", "", false
		}
	}
	if strings.Trim(parts[1], "0") == "" || strings.Trim(parts[2], "0") == "" {
		return "", "", false
	}
	return parts[1], parts[3], true
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
