package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/shoal-registry/shoal/gateway/admin"
	"github.com/shoal-registry/shoal/node/join"
	"github.com/shoal-registry/shoal/raftmeta"
	"github.com/shoal-registry/shoal/raftmeta/codec"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/transfer/store"
	"github.com/shoal-registry/shoal/verify/digest"
	"github.com/shoal-registry/shoal/verify/trust"
)

// backups is what this server gives to a backup.
type backups struct {
	records   *raftmeta.Store
	blobs     store.Store
	admission *join.Server
}

var _ admin.Backups = backups{}

// frozen is a state that no longer changes.
type frozen struct {
	*state.Checkpoint
	at   meta.Token
	hash [32]byte
}

func (f frozen) Point() (meta.Token, [32]byte) { return f.at, f.hash }

// State implements admin.Backups.
func (b backups) State(ctx context.Context) (admin.BackupState, error) {
	// A strong read first: what was acknowledged before the backup began is in it.
	if _, _, err := raftmeta.Ask(ctx, b.records, meta.Strong, state.GetCluster{}); err != nil {
		return nil, fmt.Errorf("freeze the metadata: %w", err)
	}
	checkpoint, view, err := b.records.Backup()
	if err != nil {
		return nil, fmt.Errorf("freeze the metadata: %w", err)
	}
	f := frozen{Checkpoint: checkpoint}
	cluster, err := state.GetCluster{}.Answer(view)
	if err == nil {
		f.at = meta.Token{Epoch: cluster.Epoch, Index: view.Index()}
		f.hash, err = view.Hash(ctx)
	}
	if err = errors.Join(err, view.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("freeze the metadata: %w", err), checkpoint.Close())
	}
	return f, nil
}

// Blob implements admin.Backups.
func (b backups) Blob(ctx context.Context, root digest.CID, from int) (io.ReadCloser, error) {
	blob, err := b.blobs.Open(ctx, root)
	if err != nil {
		return nil, err
	}
	if !blob.Complete() {
		return nil, errors.Join(fmt.Errorf("blob %s is not here whole: %w", root, meta.ErrNotFound), blob.Close())
	}
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(writeBlob(ctx, w, blob, from))
	}()
	return &blobStream{PipeReader: r, blob: blob, done: done}, nil
}

// writeBlob writes the map and the chunks, each verified as it is read.
func writeBlob(ctx context.Context, w io.Writer, blob store.Blob, from int) error {
	out := bufio.NewWriterSize(w, 128<<10)
	if _, err := out.Write(codec.AppendFrame(nil, blob.Map().Encode())); err != nil {
		return err
	}
	var buffer []byte
	for i := from; i < blob.Map().Len(); i++ {
		chunk, err := blob.ReadChunk(ctx, i, buffer)
		if err != nil {
			return fmt.Errorf("read chunk %d of %s: %w", i, blob.Root(), err)
		}
		if _, err := out.Write(chunk); err != nil {
			return err
		}
		if cap(buffer) < len(chunk) {
			buffer = make([]byte, 0, len(chunk))
		}
	}
	return out.Flush()
}

// blobStream is a blob as a reader. Its goroutine ends with Close.
type blobStream struct {
	*io.PipeReader
	blob store.Blob
	done chan struct{}
}

func (s *blobStream) Close() error {
	s.PipeReader.CloseWithError(io.ErrClosedPipe)
	<-s.done
	return s.blob.Close()
}

// RootKey implements admin.Backups.
func (b backups) RootKey(ctx context.Context, recipients []string) ([]byte, error) {
	authority, err := b.admission.Authority(ctx)
	if err != nil {
		return nil, err
	}
	der, err := authority.KeyDER()
	if err != nil {
		return nil, err
	}
	return trust.SealTo(der, recipients)
}
