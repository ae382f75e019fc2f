package state

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/shoal-registry/shoal/raftmeta/audit"
	"github.com/shoal-registry/shoal/raftmeta/meta"
)

// testSigner signs checkpoints as a server of a region.
func testSigner(region meta.RegionName) (audit.Signer, ed25519.PrivateKey) {
	seed := sha256.Sum256([]byte(region))
	return audit.Signer{Node: meta.NodeID(region + "-signer"), Region: region, Chain: [][]byte{[]byte("certificate of " + region)}},
		ed25519.NewKeyFromSeed(seed[:])
}

// testTrust is the audit.Trust of such signers.
func testTrust(chain [][]byte, _ time.Time) (meta.NodeID, meta.RegionName, ed25519.PublicKey, error) {
	region, ok := strings.CutPrefix(string(chain[0]), "certificate of ")
	if !ok {
		return "", "", nil, errors.New("no certificate")
	}
	by, key := testSigner(meta.RegionName(region))
	return by.Node, by.Region, key.Public().(ed25519.PublicKey), nil
}

// signedAt is the present end of the log as a checkpoint.
func signedAt(log AuditLog, at time.Time, regions ...meta.RegionName) audit.Signed {
	point := audit.Checkpoint{Cluster: log.Cluster, Epoch: log.Epoch, Size: log.Size, Root: tlog.Hash(log.Root), Time: at.UTC().Truncate(time.Second)}
	var signed audit.Signed
	for _, region := range regions {
		by, key := testSigner(region)
		if err := audit.Sign(point, by, key, &signed); err != nil {
			panic(err)
		}
	}
	return signed
}

// levelFiveAudit are the commands 125 to 129 in the golden log.
func levelFiveAudit(l *logWriter) {
	m, err := Open(l.dir(), Options{})
	if err == nil {
		_, err = m.ApplyBatch(l.entries)
	}
	if err != nil {
		panic(err)
	}
	defer m.Close()
	v, err := m.View()
	if err != nil {
		panic(err)
	}
	defer v.Close()
	log, err := GetAuditLog{}.Answer(v)
	if err != nil {
		panic(err)
	}
	l.add("", PutCheckpoint{Checkpoint: signedAt(log, l.now, "eu")})
	l.add("", PutCheckpoint{Checkpoint: signedAt(log, l.now, "us")}) // of another second
	log.Size++
	l.add("", PutCheckpoint{Checkpoint: signedAt(log, l.now, "eu")}) // of another root
	head := audit.Head{Node: "eu-8", Seq: 9, Sum: strings.Repeat("a", 64), Time: meta.TimeOf(l.now)}
	l.add("", AnchorChains{Server: "eu-8", Heads: []audit.Head{head, {Node: "a9", Seq: 1, Sum: strings.Repeat("b", 64)}}})
	head.Seq, head.Sum = 7, strings.Repeat("c", 64)
	l.add("", AnchorChains{Server: "eu-8", Heads: []audit.Head{head}})
	l.add("", AnchorChains{Server: "nobody", Heads: []audit.Head{head}})
	keep, most := time.Hour, uint64(1)<<40
	l.add("", SetAuditRetention{Keep: &keep, Exported: &most})
	most = 2
	l.add("", SetAuditRetention{Keep: &keep, Exported: &most})
	l.add("", PruneEntries{})
}

// entriesOf returns all lines of the log.
func entriesOf(b *bench) (lines [][]byte) {
	b.Helper()
	for from := uint64(0); ; {
		page := ask(b, ListEntries{From: from})
		lines = append(lines, page.Lines...)
		if from = page.Next; from >= page.Size {
			return lines
		}
	}
}

