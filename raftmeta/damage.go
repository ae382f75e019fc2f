package raftmeta

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/raftmeta/state"
)

// damagedFile, in raft/, says what was found damaged on this server. While it is
// there the server does not start: what a bad disk gave once it may give again, and
// nothing wrong must be served. Setting the metadata aside sets it aside too.
const damagedFile = "DAMAGED"

// markedDamaged returns what an earlier run found. Errors: meta.ErrCorrupt.
func markedDamaged(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "raft", damagedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, fmt.Errorf("an earlier run found: %s: %w", strings.TrimSpace(string(text)), meta.ErrCorrupt))
}

// advised adds to an error of damaged files what to do.
func advised(dir string, err error) error {
	if err == nil || !state.Damaged(err) && !errors.Is(err, meta.ErrCorrupt) {
		return err
	}
	return fmt.Errorf("the metadata of this server is damaged; `shoal rejoin --data %s` while it is stopped sets it aside, and the next start takes it anew from the other servers: %w", dir, err)
}

// fatal tells what this process cannot go on with, and keeps it for the next start
// when that is damage.
func (s *Store) fatal(err error) {
	if state.Damaged(err) || errors.Is(err, meta.ErrCorrupt) {
		if werr := os.WriteFile(filepath.Join(s.cfg.Dir, "raft", damagedFile), []byte(err.Error()+"\n"), 0o600); werr != nil {
			s.cfg.Log.Warn("the damage could not be written down", "error", werr)
		}
		err = advised(s.cfg.Dir, err)
	}
	if s.cfg.Fatal != nil {
		s.cfg.Fatal(err)
		return
	}
	s.cfg.Log.Error("the metadata cannot go on, ending the process", "error", err)
	os.Exit(exitFatal)
}

// exitFatal is the exit code of a process that ends itself (EX_SOFTWARE).
const exitFatal = 70

// SetAside moves the log and the state of a stopped server out of the way, into a
// directory that it returns the name of. The files stay for whoever wants to look.
func SetAside(dir, name string) (string, error) {
	aside := filepath.Join(dir, name)
	if err := os.Mkdir(aside, 0o700); err != nil {
		return "", err
	}
	// The mark of the damage goes last: a server that was interrupted here does not start.
	for _, part := range []string{"state", "raft"} {
		err := os.Rename(filepath.Join(dir, part), filepath.Join(aside, part))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("set the metadata aside: %w", err)
		}
	}
	for _, d := range []string{aside, dir} {
		f, err := os.Open(d)
		if err != nil {
			return "", err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return "", err
		}
	}
	return aside, nil
}
