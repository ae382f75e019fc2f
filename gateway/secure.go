package gateway

import (
	"fmt"
	"net/http"
)

// protect sets the headers that keep a browser, which may be led here, from making
// anything of an answer: it is no page, no script, in no frame, and goes into no
// referrer. Protocols may replace them where their clients need it.
func protect(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// plainRefused says what to do instead of plain HTTP.
func plainRefused(tlsOnly bool, host string) string {
	if tlsOnly {
		return fmt.Sprintf("This node takes no plain HTTP (--loopback-tls). Use https://%s with the cluster's root, from `shoal trust show --pem`.", host)
	}
	return fmt.Sprintf("This port takes plain HTTP only from its own machine. Use https://%s, or start the node with --plain behind a proxy that ends TLS.", host)
}
