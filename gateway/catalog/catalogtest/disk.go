package catalogtest

import (
	"context"
	"testing"

	"github.com/shoal-registry/shoal/gateway/catalog"
	"github.com/shoal-registry/shoal/transfer"
	"github.com/shoal-registry/shoal/transfer/store"
)

// newDisk returns content on a disk of the test, as a server has it.
func newDisk(t testing.TB) catalog.Content {
	t.Helper()
	disk, err := store.OpenDisk(store.DiskConfig{Dir: t.TempDir(), Fsync: true})
	fatal(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- disk.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Errorf("store: %v", err)
		}
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	})
	content, err := transfer.New(transfer.Config{Store: disk})
	fatal(t, err)
	return catalog.FromTransfer(content)
}
