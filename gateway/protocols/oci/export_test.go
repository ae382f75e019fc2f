package oci

import "time"

// Choice is choice.
var Choice = choice

// LookedUntil returns until when it is remembered which proxies there are.
func (p *Protocol) LookedUntil() time.Time { return p.mirrors.until }
