package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/shoal-registry/shoal/raftmeta/meta"
	"github.com/shoal-registry/shoal/transfer/swarm"
)

// frame renders v as lines of at most width columns; height bounds the lines, 0 is
// no bound. Blobs come first, then, as far as there is room, the rest.
func frame(v topView, width, height int) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, clip(fmt.Sprintf(format, args...), width)) }
	section := func(header []string, rows [][]string) {
		if len(rows) == 0 {
			return
		}
		out = append(out, "")
		for _, line := range columns(header, rows) {
			out = append(out, clip(line, width))
		}
	}
	t := v.Totals
	if len(v.Nodes) == 1 && v.Nodes[0].Error == "" {
		n := v.Nodes[0]
		add("%s %s  region %s%s  %s%s", n.Role, shortID(n.Node), n.Region, prefixed("  zone ", n.Zone), v.At.Format("15:04:05"),
			map[bool]string{true: "  NO SERVER REACHABLE"}[n.Alone])
	} else {
		answered := 0
		for _, n := range v.Nodes {
			if n.Error == "" {
				answered++
			}
		}
		add("%d of %d nodes answer  %s", answered, len(v.Nodes), v.At.Format("15:04:05"))
	}
	add("in %s (%s)  out %s  chunks/s %.0f in, %.0f out", rate(t.InPerSec), shares(t.Recent), rate(t.OutPerSec), t.ChunksInPerSec, t.ChunksOutPerSec)
	add("since the start: in %s (%s), %s was here already  out %s  hedges %d  wasted %d  bad %d  banned %d",
		size(t.In.Sum()), shares(t.In), size(t.In.Local), size(t.Out.Sum()), t.Hedges, t.Wasted, t.Bad, len(v.Banned))

	var rows [][]string
	for _, p := range v.Reported {
		state := "one node says so"
		if p.Shunned {
			state = "kept away"
		}
		rows = append(rows, []string{string(p.Region), shortID(p.ID), fmt.Sprint(p.By), p.Last.Local().Format("15:04:05"), state})
	}
	section([]string{"region", "sent wrong chunks", "reported by", "last", ""}, rows)

	rows = nil
	for _, b := range v.Blobs {
		rows = append(rows, []string{
			blobName(b.Root, b.Name), size(b.Bytes), bar(b.Have), fmt.Sprintf("%d/%d", b.Whole, b.Nodes),
			rate(b.InPerSec), rate(b.OutPerSec), fmt.Sprintf("%d+%d", b.Complete, b.Peers-b.Complete), sources(b.In),
			fmt.Sprintf("%.0f", b.ChunksInPerSec+b.ChunksOutPerSec), fmt.Sprint(b.Hedges), fmt.Sprint(b.Bad), eta(b),
		})
	}
	if len(rows) == 0 {
		out = append(out, "", "nothing is fetched or served now")
	}
	section([]string{"blob", "size", "here", "whole", "in", "out", "peers", "local/zone/region/wan", "chunks/s", "hedges", "bad", "eta"}, rows)
	if len(v.Nodes) > 1 || v.Nodes[0].Error != "" {
		rows = nil
		for _, n := range v.Nodes {
			if n.Error != "" {
				rows = append(rows, []string{n.Ops, "", "", "", "", "", "", n.Error})
				continue
			}
			note := ""
			if n.Alone {
				note = "reaches no server"
			}
			rows = append(rows, []string{
				n.Ops, string(n.Role), strings.Trim(string(n.Region)+"/"+n.Zone, "/"), rate(n.InPerSec), rate(n.OutPerSec),
				fmt.Sprintf("%d of %d", n.Fetching, n.Roots), fmt.Sprint(n.Links), note,
			})
		}
		section([]string{"node", "role", "place", "in", "out", "fetching", "peers", ""}, rows)
	}
	rows = nil
	for _, p := range v.Peers {
		role := "agent"
		if p.Server {
			role = "server"
		}
		rows = append(rows, []string{
			shortID(p.ID), role, strings.Trim(string(p.Region)+"/"+p.Zone, "/"), rtt(p.RTT), rate(p.InPerSec), rate(p.OutPerSec),
			size(p.In), size(p.Out), fmt.Sprint(p.Roots), fmt.Sprint(p.Bad),
		})
	}
	section([]string{"peer", "role", "place", "rtt", "in", "out", "in all", "out all", "blobs", "bad"}, rows)
	rows = nil
	for _, s := range v.Swarms {
		here := ""
		if s.Chunks > 0 && s.Members > 0 {
			here = bar(float64(s.Have) / float64(s.Chunks) / float64(s.Members))
		}
		rows = append(rows, []string{string(s.Region), blobName(s.Root.Hex(), s.Name), size(s.Bytes), fmt.Sprint(s.Members), fmt.Sprint(s.Complete), here})
	}
	section([]string{"region", "swarm", "size", "members", "whole", "mean"}, rows)
	rows = nil
	for _, b := range v.Banned {
		rows = append(rows, []string{shortID(b.ID), shortID(b.By), b.Until.Local().Format("15:04:05")})
	}
	section([]string{"banned", "by", "until"}, rows)
	if height > 0 && len(out) > height {
		out = append(out[:height-1], clip(fmt.Sprintf("... %d lines more: make the window larger, or use --once", len(out)-height+1), width))
	}
	return out
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// columns aligns rows under an upper-case header; the first column and every one
// that holds no number are aligned to the left.
func columns(header []string, rows [][]string) []string {
	widths := make([]int, len(header))
	right := make([]bool, len(header))
	for i, h := range header {
		widths[i] = utf8.RuneCountInString(h)
		right[i] = i > 0 && len(rows) > 0
		for _, r := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i]))
			right[i] = right[i] && (r[i] == "" || strings.ContainsRune("0123456789-", rune(r[i][0])))
		}
	}
	out := make([]string, 0, len(rows)+1)
	for _, r := range append([][]string{header}, rows...) {
		var b strings.Builder
		for i, cell := range r {
			if len(out) == 0 {
				cell = strings.ToUpper(cell)
			}
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if right[i] {
				cell = pad + cell
			} else {
				cell += pad
			}
			b.WriteString(cell)
			b.WriteString("  ")
		}
		out = append(out, strings.TrimRight(b.String(), " "))
	}
	return out
}

