package admin_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin"
	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol/protocoltest"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// frozenBackups is a server with one blob and a state of a few bytes.
type frozenBackups struct{}

type frozenState struct{}

var onlyRoot = digest.Sum([]byte("only"))

func (frozenBackups) State(context.Context) (admin.BackupState, error) { return frozenState{}, nil }

func (frozenBackups) Blob(_ context.Context, root digest.CID, from int) (io.ReadCloser, error) {
	if root != onlyRoot {
		return nil, fmt.Errorf("blob %s: %w", root, meta.ErrNotFound)
	}
	return io.NopCloser(strings.NewReader(fmt.Sprint("from ", from))), nil
}

func (frozenBackups) RootKey(_ context.Context, recipients []string) ([]byte, error) {
	if recipients[0] != "age1x" {
		return nil, fmt.Errorf("recipient: %w", meta.ErrInvalid)
	}
	return []byte("sealed"), nil
}

func (frozenState) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, "the state")
	return int64(n), err
}
func (frozenState) Close() error { return nil }
func (frozenState) Point() (meta.Token, [32]byte) {
	return meta.Token{Epoch: 3, Index: 7}, [32]byte{0xab}
}

// TestBackups: they are for administrators, say which server is disturbed least, and
// their hold is renewed until it is given back.
func TestBackups(t *testing.T) {
	f, ctx := start(t), t.Context()
	for name, token := range map[string]string{"reader": f.gw.Reader, "writer": f.gw.Writer} {
		if _, err := f.as(token).OpenBackup(ctx, client.NewBackup{LeaseSeconds: 60}); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("opened by a %s: %v", name, err)
		}
		if _, err := f.as(token).BackupState(ctx, self); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("state for a %s: %v", name, err)
		}
		if _, err := f.as(token).BackupBlob(ctx, self, onlyRoot, 0); !errors.Is(err, meta.ErrDenied) {
			t.Errorf("a blob for a %s: %v", name, err)
		}
	}
	admit(t, f, "quiet", meta.RoleServer, "ap")
	b := must[client.Backup](t)(f.OpenBackup(ctx, client.NewBackup{LeaseSeconds: 60, Recipients: []string{"age1x"}}))
	if b.Cluster != "test" || string(b.RootKey) != "sealed" || b.Until-b.Opened != meta.Time(time.Minute) {
		t.Errorf("%+v", b)
	}
	if len(b.Sources) != 2 || b.Sources[0].ID != "quiet" || b.Sources[0].Kind != "non-voter" || b.Sources[1].Kind != "leader" {
		t.Errorf("taken from %+v", b.Sources)
	}
	for lease, want := range map[time.Duration]error{2 * time.Minute: nil, time.Second: meta.ErrInvalid, 2 * time.Hour: meta.ErrInvalid} {
		if err := f.RenewBackup(ctx, b.ID, lease); !errors.Is(err, want) {
			t.Errorf("renewed for %v: %v", lease, err)
		}
	}
	if open := must[[]meta.Backup](t)(f.Backups(ctx)); len(open) != 1 || open[0].ID != b.ID || open[0].By == "" {
		t.Errorf("open are %+v", open)
	}
	if err := f.CloseBackup(ctx, b.ID); err != nil {
		t.Error(err)
	}
	if err := f.RenewBackup(ctx, b.ID, time.Minute); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("renewed after it was closed: %v", err)
	}
	if _, err := f.OpenBackup(ctx, client.NewBackup{LeaseSeconds: 60, Recipients: []string{"nobody"}}); !errors.Is(err, meta.ErrInvalid) {
		t.Errorf("sealed to nobody: %v", err)
	}
	if open := must[[]meta.Backup](t)(f.Backups(ctx)); len(open) != 0 {
		t.Errorf("open are %+v", open)
	}
	s := must[*client.BackupState](t)(f.BackupState(ctx, self))
	text := must[[]byte](t)(io.ReadAll(s))
	if string(text) != "the state" || s.Index != 7 || s.Epoch != 3 || !strings.HasPrefix(s.Hash, "ab00") {
		t.Errorf("%q of %+v", text, s)
	}
	blob := must[io.ReadCloser](t)(f.BackupBlob(ctx, self, onlyRoot, 5))
	if text := must[[]byte](t)(io.ReadAll(blob)); string(text) != "from 5" {
		t.Errorf("%q", text)
	}
	if err := errors.Join(s.Close(), blob.Close()); err != nil {
		t.Error(err)
	}
	if _, err := f.BackupBlob(ctx, self, digest.Sum(nil), 0); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("no blob: %v", err)
	}
	for _, path := range []string{"backup/blobs/nonsense", "backup/blobs/" + onlyRoot.String() + "?from=-1", "backup/blobs/" + onlyRoot.String() + "?from=x"} {
		if status, _, body := f.gw.Do(t, protocoltest.Request{Method: "GET", Path: "/api/v1/servers/" + string(self) + "/" + path}, protocoltest.AdminToken); status != 400 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}
