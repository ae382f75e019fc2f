package node

import (
	"crypto/tls"

	"github.com/shoal-registry/shoal/gateway/certfile"
	"github.com/shoal-registry/shoal/verify/trust"
)

// gatewayTLS is what the gateway shows: nodes its node certificate, package clients
// the operator's where that names what they ask for, else the node certificate too.
func (n *Node) gatewayTLS() (*tls.Config, error) {
	if n.cfg.TLSCert == "" {
		return trust.ServerTLS(n.cred), nil
	}
	files, err := certfile.Open(n.cfg.TLSCert, n.cfg.TLSKey, n.log, n.metrics)
	if err != nil {
		return nil, err
	}
	n.parts.Add("certificate files", files.Run)
	n.views["certificate"] = func() any { return files.Status() }
	return trust.PublicTLS(n.cred, files.For), nil
}
