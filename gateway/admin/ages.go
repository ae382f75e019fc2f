package admin

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// aged are the formats whose upstreams say when a version was released.
var aged = []string{"cargo", "go", "helm", "npm", "nuget", "pypi"}

// checkAge refuses a minimum release age for a proxy that could not keep it.
//
// Errors: meta.ErrInvalid.
func checkAge(format string, age time.Duration) error {
	if age == 0 || slices.Contains(aged, format) {
		return nil
	}
	return fmt.Errorf("upstreams of %s do not say when a version was released, so no minimum release age can be kept; those of %s do: %w", format, strings.Join(aged, ", "), meta.ErrInvalid)
}
