package access

import (
	"fmt"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// Sentence says a decision about somebody in words, with the binding that decided.
func Sentence(d Decision, who string, action Action, on Target) string {
	verb := "may not"
	if d.Allowed {
		verb = "may"
	}
	act := string(action)
	switch action {
	case Push:
		act = "push to"
	case Pull, Delete:
		act += " from"
	}
	return fmt.Sprintf("%s %s %s %s: %s", who, verb, act, on, because(d, who, action))
}

func because(d Decision, who string, action Action) string {
	switch d.Reason {
	case ByAdmin:
		return "who has the admin token may do all"
	case ByRight:
		return rightText(d.Right, "gives")
	case ByVisibility:
		return "the repository is public"
	case ByPolicy:
		return "no right is needed"
	case ByNode:
		return "it is a node of the cluster"
	case Denied:
		return rightText(d.Right, "denies") + ", and a deny overrides"
	case Expired:
		return rightText(d.Right, "gave") + ", which has ended"
	case Narrowed:
		return "its credential is narrower than its rights"
	case Absent:
		return "there is no such repository"
	}
	return fmt.Sprintf("no binding of %s gives %s there", who, action)
}

func rightText(r *meta.Right, verb string) string {
	var b strings.Builder
	if r.Binding == "" {
		b.WriteString("it " + verb)
	} else {
		b.WriteString("binding " + r.Binding + " " + verb)
	}
	if r.Role != "" {
		b.WriteString(" role " + r.Role)
	}
	b.WriteString(" on " + r.Repository)
	if r.Environment != "" {
		b.WriteString(" in environment " + r.Environment)
	}
	if r.Expires != 0 {
		b.WriteString(" until " + r.Expires.Std().Format(time.RFC3339))
	}
	return b.String()
}