// TestAuditLogIsComplete replays a log with every command, done and refused: from
// level 5 on each leaves exactly one entry, in order, under one root.
func TestAuditLogIsComplete(t *testing.T) {
	b := &bench{TB: t, Machine: openMachine(t, t.TempDir())}
	type command struct {
		name    string
		index   uint64
		refused bool
	}
	var want []command
	for _, e := range levelFive(t) {
		_, c, err := Decode(e.Command)
		if err != nil {
			t.Fatal(err)
		}
		r, err := b.Apply(e.Index, e.Term, e.Command)
		if err != nil {
			t.Fatal(err)
		}
		v, err := b.View()
		if err != nil {
			t.Fatal(err)
		}
		level, err := levelOf(v)
		if err = errors.Join(err, v.Close()); err != nil {
			t.Fatal(err)
		}
		if level >= AuditLevel && c.Type() != typeTick && r.Index == e.Index {
			want = append(want, command{Name(c), e.Index, r.Err != nil})
		}
	}
	lines := entriesOf(b)
	if len(lines) != len(want) {
		t.Fatalf("%d entries of %d commands", len(lines), len(want))
	}
	var hashes []tlog.Hash
	for i, line := range lines {
		e, err := audit.ParseLine(line)
		if err != nil {
			t.Fatal(err)
		}
		if again := e.AppendLine(nil); !bytes.Equal(again, line) {
			t.Errorf("entry %d is %s, written again %s", i, line, again)
		}
		if !json.Valid(line) || e.Seq != uint64(i) || e.Index != want[i].index || e.Action != want[i].name || (e.Outcome == audit.Refused) != want[i].refused {
			t.Errorf("entry %d is %s, want %+v", i, line, want[i])
		}
		more, err := tlog.StoredHashes(int64(i), line, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			out := make([]tlog.Hash, len(indexes))
			for j, n := range indexes {
				out[j] = hashes[n]
			}
			return out, nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, more...)
	}
	root, err := tlog.TreeHash(int64(len(lines)), tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for j, n := range indexes {
			out[j] = hashes[n]
		}
		return out, nil
	}))
	if log := ask(b, GetAuditLog{}); err != nil || log.Size != uint64(len(lines)) || !bytes.Equal(log.Root, root[:]) {
		t.Errorf("the log is %+v, its entries make %d, %x: %v", log, len(lines), root, err)
	}
}

// TestHousekeeping: every command is in the log for whoever is no node, and what is not
// for nodes is a command and has a reason.
func TestHousekeeping(t *testing.T) {
	for number, k := range kinds {
		for _, who := range []string{"", "user:ada", "admin:bootstrap", "robot:acme/ci", "host:n"} {
			if !leavesEntry(&Origin{Principal: who}, number) && number != typeTick {
				t.Errorf("%s by %q leaves no entry", k.name, who)
			}
		}
		if _, listed := housekeeping[number]; leavesEntry(&Origin{Principal: "node:eu-1"}, number) == listed {
			t.Errorf("%s by a node: listed %t", k.name, listed)
		}
	}
	for number, reason := range housekeeping {
		if kinds[number].name == "" || len(reason) < 10 {
			t.Errorf("%d is listed because %q", number, reason)
		}
	}
	if leavesEntry(&Origin{}, 60_000) != true {
		t.Error("a command that is yet to be written leaves no entry")
	}
}

// fill sets everything in v: secrets to marks that must not be seen again.
func fill(v reflect.Value, depth int) {
	if depth > 8 {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("SECRET")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), depth+1)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte("SECRET"))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(k, depth+1)
		fill(e, depth+1)
		v.SetMapIndex(k, e)
	}
}

// shownTexts lists the fields of JSON whose text is the mark.
func shownTexts(path string, v any, out *[]string) {
	switch v := v.(type) {
	case map[string]any:
		for name, in := range v {
			shownTexts(path+"."+name, in, out)
		}
	case []any:
		for _, in := range v {
			shownTexts(path, in, out)
		}
	case string:
		if strings.Contains(v, "SECRET") {
			*out = append(*out, path)
		}
	}
}

// TestNoSecretsInEntries shows every command with everything set. A text field with a
// name that may be a secret's must be one that was looked at.
func TestNoSecretsInEntries(t *testing.T) {
	// Recipients and ids are public; the node's id is its public key.
	public := []string{"seal", "key_id", "token_id", "join_token", "credential", "token", "root_key", "key"}
	suspicious := []string{"token", "key", "seal", "cred", "auth", "code", "pin", "salt"}
	show := func(name string, v any) {
		var shown any
		if err := json.Unmarshal(audit.Render(v).JSON, &shown); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var paths []string
		shownTexts(name, shown, &paths)
		for _, path := range paths {
			last := path[strings.LastIndexByte(path, '.')+1:]
			for _, word := range []string{"secret", "password", "hash"} {
				if strings.Contains(last, word) {
					t.Errorf("%s is shown", path)
				}
			}
			if slices.ContainsFunc(suspicious, func(w string) bool { return strings.Contains(last, w) }) && !slices.Contains(public, last) {
				t.Errorf("%s is shown: is it a secret? Name it so, or list it as public", path)
			}
		}
	}
	for _, k := range kinds {
		c, err := k.decode([]byte{0xa0})
		if err != nil {
			t.Fatal(err)
		}
		v := reflect.New(reflect.TypeOf(c)).Elem()
		fill(v, 0)
		show(k.name, v.Interface())
	}
	for _, v := range []any{meta.Cluster{}, meta.Node{}, meta.JoinToken{}, meta.Credential{}, meta.Account{}, meta.Issuer{}} {
		r := reflect.New(reflect.TypeOf(v)).Elem()
		fill(r, 0)
		show(reflect.TypeOf(v).Name(), r.Interface())
	}
}