// clip cuts a line to width columns; 0 is no bound. What nodes say must not steer
// the terminal, so control characters become dots.
func clip(s string, width int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '.'
		}
		return r
	}, s)
	if width <= 0 || utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width])
}

// size is a number of bytes with three digits; rate is it per second.
func size(n int64) string { return scaled(float64(n)) + "B" }

func rate(perSec float64) string { return scaled(perSec) + "B/s" }

func scaled(f float64) string {
	unit := 0
	for f >= 999.5 && unit < 5 {
		f /= 1024
		unit++
	}
	text := fmt.Sprintf("%.0f", f)
	if unit > 0 && f < 99.95 {
		text = fmt.Sprintf("%.1f", f)
	}
	return text + []string{"", "Ki", "Mi", "Gi", "Ti", "Pi"}[unit]
}

// shares says where bytes came from, in per cent.
func shares(b swarm.Bytes) string {
	sum := b.Sum()
	if sum == 0 {
		return "-"
	}
	part := func(n int64) int64 { return (100*n + sum/2) / sum }
	return fmt.Sprintf("zone %d%% region %d%% wan %d%%", part(b.Rack+b.Zone), part(b.Region), part(b.WAN))
}

// sources are bytes by where they came from.
func sources(b swarm.Bytes) string {
	if b.Sum()+b.Local == 0 {
		return "-"
	}
	return size(b.Local) + "/" + size(b.Rack+b.Zone) + "/" + size(b.Region) + "/" + size(b.WAN)
}

// bar is a share, 0 to 1, drawn and in per cent.
func bar(share float64) string {
	const cells = 10
	full := min(max(int(share*cells), 0), cells)
	return fmt.Sprintf("%s%s %3.0f%%", strings.Repeat("#", full), strings.Repeat(".", cells-full), 100*share)
}

func eta(b topBlob) string {
	switch {
	case b.Trouble != "" && b.ETASeconds < 0:
		return b.Trouble
	case b.Fetching == 0:
		return ""
	case b.ETASeconds < 0:
		return "stalled"
	}
	return time.Duration(b.ETASeconds * float64(time.Second)).Round(100 * time.Millisecond).String()
}

func rtt(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return d.Round(10 * time.Microsecond).String()
}

// shortID is the end of a node id, which is where they differ.
func shortID(id meta.NodeID) string {
	if len(id) <= 8 {
		return string(id)
	}
	return string(id[len(id)-8:])
}

// blobName shortens the digest of a name; a blob without one is its root.
func blobName(root, name string) string {
	if name == "" {
		return "root:" + root[:min(12, len(root))]
	}
	if at := strings.LastIndex(name, ":"); at >= 0 && len(name) > at+13 {
		return name[:at+13]
	}
	return name
}
