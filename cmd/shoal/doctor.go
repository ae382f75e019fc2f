package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/shoal-registry/shoal/node"
	"github.com/shoal-registry/shoal/node/doctor"
)

func newDoctor() *cobra.Command {
	var (
		out  output
		data string
		ops  string
		hash bool
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what is wrong with this machine and its node, and what to do",
		Example: `  shoal doctor --data /var/lib/shoal
  shoal doctor --data /var/lib/shoal --ops 127.0.0.1:7072`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if data == "" {
				home, err := dataHome()
				if err != nil {
					return err
				}
				data = filepath.Join(home, "dev")
			}
			checks := doctor.Local(data)
			findings := doctor.Run(cmd.Context(), checks)
			bucketCtx, cancel := context.WithTimeout(cmd.Context(), requestTimeout)
			findings = append(findings, doctor.Bucket(bucketCtx, data, nil)...)
			cancel()
			if hash {
				findings = append(findings, stateHash(cmd.Context(), data))
			}
			for _, addr := range opsAddresses(ops, data) {
				ctx, cancel := context.WithTimeout(cmd.Context(), requestTimeout)
				findings = append(findings, doctor.Ready(ctx, http.DefaultClient, addr)...)
				findings = append(findings, doctor.Scrub(ctx, http.DefaultClient, addr)...)
				findings = append(findings, doctor.Certificate(ctx, http.DefaultClient, addr)...)
				findings = append(findings, doctor.Audit(ctx, http.DefaultClient, addr)...)
				cancel()
			}
			if err := out.print(cmd, findings, func() {
				rows := make([][]string, 0, len(findings))
				for _, f := range findings {
					text := f.Detail
					if f.Advice != "" {
						text += " -> " + f.Advice
					}
					rows = append(rows, []string{string(f.Level), f.Check, text})
				}
				table(cmd, []string{"", "check", "finding"}, rows)
			}); err != nil {
				return err
			}
			if doctor.Worst(findings) == doctor.Fail {
				return errors.New("something is wrong, see above")
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "the node's data directory (default: dev's)")
	cmd.Flags().StringVar(&ops, "ops", "", "the node's ops listener, HOST:PORT (default: dev.json's, else 127.0.0.1:7072)")
	cmd.Flags().BoolVar(&hash, "state", false, "also hash the metadata of a server that does not run: servers at one index have one hash")
	out.flag(cmd)
	return cmd
}

// stateHash tells what a server's metadata is, to be compared with another's.
func stateHash(ctx context.Context, data string) doctor.Finding {
	index, sum, err := node.StateHash(ctx, data)
	if err != nil {
		return doctor.Finding{Check: "state", Level: doctor.Fail, Detail: err.Error(), Advice: "stop the server first"}
	}
	return doctor.Finding{Check: "state", Level: doctor.OK, Detail: fmt.Sprintf("index %d, hash %x", index, sum)}
}

// opsAddresses returns whom to ask: the one named, those of dev.json, or the default.
func opsAddresses(named, data string) []string {
	if named != "" {
		return []string{named}
	}
	if d, err := readDescription(data); err == nil {
		var all []string
		for _, e := range append(d.Servers, d.Agents...) {
			all = append(all, e.Ops)
		}
		return all
	}
	return []string{"127.0.0.1:7072"}
}
