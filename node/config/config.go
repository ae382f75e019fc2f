// Package config makes the one checked configuration value of a node.
//
// A value comes from, in rising order: its default, the YAML file, the
// environment, the command line. Settings lists every key once with its unit,
// default and effect; the file, SHOAL_* variables, flags and `shoal config
// explain` are all made from it. Start reading at Settings, then Load.
//
// No other package reads files, environment or flags for configuration. The
// package starts no goroutines.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/bucket"
	"github.com/shoal-registry/shoal/transfer/limit"
)

// Config is everything an operator may say about one node.
type Config struct {
	Data   string
	Role   meta.Role
	Region meta.RegionName
	Zone   string
	Rack   string

	Gateway   string // host:port
	Swarm     string
	Raft      string
	Ops       string
	Advertise string // host that others reach this node by; "" is found out
	Plain     bool

	// TLSCert and TLSKey are PEM files that the gateway serves to clients instead of
	// its node certificate, reloaded when they change; LoopbackTLS takes TLS alone on
	// this machine too.
	TLSCert, TLSKey string
	LoopbackTLS     bool
	// OutgoingAllow are networks, with commas between, that requests to addresses
	// which people name may reach although they are reserved.
	OutgoingAllow Prefixes
	// Mirrors are the proxies that calls for other registries (?ns=) mean.
	Mirrors Mirrors

	Bootstrap bool
	Join      string
	Token     Secret

	Blobs string
	// TakeBucket is the id of the lost cluster whose bucket this one takes over.
	TakeBucket string
	CacheBytes Bytes
	HotBytes   Bytes
	Reserve    Bytes

	// UploadTTL is how long an upload rests, and what was uploaded stays without a
	// version that uses it.
	UploadTTL time.Duration

	// Limits are the bandwidth budgets until somebody changes them at run time. Yield
	// makes pre-warming give way to other traffic.
	Limits limit.Limits
	Yield  bool

	RaftProfile string
	// DeadAfter is how long a server is away before the leader drains it; 0 is never.
	DeadAfter time.Duration

	// BacklogBytes and BacklogBlobs bound what a region may owe a tenant without having
	// any copy, before the tenant's pushes are held back; 0 is without bound.
	BacklogBytes Bytes
	BacklogBlobs uint64
	LogLevel     string
	LogFormat    string

	// Version is the build's, for people to read.
	Version string

	// Dev admits anonymous callers as administrators of what they create, and
	// creates tenants and repositories on first push. Only `shoal dev` sets it.
	Dev bool
}

// Secret is text that never shows itself.
type Secret string

func (Secret) String() string { return "***" }

// Reveal returns the text.
func (s Secret) Reveal() string { return string(s) }

// Bytes is a size in bytes, written like 50GiB, 64MB or 1024.
type Bytes int64

var units = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

// ParseBytes reads a size.
func ParseBytes(s string) (Bytes, error) {
	number, scale := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, scale = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || f < 0 || f*float64(scale) > 1<<62 {
		return 0, fmt.Errorf("size %q: write it like 50GiB, 64MB or 1024", s)
	}
	return Bytes(f * float64(scale)), nil
}

