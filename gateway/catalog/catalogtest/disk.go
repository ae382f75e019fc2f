package catalogtest

import (
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
)

func newDisk(testing.TB) catalog.Content { return NewMemory() }
