package gateway

import (
	"strings"
	"time"

	"github.com/shoal-registry/shoal/gateway/access"
	"github.com/shoal-registry/shoal/gateway/protocol"
)

// headerElevation names the break-glass elevation that an answer rests on.
const headerElevation = "Shoal-Elevation"

// elevationBinding is in front of the id where an elevated right says where it is from.
const elevationBinding = "elevation:"

// markElevated marks a call that its principal may make only under a break-glass
// elevation: what it changes carries the mark (Origin.Elevation), its entries in the
// audit log and the trail, and the answer. Of a route that judges by itself what it
// names nothing is known yet: then whoever has an elevation is marked.
func (g *Gateway) markElevated(call *protocol.Call, route *protocol.Route) {
	who := &call.Who
	at := -1
	for i := range who.Rights {
		if r := &who.Rights[i]; r.Elevated && r.Expires.Std().After(time.Now()) {
			at = i
			break
		}
	}
	if at < 0 {
		return
	}
	deciding := &who.Rights[at]
	on := targetOf(call, route, call.Repository)
	if route.Action != access.Login && !on.Somewhere {
		d := access.Explain(g.Gate.Policy, *who, route.Action, on)
		if !d.Allowed || d.Right == nil || !d.Right.Elevated {
			return
		}
		deciding = d.Right
	}
	who.Elevation = strings.TrimPrefix(deciding.Binding, elevationBinding)
	call.W.Header().Set(headerElevation, who.Elevation)
}