func (b Bytes) String() string {
	for _, u := range units {
		if strings.HasSuffix(u.name, "iB") && int64(b) >= u.bytes && int64(b)%u.bytes == 0 {
			return strconv.FormatInt(int64(b)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// Rate is a rate in bytes per second, written like 100MB/s or 800mbit; 0 is none.
type Rate int64

var bits = []struct {
	name        string
	bytesPerSec float64
}{{"gbit", 1e9 / 8}, {"mbit", 1e6 / 8}, {"kbit", 1e3 / 8}}

// ParseRate reads a rate: a size per second, bits per second, none or 0.
func ParseRate(s string) (Rate, error) {
	text := strings.ToLower(strings.TrimSpace(s))
	bad := fmt.Errorf("rate %q: write it like 100MB/s or 800mbit, or none", s)
	if text == "none" || text == "0" {
		return 0, nil
	}
	for _, u := range bits {
		if number, ok := strings.CutSuffix(strings.TrimSuffix(text, "/s"), u.name); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
			if err != nil || !(f >= 0) || f*u.bytesPerSec > 1<<62 {
				return 0, bad
			}
			return Rate(f * u.bytesPerSec), nil
		}
	}
	perSecond, ok := strings.CutSuffix(strings.TrimSpace(s), "/s")
	if !ok {
		return 0, bad
	}
	b, err := ParseBytes(perSecond)
	if err != nil {
		return 0, bad
	}
	return Rate(b), nil
}

func (r Rate) String() string {
	if r == 0 {
		return "none"
	}
	for _, u := range units {
		// To three decimals; of two names of one rate, the decimal one.
		if !strings.HasSuffix(u.name, "iB") && int64(r) >= u.bytes && int64(r)%max(1, u.bytes/1000) == 0 {
			return strconv.FormatFloat(float64(r)/float64(u.bytes), 'f', -1, 64) + u.name + "/s"
		}
	}
	return strconv.FormatInt(int64(r), 10) + "B/s"
}

// Prefixes are networks, written with commas between.
type Prefixes []netip.Prefix

// ParsePrefixes reads networks; a bare address is one of itself.
func ParsePrefixes(s string) (all Prefixes, err error) {
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		if addr, err := netip.ParseAddr(part); err == nil && addr.Zone() == "" {
			all = append(all, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil {
			return nil, fmt.Errorf("network %q: write it like 10.20.0.0/16 or 192.168.7.9", part)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

func (p Prefixes) String() string {
	texts := make([]string, len(p))
	for i, prefix := range p {
		texts[i] = prefix.String()
	}
	return strings.Join(texts, ",")
}

// Setting is one key of the configuration.
type Setting struct {
	Key     string // of the file; the flag is the same with dots as hyphens, if flag does not say
	Default string
	Usage   string
	Roles   []meta.Role // that have it; nil is both
	get     func(*Config) string
	set     func(*Config, string) error
	boolean bool
	secret  bool
	table   bool // in the file a map; elsewhere NAME=VALUE,NAME=VALUE
	flag    string
}

// Flag returns the flag's name without hyphens in front.
func (s Setting) Flag() string {
	return cmp.Or(s.flag, strings.ReplaceAll(s.Key, ".", "-"))
}

// Env returns the environment variable's name.
//
// The join token's is SHOAL_JOIN_TOKEN, since SHOAL_TOKEN is a client's credential.
func (s Setting) Env() string {
	if s.Key == "token" {
		return "SHOAL_JOIN_TOKEN"
	}
	return "SHOAL_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(s.Key))
}

func text[T ~string](key, def, usage string, field func(*Config) *T, roles ...meta.Role) Setting {
	return Setting{Key: key, Default: def, Usage: usage, Roles: roles,
		get: func(c *Config) string { return string(*field(c)) },
		set: func(c *Config, s string) error { *field(c) = T(s); return nil }}
}

func boolean(key, usage string, field func(*Config) *bool, roles ...meta.Role) Setting {
	return Setting{Key: key, Default: "false", Usage: usage, Roles: roles, boolean: true,
		get: func(c *Config) string { return strconv.FormatBool(*field(c)) },
		set: func(c *Config, s string) (err error) { *field(c), err = strconv.ParseBool(s); return err }}
}

func size(key, def, usage string, field func(*Config) *Bytes, roles ...meta.Role) Setting {
	return Setting{Key: key, Default: def, Usage: usage, Roles: roles,
		get: func(c *Config) string { return field(c).String() },
		set: func(c *Config, s string) (err error) { *field(c), err = ParseBytes(s); return err }}
}

func duration(key, def, usage string, field func(*Config) *time.Duration, roles ...meta.Role) Setting {
	return Setting{Key: key, Default: def, Usage: usage, Roles: roles,
		get: func(c *Config) string { return field(c).String() },
		set: func(c *Config, s string) error {
			d, err := time.ParseDuration(s)
			if err != nil || d < 0 {
				return fmt.Errorf("duration %q: write it like 24h or 90m, 0 for never", s)
			}
			*field(c) = d
			return nil
		}}
}

func prefixes(key, def, usage string, field func(*Config) *Prefixes, roles ...meta.Role) Setting {
	return Setting{Key: key, Default: def, Usage: usage, Roles: roles,
		get: func(c *Config) string { return field(c).String() },
		set: func(c *Config, s string) (err error) { *field(c), err = ParsePrefixes(s); return err }}
}

func count(key, def, usage string, field func(*Config) *uint64, roles ...meta.Role) Setting {
	return Setting{Key: key, Default: def, Usage: usage, Roles: roles,
		get: func(c *Config) string { return strconv.FormatUint(*field(c), 10) },
		set: func(c *Config, s string) (err error) { *field(c), err = strconv.ParseUint(s, 10, 64); return err }}
}

func rate(key, flag, usage string, field func(*Config) *int64) Setting {
	return Setting{Key: key, flag: flag, Default: "none", Usage: usage,
		get: func(c *Config) string { return Rate(*field(c)).String() },
		set: func(c *Config, s string) error {
			r, err := ParseRate(s)
			*field(c) = int64(r)
			return err
		}}
}

// rates is a table of limits, those whose budget begins with the last part of key.
func rates(key, flag, usage string) Setting {
	budgets := strings.TrimPrefix(key, "limits.") + "."
	return Setting{Key: key, flag: flag, Usage: usage, table: true,
		get: func(c *Config) string {
			var all []string
			for _, r := range c.Limits.List() {
				if name, ok := strings.CutPrefix(r.Budget, budgets); ok {
					all = append(all, name+"="+Rate(r.BytesPerSec).String())
				}
			}
			return strings.Join(all, ",")
		},
		set: func(c *Config, s string) error {
			for _, r := range c.Limits.List() {
				if strings.HasPrefix(r.Budget, budgets) {
					if err := c.Limits.Put(limit.Rate{Budget: r.Budget}); err != nil {
						return err
					}
				}
			}
			for part := range strings.SplitSeq(s, ",") {
				if strings.TrimSpace(part) == "" {
					continue
				}
				name, value, ok := strings.Cut(part, "=")
				if !ok {
					return fmt.Errorf("%q: write NAME=RATE,NAME=RATE", part)
				}
				r, err := ParseRate(value)
				if err == nil {
					err = c.Limits.Put(limit.Rate{Budget: budgets + strings.TrimSpace(name), BytesPerSec: int64(r)})
				}
				if err != nil {
					return err
				}
			}
			return nil
		}}
}

// Settings lists every key.
var Settings = []Setting{
	text("data", "", "directory of everything this node keeps", func(c *Config) *string { return &c.Data }),
	text("region", "", "name of the region this server belongs to", func(c *Config) *meta.RegionName { return &c.Region }, meta.RoleServer),
	text("zone", "", "zone within the region, for locality", func(c *Config) *string { return &c.Zone }),
	text("rack", "", "rack within the zone, for locality", func(c *Config) *string { return &c.Rack }),
	text("gateway", "127.0.0.1:5000", "address that package clients and other nodes talk HTTP to", func(c *Config) *string { return &c.Gateway }),
	text("swarm", "0.0.0.0:7070", "address that peers exchange chunks on (TCP and QUIC)", func(c *Config) *string { return &c.Swarm }),
	text("raft", "0.0.0.0:7071", "address that servers run consensus on (TCP)", func(c *Config) *string { return &c.Raft }, meta.RoleServer),
	text("ops", "127.0.0.1:7072", "private address of /metrics, /livez, /readyz and /debug/pprof", func(c *Config) *string { return &c.Ops }),
	text("advertise", "", "host name or address that other nodes reach this one by; empty takes the address of the route to the others", func(c *Config) *string { return &c.Advertise }),
	boolean("plain", "accept plain HTTP from everywhere, not from loopback alone", func(c *Config) *bool { return &c.Plain }),
	text("tls-cert", "", "PEM file of the chain that the gateway serves to clients, reloaded when it changes; empty is a certificate of the cluster's root", func(c *Config) *string { return &c.TLSCert }),
	text("tls-key", "", "PEM file of its key", func(c *Config) *string { return &c.TLSKey }),
	boolean("loopback-tls", "refuse plain HTTP from this machine too", func(c *Config) *bool { return &c.LoopbackTLS }),
	prefixes("outgoing-allow", "", "networks that fetches from addresses which people name (issuers, upstreams) may reach although they are loopback, private or otherwise reserved: 10.20.0.0/16,192.168.7.9/32", func(c *Config) *Prefixes { return &c.OutgoingAllow }),
	mirrors("mirror", "proxy repositories that stand for other registries when a client takes this node for their mirror: docker.io=acme/hub,ghcr.io=acme/ghcr; others are found by their upstream, for who may read them", func(c *Config) *Mirrors { return &c.Mirrors }),
	boolean("bootstrap", "begin a new cluster with this server", func(c *Config) *bool { return &c.Bootstrap }, meta.RoleServer),
	text("join", "", "https://host:port of a server of the cluster to join", func(c *Config) *string { return &c.Join }),
	secret(text("token", "", "join token, from `shoal token join`", func(c *Config) *Secret { return &c.Token })),
	text("blobs", "", "where blobs are kept: a directory, empty is DATA/blobs; on servers also s3://BUCKET/PREFIX?endpoint=https://HOST&region=NAME&path-style=1, which the servers of a region may share, with credentials from the environment, ~/.aws or the instance's role", func(c *Config) *string { return &c.Blobs }),
	text("take-bucket", "", "id of a cluster that is lost for good: the bucket that was its, for the same region, becomes this cluster's, which was restored from its backup; refused while that cluster uses it", func(c *Config) *string { return &c.TakeBucket }, meta.RoleServer),
	size("cache-size", "50GiB", "most that the cache may hold on disk: an agent's, and that of a server with a bucket; a server that keeps blobs on a disk has none", func(c *Config) *Bytes { return &c.CacheBytes }),
	size("hot-size", "0", "chunks kept in memory for peers and clients; 0 is 64MiB on a server, 6MiB on an agent", func(c *Config) *Bytes { return &c.HotBytes }),
	size("reserve", "0", "free disk space below which new content is refused; 0 is 1 % of the disk, at most 512MiB", func(c *Config) *Bytes { return &c.Reserve }),
	duration("uploads-ttl", "24h", "how long an unfinished upload is kept, and a blob that was uploaded and that no version uses; for the latter the leader's own setting counts", func(c *Config) *time.Duration { return &c.UploadTTL }, meta.RoleServer),
	rate("limits.up", "up", "most that is sent to peers, like 100MB/s or 800mbit; shoal limit set changes limits at run time", func(c *Config) *int64 { return &c.Limits.Up }),
	rate("limits.down", "down", "most that is received from peers", func(c *Config) *int64 { return &c.Limits.Down }),
	rate("limits.zone-up", "zone-up", "most that is sent to other zones of the region", func(c *Config) *int64 { return &c.Limits.ZoneUp }),
	rate("limits.zone-down", "zone-down", "most that is received from other zones of the region", func(c *Config) *int64 { return &c.Limits.ZoneDown }),
	rate("limits.wan-up", "wan-up", "most that is sent to other regions", func(c *Config) *int64 { return &c.Limits.WANUp }),
	rate("limits.wan-down", "wan-down", "most that is received from other regions", func(c *Config) *int64 { return &c.Limits.WANDown }),
	flagged("yield", boolean("limits.yield", "what is pre-warmed gives way to all other traffic of the host, as round trips to peers tell", func(c *Config) *bool { return &c.Yield })),
	rates("limits.tenants", "tenant-limits", "most for a tenant's blobs, each way: acme=50MB/s,beta=1gbit"),
	rates("limits.classes", "class-limits", "most for a class, each way: prewarm=20MB/s; classes are urgent, bulk and prewarm"),
	text("raft.profile", "wan", "timings of consensus: wan for regions far apart, site for one site", func(c *Config) *string { return &c.RaftProfile }, meta.RoleServer),
	size("backlog.size", "100GiB", "what of a tenant may wait for its first copy in a region; beyond it the tenant's uploads and publishes get 429 until copies were made; 0 is without bound", func(c *Config) *Bytes { return &c.BacklogBytes }, meta.RoleServer),
	count("backlog.blobs", "100000", "how many blobs of a tenant may wait so; 0 is without bound", func(c *Config) *uint64 { return &c.BacklogBlobs }, meta.RoleServer),
	duration("dead-after", "24h", "how long a server may be away until the leader empties it and, when nothing is left there, removes it; 0 is never; the leader's own setting counts", func(c *Config) *time.Duration { return &c.DeadAfter }, meta.RoleServer),
	text("log.level", "info", "debug, info, warn or error", func(c *Config) *string { return &c.LogLevel }),
	text("log.format", "text", "text or json", func(c *Config) *string { return &c.LogFormat }),
}

func flagged(name string, s Setting) Setting { s.flag = name; return s }

func secret(s Setting) Setting { s.secret = true; return s }

// For returns the settings that a role has.
func For(role meta.Role) []Setting {
	return slices.DeleteFunc(slices.Clone(Settings), func(s Setting) bool {
		return s.Roles != nil && !slices.Contains(s.Roles, role)
	})
}

// AddFlags defines a flag for each setting of the role, and --config.
func AddFlags(flags *pflag.FlagSet, role meta.Role) {
	for _, s := range For(role) {
		if s.boolean {
			flags.Bool(s.Flag(), s.Default == "true", s.Usage)
		} else {
			flags.String(s.Flag(), s.Default, s.Usage)
		}
	}
	flags.String("config", "", "YAML file with the same keys")
}

// Defaults returns the configuration of a role of which nothing was said.
func Defaults(role meta.Role) (Config, error) {
	c := Config{Role: role}
	for _, s := range For(role) {
		if err := s.set(&c, s.Default); err != nil {
			return Config{}, fmt.Errorf("default of %s: %w", s.Key, err)
		}
	}
	return c, nil
}

// Explained is a setting's value and where it came from.
type Explained struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source"` // default, file NAME, environment NAME, flag --NAME
	Usage  string `json:"usage"`
}

// Load makes the configuration of a node of the role from flags (made by
// AddFlags and parsed), the environment and the file that --config or
// SHOAL_CONFIG names, and checks it.
//
// Errors say which key, from where, and what to write instead.
func Load(role meta.Role, flags *pflag.FlagSet, getenv func(string) string) (Config, []Explained, error) {
	c, err := Defaults(role)
	if err != nil {
		return Config{}, nil, err
	}
	settings := For(role)
	source := map[string]string{}
	assign := func(s Setting, value, from string) error {
		if err := s.set(&c, value); err != nil {
			return fmt.Errorf("%s (from %s): %w", s.Key, from, err)
		}
		source[s.Key] = from
		return nil
	}
	for _, s := range settings {
		source[s.Key] = "default"
	}
	if name := cmp.Or(flagValue(flags, "config"), getenv("SHOAL_CONFIG")); name != "" {
		values, err := readFile(name, settings)
		if err != nil {
			return Config{}, nil, err
		}
		for _, s := range settings {
			if v, ok := values[s.Key]; ok {
				if err := assign(s, v, "file "+name); err != nil {
					return Config{}, nil, err
				}
			}
		}
	}
	for _, s := range settings {
		if v := getenv(s.Env()); v != "" {
			if err := assign(s, v, "environment "+s.Env()); err != nil {
				return Config{}, nil, err
			}
		}
		if f := flags.Lookup(s.Flag()); f != nil && f.Changed {
			if err := assign(s, f.Value.String(), "flag --"+s.Flag()); err != nil {
				return Config{}, nil, err
			}
		}
	}
	explained := make([]Explained, 0, len(settings))
	for _, s := range settings {
		value := s.get(&c)
		if s.secret && value != "" {
			value = Secret(value).String()
		}
		explained = append(explained, Explained{s.Key, value, source[s.Key], s.Usage})
	}
	if err := c.Check(); err != nil {
		return c, explained, err
	}
	if from := source["cache-size"]; role == meta.RoleServer && !IsBucket(c.Blobs) && from != "default" {
		return c, explained, fmt.Errorf("cache-size (from %s): a server that keeps its blobs on a disk has no cache; leave it out (--reserve keeps room free), or keep blobs in a bucket with --blobs s3://BUCKET/PREFIX", from)
	}
	return c, explained, nil
}

func flagValue(flags *pflag.FlagSet, name string) string {
	if f := flags.Lookup(name); f != nil {
		return f.Value.String()
	}
	return ""
}

func readFile(name string, settings []Setting) (map[string]string, error) {
	raw, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration file %s does not exist", name)
	} else if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := yaml.Unmarshal(raw, &tree); err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", name, err)
	}
	values := map[string]string{}
	if err := flatten(values, "", tree); err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", name, err)
	}
	for _, s := range settings {
		if s.table {
			gather(values, s.Key)
		}
	}
	known := func(key string) bool {
		return slices.ContainsFunc(settings, func(s Setting) bool { return s.Key == key })
	}
	for key := range values {
		if !known(key) {
			return nil, fmt.Errorf("configuration file %s: unknown key %q, did you mean %q?", name, key, nearest(key, settings))
		}
	}
	return values, nil
}

func flatten(out map[string]string, prefix string, tree map[string]any) error {
	for k, v := range tree {
		switch v := v.(type) {
		case map[string]any:
			if err := flatten(out, prefix+k+".", v); err != nil {
				return err
			}
		case string, bool, int, int64, float64:
			out[prefix+k] = fmt.Sprint(v)
		default:
			return fmt.Errorf("key %q holds %T, write one plain value", prefix+k, v)
		}
	}
	return nil
}

// gather makes the entries of a table one value.
func gather(values map[string]string, key string) {
	var entries []string
	for k, v := range values {
		if name, ok := strings.CutPrefix(k, key+"."); ok {
			entries = append(entries, name+"="+v)
			delete(values, k)
		}
	}
	if len(entries) > 0 {
		slices.Sort(entries)
		values[key] = strings.Join(entries, ",")
	}
}

// nearest returns the known key with the least edit distance to key.
func nearest(key string, settings []Setting) string {
	best := slices.MinFunc(settings, func(a, b Setting) int {
		return cmp.Compare(distance(key, a.Key), distance(key, b.Key))
	})
	return best.Key
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Check reports the first thing that cannot work.
func (c Config) Check() error {
	if c.Data == "" {
		return errors.New("data: say where to keep things with --data DIR")
	}
	addresses := []struct{ key, value string }{{"gateway", c.Gateway}, {"swarm", c.Swarm}, {"ops", c.Ops}}
	if c.Role == meta.RoleServer {
		addresses = append(addresses, struct{ key, value string }{"raft", c.Raft})
		if err := meta.CheckRegion(c.Region); err != nil {
			return fmt.Errorf("--region: %w", err)
		}
		if c.RaftProfile != "wan" && c.RaftProfile != "site" {
			return fmt.Errorf("raft.profile %q: write wan or site", c.RaftProfile)
		}
	}
	for _, a := range addresses {
		if _, _, err := net.SplitHostPort(a.value); err != nil {
			return fmt.Errorf("%s %q: write HOST:PORT: %w", a.key, a.value, err)
		}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return errors.New("tls-cert and tls-key are the two halves of one certificate: give both or none")
	}
	if c.Bootstrap && c.Join != "" {
		return errors.New("--bootstrap begins a cluster and --join joins one: give one of them")
	}
	if c.Join != "" && !strings.HasPrefix(c.Join, "https://") {
		return fmt.Errorf("--join %q: write https://host:port, the token proves which cluster it is", c.Join)
	}
	switch {
	case IsBucket(c.Blobs) && c.Role != meta.RoleServer:
		return errors.New("blobs: an agent keeps its cache in a directory, buckets are for servers")
	case IsBucket(c.Blobs):
		if _, err := bucket.Parse(c.Blobs); err != nil {
			return fmt.Errorf("blobs: %w", err)
		}
	case c.TakeBucket != "":
		return errors.New("take-bucket is about a bucket: give that too, with --blobs s3://BUCKET/PREFIX")
	case strings.Contains(c.Blobs, "://"):
		return errors.New("blobs: write a directory, or s3://BUCKET/PREFIX")
	}
	if err := c.Limits.Check(); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		return fmt.Errorf("log.level %q: write debug, info, warn or error", c.LogLevel)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		return fmt.Errorf("log.format %q: write text or json", c.LogFormat)
	}
	return nil
}

// IsBucket says whether blobs are in a bucket, and not in a directory.
func IsBucket(blobs string) bool { return strings.HasPrefix(blobs, bucket.Scheme) }

// AdvertiseHost returns the host that others reach this node by: --advertise,
// else the host of listen unless it is a wildcard, else the address from which
// the route to toward ("host:port") leaves, else that of the route to anywhere.
// Loopback, which leads others to themselves, is for machines with nothing else.
func (c Config) AdvertiseHost(listen, toward string) string {
	if c.Advertise != "" {
		return c.Advertise
	}
	if host, _, err := net.SplitHostPort(listen); err == nil && host != "" {
		if ip, err := netip.ParseAddr(host); err != nil || !ip.IsUnspecified() {
			return host
		}
	}
	// The documentation prefixes (RFC 5737, RFC 3849) stand for anywhere.
	for _, to := range []string{toward, "192.0.2.1:9", "[2001:db8::1]:9"} {
		if to == "" {
			continue
		}
		// A UDP "connection" sends nothing; it only asks the kernel for the route.
		if conn, err := net.DialTimeout("udp", to, time.Second); err == nil {
			defer conn.Close()
			if a, ok := conn.LocalAddr().(*net.UDPAddr); ok {
				return a.IP.String()
			}
		}
	}
	// A network without a default route.
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}
