package client

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/verify/digest"
)

// Headers of the streams of a backup.
const (
	HeaderBackupIndex = "Shoal-Backup-Index"
	HeaderBackupEpoch = "Shoal-Backup-Epoch"
	// HeaderBackupHash is the hash of the state at that index, hex.
	HeaderBackupHash = "Shoal-Backup-State-Hash"
)

// NewBackup begins a backup, or renews it.
type NewBackup struct {
	LeaseSeconds int64 `json:"lease_seconds"`
	// Recipients are whom the root's key is sealed to for this backup: age recipients
	// or OpenSSH public keys; none leaves it out.
	Recipients []string `json:"recipients,omitempty"`
}

// Backup is one that is open.
type Backup struct {
	meta.Backup
	Cluster string `json:"cluster"`
	Epoch   uint64 `json:"epoch"`
	Level   uint32 `json:"level"`
	Version string `json:"version"` // of the answering server
	// RootKey is the root's private key sealed to the recipients.
	RootKey []byte `json:"root_key,omitempty"`
	// Sources are the servers to take it from, best first.
	Sources []BackupSource `json:"sources,omitempty"`
}

// BackupSource is a server that a backup may be taken from.
type BackupSource struct {
	ID     meta.NodeID     `json:"id"`
	Region meta.RegionName `json:"region"`
	// Kind is non-voter, follower or leader: what taking it there disturbs least comes
	// first.
	Kind string `json:"kind"`
}

// BackupState is the metadata as a backup keeps it, while it arrives. Hash is in hex.
type BackupState struct {
	io.ReadCloser
	Index, Epoch uint64
	Hash         string
}

// OpenBackup begins a backup. Errors: meta.ErrConflict when too many are open.
func (c *Client) OpenBackup(ctx context.Context, n NewBackup) (b Backup, err error) {
	return b, c.call(ctx, http.MethodPost, "backups", nil, n, &b)
}

// RenewBackup prolongs its hold. Errors: meta.ErrConflict when it has ended.
func (c *Client) RenewBackup(ctx context.Context, id string, lease time.Duration) error {
	return c.call(ctx, http.MethodPut, join("backups", id), nil, NewBackup{LeaseSeconds: int64(lease / time.Second)}, nil)
}

// CloseBackup ends its hold.
func (c *Client) CloseBackup(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, join("backups", id), nil, nil, nil)
}

// Backups lists those that are open.
func (c *Client) Backups(ctx context.Context) ([]meta.Backup, error) {
	var p Page[meta.Backup]
	err := c.call(ctx, http.MethodGet, "backups", nil, nil, &p)
	return p.Items, err
}

// BackupState reads the metadata of a server; close it. It ends with an error when the
// stream breaks off.
func (c *Client) BackupState(ctx context.Context, server meta.NodeID) (*BackupState, error) {
	resp, err := c.stream(ctx, join("servers", string(server), "backup", "state"), nil)
	if err != nil {
		return nil, err
	}
	s := &BackupState{ReadCloser: resp.Body, Hash: resp.Header.Get(HeaderBackupHash)}
	s.Index, err = strconv.ParseUint(resp.Header.Get(HeaderBackupIndex), 10, 64)
	if err == nil {
		s.Epoch, err = strconv.ParseUint(resp.Header.Get(HeaderBackupEpoch), 10, 64)
	}
	if b, hexErr := hex.DecodeString(s.Hash); err != nil || hexErr != nil || len(b) != 32 {
		_ = resp.Body.Close() // Nothing of it was read.
		return nil, fmt.Errorf("%s does not answer as a shoal gateway: %w", c.Base, meta.ErrInvalid)
	}
	return s, nil
}

// BackupBlob reads a blob that a server holds, from a chunk on: a frame with the chunk
// map, then the stored bytes of the chunks; close it.
//
// Errors: meta.ErrNotFound when the server does not hold it whole.
func (c *Client) BackupBlob(ctx context.Context, server meta.NodeID, root digest.CID, from int) (io.ReadCloser, error) {
	resp, err := c.stream(ctx, join("servers", string(server), "backup", "blobs", root.String()), query("from", strconv.Itoa(from)))
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// stream sends a GET whose answer may be long; the caller closes its body. HTTP must
// have no timeout of its own for it.
func (c *Client) stream(ctx context.Context, path string, q url.Values) (*http.Response, error) {
	target := strings.TrimSuffix(c.Base, "/") + "/api/v1/" + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Base, err)
	}
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	sender := c.HTTP
	if sender == nil {
		sender = http.DefaultClient
	}
	resp, err := sender.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, meta.ErrUnavailable)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if err != nil {
			return nil, fmt.Errorf("read the answer of %s: %w: %w", req.URL.Path, err, meta.ErrUnavailable)
		}
		return nil, refusal(resp, b)
	}
	return resp, nil
}
