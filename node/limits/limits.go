// Package limits keeps a node's bandwidth limits: those of its configuration and, over
// them, what an operator changed while the node ran.
//
// A Keeper owns the node's limit.Budgets. What is changed is written to a file before
// it takes effect, so it survives a restart; taking a change back brings the configured
// limit back, as it is then. Handler serves it on the node's private listener, Client
// asks that:
//
//	GET    /limits   View
//	PATCH  /limits   Changes -> View
//	DELETE /limits   takes all changes back -> View
//
// Changes are only taken from the host itself: the listener has no authentication, and
// it is often opened for scraping. Start reading at Keeper. The package starts no
// goroutines.
package limits

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/limit"
)

// Rates are limits in bytes per second by budget: up, down, zone_up, zone_down, wan_up,
// wan_down, classes.CLASS, tenants.TENANT. 0 is none.
type Rates map[string]int64

// Changes are new limits by budget; null takes an earlier change back.
type Changes map[string]*int64

// View is a node's limits.
type View struct {
	// Limits are in force; a budget without one is not there.
	Limits Rates `json:"limits"`
	// Configured come from file, environment and flags, Changed from Change.
	Configured Rates `json:"configured"`
	Changed    Rates `json:"changed"`
}

// Config is what a Keeper needs.
type Config struct {
	// Configured are the limits of the node's configuration.
	Configured limit.Limits
	Budgets    *limit.Budgets
	// File is where changes are kept, Write replaces it atomically.
	File  string
	Write func(name string, data []byte, mode os.FileMode) error
	Log   *slog.Logger
}

// Keeper holds the limits of a node. It is safe for concurrent use.
type Keeper struct {
	cfg Config

	mu      sync.Mutex
	changed Rates
}

// Open reads the file and puts the limits into force.
//
// Errors: of reading; meta.ErrCorrupt when the file does not hold changes.
func Open(c Config) (*Keeper, error) {
	k := &Keeper{cfg: c, changed: Rates{}}
	b, err := os.ReadFile(c.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(b, &k.changed); err != nil {
			return nil, fmt.Errorf("%s: %w: correct or remove it: %w", c.File, err, meta.ErrCorrupt)
		}
	}
	if k.changed == nil { // of a file that says null
		k.changed = Rates{}
	}
	l, err := k.with(k.changed)
	if err == nil {
		err = c.Budgets.Set(l)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: correct or remove it: %w", c.File, err, meta.ErrCorrupt)
	}
	if len(k.changed) > 0 {
		c.Log.Info("limits were changed at run time, over the configuration", "limits", rates(l))
	}
	return k, nil
}

// with returns the configured limits with changes over them.
func (k *Keeper) with(changed Rates) (limit.Limits, error) {
	l := k.cfg.Configured.Clone()
	for _, name := range slices.Sorted(maps.Keys(changed)) {
		if err := l.Put(limit.Rate{Budget: name, BytesPerSec: changed[name]}); err != nil {
			return limit.Limits{}, err
		}
	}
	return l, l.Check()
}

func rates(l limit.Limits) Rates {
	r := Rates{}
	for _, set := range l.List() {
		r[set.Budget] = set.BytesPerSec
	}
	return r
}

// View returns the limits.
func (k *Keeper) View() View {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.view()
}

func (k *Keeper) view() View {
	return View{Limits: rates(k.cfg.Budgets.Limits()), Configured: rates(k.cfg.Configured), Changed: maps.Clone(k.changed)}
}

// Change keeps c and puts it into force, all of it or nothing.
//
// Errors: meta.ErrInvalid; of writing.
func (k *Keeper) Change(c Changes) (View, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	next := maps.Clone(k.changed)
	for name, rate := range c {
		if rate == nil {
			// Also a name that is none has to be told.
			if err := new(limit.Limits).Put(limit.Rate{Budget: name}); err != nil {
				return View{}, err
			}
			delete(next, name)
			continue
		}
		next[name] = *rate
	}
	return k.put(next)
}

// Reset takes all changes back.
//
// Errors: of writing.
func (k *Keeper) Reset() (View, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.put(Rates{})
}

// put makes next the changes. k.mu is held.
func (k *Keeper) put(next Rates) (View, error) {
	l, err := k.with(next)
	if err != nil {
		return View{}, err
	}
	b, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return View{}, err
	}
	if err := k.cfg.Write(k.cfg.File, append(b, '\n'), 0o600); err != nil {
		return View{}, fmt.Errorf("keep limits: %w", err)
	}
	if err := k.cfg.Budgets.Set(l); err != nil {
		return View{}, err
	}
	k.changed = next
	v := k.view()
	k.cfg.Log.Info("limits changed", "limits", v.Limits)
	return v, nil
}