// TestEntrySaysWhat looks at one entry as an auditor does.
func TestEntrySaysWhat(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	b.must(link("layer", "eu-1"))
	b.must(tagged(image("m1", "layer"), "latest"))
	b.must(tagged(image("m2", "layer"), "latest"))
	private := meta.VisibilityPublic
	b.index++
	command, err := Encode(Origin{
		RequestID: "R1", Principal: "user:ada", TokenID: "T1", Node: "eu-1", Source: "192.0.2.1:99", Trace: "00-1-2-01", Time: 1_800_000_000_000_000_000,
	}, SetRepository{Ref: appRef, Visibility: &private})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := b.Apply(b.index, 1, command); err != nil || r.Err != nil {
		t.Fatal(r.Err, err)
	}
	lines := entriesOf(b)
	got := string(lines[len(lines)-1])
	want := fmt.Sprintf(`{"seq":%d,"epoch":1,"index":%d,"time":"2027-01-15T08:00:00Z","action":"SetRepository","principal":"user:ada","credential":"T1","source":"192.0.2.1:99","node":"eu-1",`+
		`"request":"R1","trace":"00-1-2-01","tenant":"acme","repository":"acme/app","outcome":"done","what":{"ref":"acme/app","visibility":"public"},`+
		`"changes":[{"record":"repository acme/app","before":{"visibility":"private","revision":%d},"after":{"visibility":"public","revision":%d}}]}`, len(lines)-1, b.index, b.index-5, b.index)
	if got != want {
		t.Errorf("the entry is\n%s\nwant\n%s", got, want)
	}
	moved := string(lines[len(lines)-2])
	if !strings.Contains(moved, `"record":"alias acme/app api latest"`) || !strings.Contains(moved, string(blob("m1").Digest)) {
		t.Errorf("the second push says %s", moved)
	}
	if seq, ok, err := sequenceAt(b, b.index); err != nil || !ok || seq != uint64(len(lines)-1) {
		t.Errorf("the entry of index %d is %d, %t: %v", b.index, seq, ok, err)
	}
	for filter, n := range map[*AuditFilter]int{
		{Principal: "user:ada", Credential: "T1"}: 1, {Request: "R1"}: 1, {Action: "Publish", Tenant: "acme"}: 2, {Repository: "acme/app", Outcome: audit.Done}: len(lines) - 1,
		{Principal: "user:nobody"}: 0, {Since: 1_800_000_000_000_000_001}: 0, {Until: 1}: 0, {Tenants: []meta.TenantName{"other"}}: 0,
	} {
		if page := ask(b, ListEntries{Filter: *filter}); len(page.Lines) != n || page.Next != page.Size {
			t.Errorf("%+v finds %d of %d, next %d of %d", *filter, len(page.Lines), n, page.Next, page.Size)
		}
	}
}

func sequenceAt(b *bench, index uint64) (uint64, bool, error) {
	v, err := b.View()
	if err != nil {
		return 0, false, err
	}
	defer v.Close()
	return auditSequence(v, index)
}

// many applies n small commands.
func many(b *bench, n int) {
	b.Helper()
	for n > 0 {
		entries := make([]Entry, min(n, 500))
		for i := range entries {
			b.index++
			b.now = b.now.Add(time.Second)
			command, err := Encode(Origin{Principal: "user:ada", Time: meta.TimeOf(b.now)}, SetLabels{Repo: appRef, Package: "api", Version: "none"})
			if err != nil {
				b.Fatal(err)
			}
			entries[i] = Entry{Index: b.index, Term: 1, Command: command}
		}
		if _, err := b.ApplyBatch(entries); err != nil {
			b.Fatal(err)
		}
		n -= len(entries)
	}
}

