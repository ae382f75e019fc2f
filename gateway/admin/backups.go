package admin

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/shoal-registry/shoal/gateway/admin/client"
	"github.com/shoal-registry/shoal/gateway/protocol"
	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Backups is what a server gives of itself to a backup.
type Backups interface {
	// State freezes the metadata once it has seen all that was acknowledged before the
	// call. The caller closes it.
	State(context.Context) (BackupState, error)
	// Blob opens a blob that this server holds whole, to be read from a chunk on: a frame
	// with the map, then the chunks.
	//
	// Errors: meta.ErrNotFound, meta.ErrCorrupt.
	Blob(ctx context.Context, root digest.CID, from int) (io.ReadCloser, error)
	// RootKey returns the root's private key sealed to recipients.
	//
	// Errors: meta.ErrInvalid for a recipient that is none.
	RootKey(ctx context.Context, recipients []string) ([]byte, error)
}

// BackupState is a frozen state.
type BackupState interface {
	io.WriterTo
	io.Closer
	// Point returns what it is of, with the hash of the state.
	Point() (t meta.Token, hash [32]byte)
}

func leaseOf(c *protocol.Call) (client.NewBackup, time.Duration, error) {
	var body client.NewBackup
	if err := protocol.ReadJSON(c.R, maxBodyBytes, &body); err != nil {
		return body, 0, err
	}
	// Compared before it is multiplied: the product of a foreign number may wrap.
	if body.LeaseSeconds < 0 || body.LeaseSeconds > int64(meta.MaxBackupLease/time.Second) {
		return body, 0, fmt.Errorf("a lease of %d s, at most %v: %w", body.LeaseSeconds, meta.MaxBackupLease, meta.ErrInvalid)
	}
	return body, time.Duration(body.LeaseSeconds) * time.Second, nil
}

// openBackup holds garbage collection off and says where to take the backup.
func (a *API) openBackup(c *protocol.Call) error {
	body, lease, err := leaseOf(c)
	if err != nil {
		return err
	}
	cluster, err := ask(a, c, state.GetCluster{})
	if err != nil {
		return err
	}
	answer := client.Backup{Cluster: cluster.ID, Epoch: cluster.Epoch, Level: cluster.Level, Version: a.Version}
	if len(body.Recipients) > 0 {
		if answer.RootKey, err = a.Backups.RootKey(c.R.Context(), body.Recipients); err != nil {
			return err
		}
	}
	value, err := a.do(c, 0, state.HoldBackup{ID: rand.Text(), Lease: lease})
	if err != nil {
		return err
	}
	hold, ok := value.(meta.Backup)
	if !ok {
		return fmt.Errorf("the command answered %T", value)
	}
	answer.Backup = hold
	if answer.Sources, err = a.backupSources(c); err != nil {
		return err
	}
	return protocol.WriteJSON(c.W, http.StatusCreated, answer)
}

// backupSources orders the servers by how little a backup disturbs there: those without
// a vote first, the leader last; of equals those of this server's region.
func (a *API) backupSources(c *protocol.Call) ([]client.BackupSource, error) {
	nodes, err := a.roster(c, meta.RoleServer, "")
	if err != nil {
		return nil, err
	}
	rank := map[string]int{"non-voter": 0, "follower": 1, "leader": 2}
	voters, leader := a.voters(), meta.NodeID("")
	if a.Quorum != nil {
		leader = a.Quorum.Leader()
	}
	sources := make([]client.BackupSource, 0, len(nodes))
	for _, n := range nodes {
		kind := "non-voter"
		switch {
		case n.ID == leader:
			kind = "leader"
		case slices.Contains(voters, n.ID):
			kind = "follower"
		}
		sources = append(sources, client.BackupSource{ID: n.ID, Region: n.Region, Kind: kind})
	}
	away := func(s client.BackupSource) int {
		switch {
		case s.ID == a.Self.ID:
			return 0
		case s.Region == a.Self.Region:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(sources, func(x, y client.BackupSource) int {
		return cmp.Or(rank[x.Kind]-rank[y.Kind], away(x)-away(y))
	})
	return sources, nil
}

func (a *API) renewBackup(c *protocol.Call) error {
	_, lease, err := leaseOf(c)
	if err != nil {
		return err
	}
	value, err := a.do(c, 0, state.HoldBackup{ID: c.Params.Get("backup"), Lease: lease, Renew: true})
	if err != nil {
		return err
	}
	return reply[meta.Backup](c, http.StatusOK, value)
}

func (a *API) closeBackup(c *protocol.Call) error {
	if _, err := a.do(c, 0, state.CloseBackup{ID: c.Params.Get("backup")}); err != nil {
		return err
	}
	c.W.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) backups(c *protocol.Call) error {
	open, err := ask(a, c, state.OpenBackups{Now: meta.TimeOf(time.Now())})
	if err != nil {
		return err
	}
	if open == nil {
		open = []meta.Backup{}
	}
	return protocol.WriteJSON(c.W, http.StatusOK, client.Page[meta.Backup]{Items: open})
}

// backupState streams this server's metadata.
func (a *API) backupState(c *protocol.Call) error {
	frozen, err := a.Backups.State(c.R.Context())
	if err != nil {
		return err
	}
	defer func() { _ = frozen.Close() }() // It only frees.
	at, hash := frozen.Point()
	h := c.W.Header()
	h.Set("Content-Type", "application/x-tar")
	h.Set(client.HeaderBackupIndex, strconv.FormatUint(at.Index, 10))
	h.Set(client.HeaderBackupEpoch, strconv.FormatUint(at.Epoch, 10))
	h.Set(client.HeaderBackupHash, hex.EncodeToString(hash[:]))
	_, err = frozen.WriteTo(c.W)
	return err
}

// backupBlob streams a blob that this server holds.
func (a *API) backupBlob(c *protocol.Call) error {
	root, err := digest.ParseCID(c.Params.Get("root"))
	if err != nil {
		return fmt.Errorf("root: %w: %w", err, meta.ErrInvalid)
	}
	from := 0
	if text := c.R.URL.Query().Get("from"); text != "" {
		if from, err = strconv.Atoi(text); err != nil || from < 0 {
			return fmt.Errorf("from=%q is no chunk's number: %w", text, meta.ErrInvalid)
		}
	}
	blob, err := a.Backups.Blob(c.R.Context(), root, from)
	if err != nil {
		return err
	}
	defer func() { _ = blob.Close() }() // It was only read.
	c.W.Header().Set("Content-Type", "application/octet-stream")
	_, err = io.Copy(c.W, blob)
	return err
}