// TestAuditProofs proves entries and continuations of many sizes, also when the entries
// themselves are pruned.
func TestAuditProofs(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	var points []audit.Checkpoint
	point := func(n int) {
		many(b, n)
		log := ask(b, GetAuditLog{})
		b.must(PutCheckpoint{Checkpoint: signedAt(log, b.now, "eu", "us")})
		c, regions, err := ask(b, GetAuditLog{}).Checked.Verify(testTrust)
		if err != nil || !slices.Equal(regions, []meta.RegionName{"eu", "us"}) || c.Size != log.Size {
			t.Fatalf("checkpoint %+v by %v: %v", c, regions, err)
		}
		points = append(points, c)
	}
	for _, n := range []int{1, 1, 2, 250, 300, 256, 1000, 70_000} {
		point(n)
	}
	proofs := func() {
		for i, from := range points {
			for _, to := range points[i:] {
				path := ask(b, ProveContinuation{From: from.Size, To: to.Size})
				if err := tlog.CheckTree(hashesOf(path), int64(to.Size), to.Root, int64(from.Size), from.Root); err != nil {
					t.Fatalf("from %d to %d: %v", from.Size, to.Size, err)
				}
			}
		}
	}
	proofs()
	last := points[len(points)-1]
	for _, seq := range []uint64{0, 1, 2, 255, 256, 257, 1800, 65_535, 65_536, last.Size - 1} {
		a := ask(b, ProveEntry{Seq: seq})
		proof := audit.Proof{Entry: string(a.Line), Path: hashesOf(a.Path), Checkpoint: a.Checkpoint}
		if e, c, _, err := proof.Verify(testTrust); err != nil || e.Seq != seq || c.Size != last.Size {
			t.Fatalf("entry %d in %d: %v", seq, c.Size, err)
		}
		proof.Entry = strings.Replace(proof.Entry, "user:ada", "user:eve", 1) + " "
		if _, _, _, err := proof.Verify(testTrust); !errors.Is(err, meta.ErrCorrupt) {
			t.Fatalf("a changed entry %d: %v", seq, err)
		}
	}
	if _, err := try(b, ProveEntry{Seq: last.Size}); !errors.Is(err, meta.ErrNotFound) {
		t.Errorf("an entry behind the checkpoint: %v", err)
	}

	// Nothing goes that was not exported, or is young.
	keep, upTo := time.Hour, uint64(70_000)
	b.must(SetAuditRetention{Keep: &keep})
	if ask(b, Prunable{Now: meta.TimeOf(b.now)}) {
		t.Error("what was not exported may go")
	}
	b.must(SetAuditRetention{Exported: &upTo})
	for ask(b, Prunable{Now: meta.TimeOf(b.now)}) {
		b.must(PruneEntries{})
	}
	kept := ask(b, GetAuditLog{}).Kept
	if old := last.Size - 3600; kept.Pruned%audit.TileLeaves != 0 || kept.Pruned > old || kept.Pruned < old-2*audit.TileLeaves {
		t.Errorf("pruned up to %d", kept.Pruned)
	}
	if page := ask(b, ListEntries{}); page.First != kept.Pruned || !bytes.HasPrefix(page.Lines[0], fmt.Appendf(nil, `{"seq":%d,`, kept.Pruned)) {
		t.Errorf("the first entry is now %.60s", page.Lines[0])
	}
	proofs()
	if a := ask(b, ProveEntry{Seq: 5}); a.Line != nil || len(a.Path) == 0 {
		t.Errorf("a pruned entry is still there, or has no proof: %q", a.Line)
	}
}

func hashesOf(path [][]byte) []tlog.Hash {
	out := make([]tlog.Hash, len(path))
	for i := range path {
		copy(out[i][:], path[i])
	}
	return out
}

// TestCheckpointsThinOut: of what is older than the last ones an hour keeps one.
func TestCheckpointsThinOut(t *testing.T) {
	b := newBench(t)
	b.must(SetLevel{Level: Level})
	for range 500 {
		b.now = b.now.Add(time.Minute)
		many(b, 1)
		b.must(PutCheckpoint{Checkpoint: signedAt(ask(b, GetAuditLog{}), b.now, "eu")})
	}
	all := ask(b, ListCheckpoints{})
	if len(all) < keepCheckpoints || len(all) > keepCheckpoints+9 {
		t.Errorf("%d checkpoints are kept", len(all))
	}
}

// TestAuditLogSurvives restores a snapshot in the middle: the log goes on as it would
// have.
func TestAuditLogSurvives(t *testing.T) {
	a, b := newBench(t), newBench(t)
	for _, m := range []*bench{a, b} {
		m.must(SetLevel{Level: Level})
		many(m, 700)
	}
	c, err := a.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if _, err := c.WriteTo(&stream); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	restored := &bench{TB: t, Machine: openMachine(t, t.TempDir()), index: a.index, now: a.now}
	if err := restored.Restore(&stream); err != nil {
		t.Fatal(err)
	}
	many(restored, 700)
	many(b, 700)
	if x, y := ask(restored, GetAuditLog{}), ask(b, GetAuditLog{}); !bytes.Equal(x.Root, y.Root) || x.Size != y.Size {
		t.Errorf("restored %d %s, never stopped %d %s", x.Size, hex.EncodeToString(x.Root), y.Size, hex.EncodeToString(y.Root))
	}
	if _, x, err := restored.Hash(context.Background()); err != nil {
		t.Fatal(err)
	} else if _, y, err := b.Hash(context.Background()); err != nil || x != y {
		t.Errorf("the states differ: %v", err)
	}
}
